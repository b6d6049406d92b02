"""Uncertainty of an accuracy."""

from scipy.stats import binomtest


def accuracy_interval(
    accuracy: float, count: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Wilson's interval of an accuracy measured on ``count`` clips.

    It covers the sampling of the clips only, not the randomness of training.

    Args:
        accuracy: Fraction of correct clips.
        count: N, the number of clips.
        confidence: Coverage of the interval.

    Returns:
        Lower and upper fraction.

    Raises:
        ValueError: If the accuracy is not a number of clips out of ``count``.
    """
    correct = round(accuracy * count)
    if count < 1 or abs(correct - accuracy * count) > 1e-3:
        raise ValueError(f"an accuracy of {accuracy} is not a share of N={count} clips")
    interval = binomtest(correct, count).proportion_ci(confidence, method="wilson")
    return interval.low, interval.high
