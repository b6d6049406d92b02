"""RNA-Net on HAC as published code ran it; see docs/methods/rna_net.md.

Stems' BatchNorm drifts, audio's layer4 starts at random. Sampling: published.
"""

_base_ = "../rna_net.py"
model = dict(encoders={{_base_.published_encoders}})
