"""MBCD on EPIC-Kitchens as published code ran it; see docs/methods/mbcd.md.

All stems' BatchNorm drifts, both passes move it, DSU.
Test rows alone. Sampling: published.
"""

_base_ = "../mbcd.py"
model = {{_base_.method.published.model}}
test_dataloader = dict(dataset=dict(eval_split="test"))
