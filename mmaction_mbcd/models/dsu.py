"""Domain shifts with uncertainty (DSU): feature statistics get Gaussian noise."""

from torch import Tensor


def domain_shift_with_uncertainty(
    x: Tensor, noise_mean: Tensor, noise_std: Tensor, eps: float = 1e-6
) -> Tensor:
    r"""Domain shifts with uncertainty (DSU): feature statistics get Gaussian noise.

    .. math:: \frac{x - \mu}{\sigma} (\sigma + \epsilon_\sigma S(\sigma))
              + \mu + \epsilon_\mu S(\mu)

    with mean and standard deviation over space and time, and ``S`` their standard
    deviation over the batch (Li et al., ICLR 2022). MBCD's published code applies
    it in the first pass without naming it in the paper.

    Args:
        x: ``(N, C, ...)`` with at least one further dimension.
        noise_mean: ``(N, C)`` standard normal numbers, ``epsilon_mu``.
        noise_std: ``(N, C)`` standard normal numbers, ``epsilon_sigma``.
        eps: Added to each variance.

    Returns:
        Of the shape of ``x``.
    """
    flat = x.flatten(2)  # (N, C, positions)
    mean = flat.mean(dim=2)  # (N, C), as all statistics of a sample
    std = (flat.var(dim=2) + eps).sqrt()
    # Spread of the statistics over the batch, (1, C)
    spread_mean = (mean.var(dim=0, keepdim=True) + eps).sqrt()
    spread_std = (std.var(dim=0, keepdim=True) + eps).sqrt()
    scale = (std + noise_std * spread_std) / std
    shift = mean + noise_mean * spread_mean
    out = (flat - mean.unsqueeze(2)) * scale.unsqueeze(2) + shift.unsqueeze(2)
    return out.view_as(x)
