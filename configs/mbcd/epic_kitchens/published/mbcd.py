"""MBCD on EPIC-Kitchens as published code ran it; see docs/methods.md."""

_base_ = "../mbcd.py"
model = {{_base_.method.published.model}}
