"""EPIC-Kitchens for the published baselines: half of the features is dropped."""

_base_ = "./epic_kitchens.py"
model = dict(encoders=dict(video=dict(dropout=0.5), flow=dict(dropout=0.5)))
