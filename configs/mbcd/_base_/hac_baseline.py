"""HAC for the published baselines, which drop half of the video and flow features."""

_base_ = "./hac.py"
model = dict(encoders=dict(video=dict(dropout=0.5), flow=dict(dropout=0.5)))
