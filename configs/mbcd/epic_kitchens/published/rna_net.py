"""RNA-Net on EPIC-Kitchens as published code ran it; see docs/methods/rna_net.md.

Stems' BatchNorm drifts, audio's layer4 starts at random.
Test rows alone. Sampling: published.
"""

_base_ = "../rna_net.py"
model = dict(encoders={{_base_.published_encoders}})
test_dataloader = dict(dataset=dict(eval_split="test"))
