"""GMP on top of another method, as in its paper's Table 3; for extra_objectives.

Modulated are the method's classification terms. optim_wrapper must be MBCDOptimWrapper.
"""

gmp = [
    dict(
        type="GradientModulation",
        terms=["fused", "unimodal"],
        alpha_class=0.5,
        alpha_domain=0.5,
        domain_weight=0.5,
        reversal=0.3,
    )
]
