"""ERM on HAC as published code ran it; see docs/methods/erm.md.

Stems' BatchNorm drifts, audio's layer4 starts at random. Sampling: published.
"""

_base_ = "../erm.py"
model = dict(encoders={{_base_.published_encoders}})
