"""MBCD on HAC as published code ran it; see docs/methods/mbcd.md.

All stems' BatchNorm drifts, both passes move it, DSU. Sampling: published.
"""

_base_ = "../mbcd.py"
model = {{_base_.method.published.model}}
