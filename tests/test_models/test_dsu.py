"""DSU against its formula, written with sums."""

import torch

from mmaction_mbcd.models.dsu import domain_shift_with_uncertainty


def test_domain_shift_with_uncertainty():
    x = torch.randn(4, 3, 5, 2, dtype=torch.float64)
    eps_mean, eps_std = torch.randn(2, 4, 3, dtype=torch.float64)
    out = domain_shift_with_uncertainty(x, eps_mean, eps_std)
    flat = x.reshape(4, 3, 10)
    mu = flat.sum(2) / 10
    sigma = (((flat - mu[..., None]) ** 2).sum(2) / 9 + 1e-6).sqrt()
    spread = [(((v - v.mean(0)) ** 2).sum(0) / 3 + 1e-6).sqrt() for v in (mu, sigma)]
    new_mu, new_sigma = mu + eps_mean * spread[0], sigma + eps_std * spread[1]
    expected = (flat - mu[..., None]) / sigma[..., None] * new_sigma[..., None]
    expected = expected + new_mu[..., None]
    assert torch.allclose(out, expected.view_as(x), rtol=1e-12, atol=1e-12)
    zero = torch.zeros_like(eps_mean)
    assert torch.allclose(domain_shift_with_uncertainty(x, zero, zero), x, atol=1e-12)
