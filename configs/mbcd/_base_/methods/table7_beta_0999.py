"""The paper's Table 7: MBCD with beta = 0.999."""

_base_ = "./mbcd.py"
method = dict(
    name="MBCD, beta 0.999",
    custom_hooks=[dict(type="TeacherEMAHook", beta=0.999)],
)
