"""Table 7: another beta, for the paper's lengths of training, not for this one."""

_base_ = "./mbcd.py"
custom_hooks = [dict(type="TeacherEMAHook", beta=0.9999)]
