"""The paper's Table 7: MBCD with beta = 0.9."""

_base_ = "./mbcd.py"
method = dict(
    name="MBCD, beta 0.9",
    custom_hooks=[dict(type="TeacherEMAHook", beta=0.9)],
)
