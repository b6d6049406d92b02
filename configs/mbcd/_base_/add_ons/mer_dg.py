"""MER-DG on top of another method; for extra_objectives.

ICML 2026. weight 3, gamma 1, eps 1e-4 are the method's; the sources do not give the
weights of its two parts, which are 1 and 1 here. It trains with batches of 48 for 25
epochs there.
"""

mer_dg = [
    dict(
        type="MaximumEntropyRegularizer",
        weight=3.0,
        spread_weight=1.0,
        volume_weight=1.0,
        gamma=1.0,
        eps=1e-4,
    )
]
