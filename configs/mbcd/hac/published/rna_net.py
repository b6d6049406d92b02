"""RNA-Net on HAC as published code ran it; see docs/methods.md.

Sampling: published.
"""

_base_ = "../rna_net.py"
model = dict(encoders={{_base_.published_encoders}})
