"""MER-DG on top of another method; for extra_objectives.

ICML 2026 (arXiv 2605.01967). weight 3, gamma 1, eps 1e-4 and the weights 1 and 1 of its
two parts, on the encoders' outputs: the paper, which trains with batches of 48 for 25
epochs. Its public code differs; docs/methods/mer_dg.md says in what.
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
