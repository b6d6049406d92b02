"""CMRF whose running mean starts at iteration 100, upstream's value for HAC."""

_base_ = "./cmrf.py"
method = dict(
    custom_hooks=[
        dict(
            type="TeacherEMAHook",
            beta=None,
            ema_type="StochasticWeightAverage",
            begin_iter=100,
            evaluate="student",
        )
    ],
)
