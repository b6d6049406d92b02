"""ERM on HAC as published code ran it; see docs/methods.md.

Sampling: published.
"""

_base_ = "../erm.py"
model = dict(encoders={{_base_.published_encoders}})
