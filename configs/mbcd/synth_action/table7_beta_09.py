"""Table 7: MBCD with beta = 0.9, which suits the paper's runs, not this short one."""

_base_ = "./mbcd.py"
custom_hooks = [dict(type="TeacherEMAHook", beta=0.9)]
