"""GMP: gradient modulation and projection between classes and domains."""

from collections.abc import Mapping, Sequence

import torch
from mmaction.registry import MODELS
from mmengine.model import ModuleDict
from torch import Tensor

from ..functional import at_least_float32, masked_cross_entropy, masked_mean
from ..layers import (
    DomainDiscriminator,
    DomainProjector,
    connected_zero,
    encode_present,
    reverse_gradient,
)
from ..step import StepOutputs
from .base import Objective


def truth_probability(
    logits: Tensor, truth: Tensor, present: Tensor | None = None
) -> Tensor:
    r"""Mean probability of the true class or domain, GMP's eqs. 6 and 7.

    .. math:: q^m = \frac{1}{N} \sum_i \mathrm{softmax}(f^m(x_i))_{y_i}

    Args:
        logits: ``(N, C)``; no gradient flows through the result.
        truth: ``(N,)``, indices.
        present: ``(N,) bool``, or None for all.

    Returns:
        Scalar in [0, 1]; 0 if no sample is present.
    """
    probability = at_least_float32(logits.detach()).softmax(dim=1)
    own = probability.gather(1, truth.unsqueeze(1)).squeeze(1)  # (N, C) -> (N,)
    return masked_mean(own, present)


def confidence_ratios(
    scores: Mapping[str, Tensor],
    present: Mapping[str, Tensor],
    invert: bool = False,
    eps: float = 1e-6,
) -> dict[str, Tensor]:
    r"""How far each modality is ahead of the others, GMP's eq. 8.

    .. math:: \rho^m = \frac{q^m}{\mathrm{mean}_{j \ne m} q^j + \epsilon}, \qquad
              \sigma^m = \frac{\mathrm{mean}_{j \ne m} c^j}{c^m + \epsilon}

    The paper has two modalities and no epsilon; the mean over the others is the
    published code's.

    Args:
        scores: ``{modality: scalar}``, q or c.
        present: ``{modality: scalar bool}``, whether the batch has the modality.
        invert: sigma instead of rho: a low domain confidence is an advantage.
        eps: Of the published code.

    Returns:
        ``{modality: scalar}``; 1 where there is nothing to compare with.
    """
    ratios = {}
    for m, own in scores.items():
        others = [j for j in scores if j != m]
        weights = torch.stack([present[j].to(own) for j in others])
        values = torch.stack([scores[j] for j in others])
        mean = (weights * values).sum() / weights.sum().clamp(min=1)
        ratio = mean / (own + eps) if invert else own / (mean + eps)
        # Decided on the device: asking whether the batch has one would wait for it.
        alone = (weights.sum() == 0) | ~present[m]
        ratios[m] = torch.where(alone, torch.ones_like(ratio), ratio)
    return ratios


def modulation_coefficient(ratio: Tensor, alpha: float) -> Tensor:
    r"""Slows what is ahead, GMP's eqs. 9 and 10.

    .. math:: k = 1 - \tanh(\alpha \rho) \text{ if } \rho > 1 \text{ else } 1

    It jumps at 1: from 1 to 0.538 with ``alpha = 0.5``.

    Args:
        ratio: rho or sigma, any shape, not negative.
        alpha: ``alpha_k`` or ``alpha_p``.

    Returns:
        In [0, 1].
    """
    slowed = (1 - (alpha * ratio).tanh()).clamp(0, 1)
    return torch.where(ratio > 1, slowed, torch.ones_like(slowed))


def resolve_conflict(
    a: Sequence[Tensor],
    b: Sequence[Tensor],
    keep_b: Tensor,
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    r"""Projects one of two opposed gradients off the other, GMP's eqs. 12 to 15.

    .. math:: \langle a, b \rangle < 0: \quad
              a \leftarrow a - \frac{\langle a, b \rangle}{\|b\|^2} b
              \quad \text{or} \quad
              b \leftarrow b - \frac{\langle a, b \rangle}{\|a\|^2} a

    Args:
        a: Gradient of the classification, one tensor per parameter.
        b: Gradient of the domain term, for the same parameters.
        keep_b: Scalar bool: True projects ``a`` (``Gamma = rho / sigma >= 1``), False
            projects ``b``. The weaker task's gradient stays whole.

    Returns:
        ``a`` and ``b`` afterwards, and a scalar bool: whether they were opposed.
    """
    inner = _inner(a, b)
    conflict = inner < 0
    zero = torch.zeros_like(inner)
    # A vanished gradient is never opposed; this only keeps 0 / 0 away.
    tiny = torch.finfo(inner.dtype).tiny
    from_a = torch.where(conflict & keep_b, inner / _inner(b, b).clamp(tiny), zero)
    from_b = torch.where(conflict & ~keep_b, inner / _inner(a, a).clamp(tiny), zero)
    new_a = [x - from_a * y for x, y in zip(a, b, strict=True)]
    new_b = [y - from_b * x for x, y in zip(a, b, strict=True)]
    return new_a, new_b, conflict


def _inner(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    return torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([x.flatten() for x in tensors])


@MODELS.register_module()
class GradientModulation(Objective):
    r"""GMP (AAAI 2026, arXiv 2603.14175): balances classes against domains.

    For each modality, ``a`` is the encoder's gradient of the classification terms and
    ``b`` that of an adversarial domain term. Both are scaled by how far the modality
    is ahead of the others, and where they are opposed one is projected off the other.
    All other losses pass through unchanged, so it can stand on top of any method,
    behind its classification objective.

    The modified gradient is returned as the surrogate
    :math:`\sum_p p \cdot \mathrm{sg}(\hat a_p + \hat b_p - a_p - b_p)` minus its own
    value: it is zero, and its gradient turns what backward finds anyway (``a + b``)
    into what GMP wants, so that DDP, accumulation and mixed precision treat it as any
    loss. Two more backward passes through the branches.

    Where sources differ: the paper splits linear fused heads to get unimodal
    confidences; as in the published code, this class takes those of the unimodal heads
    (probes will do). The published code never trains its domain discriminator; this
    class does, by the gradient-reversed domain loss. The code also lets the class
    head's gradient enter the norm that ``b`` is projected with, so that some conflict
    remains; this class projects the encoder's gradient alone, as in the paper, and
    only scales the unimodal head's.

    With one source domain the domain part is off: ``p = 1``, ``b = 0``.

    Args:
        channels: ``{modality: d}``; filled in.
        num_domains: Number of source domains; filled in.
        terms: Which classification losses are ``a``: ``'fused'``, ``'unimodal'`` or
            both. The published code modulates the unimodal terms alone; the paper the
            fused one; on top of another method it is both.
        alpha_class: ``alpha_k`` of eq. 9. The paper tunes it in [0, 1] and gives no
            value; the published code has 0.5.
        alpha_domain: ``alpha_p`` of eq. 10; as above.
        domain_weight: Of the domain loss, 0.5 in the published code (lambda in the
            paper, in [0, 1]).
        reversal: Factor of the gradient reversal, 0.3 in the published code.
        modulation: Scale the gradients, eq. 11. Off is the paper's ablation.
        projection: Resolve conflicts, eqs. 12 to 15. Off is the paper's ablation.

    Raises:
        ValueError: With fewer than two modalities, or for unknown terms.
    """

    needs_heads = True
    needs_theta = True
    filled_in = ("channels", "num_domains")

    def __init__(
        self,
        channels: Mapping[str, int],
        num_domains: int,
        terms: Sequence[str] = ("fused", "unimodal"),
        alpha_class: float = 0.5,
        alpha_domain: float = 0.5,
        domain_weight: float = 0.5,
        reversal: float = 0.3,
        modulation: bool = True,
        projection: bool = True,
    ) -> None:
        super().__init__()
        problems = []
        if len(channels) < 2:
            problems.append(
                f"it compares modalities and needs at least two; got {list(channels)}"
            )
        if not terms or set(terms) - {"fused", "unimodal"}:
            problems.append(f"terms are fused and unimodal; got {list(terms)}")
        if problems:
            raise ValueError("GradientModulation: " + "; ".join(problems))
        self.terms = tuple(terms)
        self.alpha_class, self.alpha_domain = alpha_class, alpha_domain
        self.domain_weight, self.reversal = domain_weight, reversal
        self.modulation, self.projection = modulation, projection
        self.modalities = list(channels)
        self.needs_domains = num_domains > 1
        self.projectors = self.discriminator = None
        if num_domains > 1:
            self.projectors = ModuleDict(
                {m: DomainProjector(width) for m, width in channels.items()}
            )
            self.discriminator = DomainDiscriminator(num_domains)

    def forward(self, outputs: StepOutputs) -> dict[str, Tensor]:
        """``loss_gmp`` (zero; see above), ``loss_domain``, and the log values.

        Raises:
            RuntimeError: If no classification loss stands before it.
        """
        classification = torch.stack(self._terms(outputs)).sum()
        present = {m: outputs.present[m].any() for m in self.modalities}
        q = {
            m: truth_probability(
                outputs.unimodal_logits[m], outputs.labels, outputs.present[m]
            )
            for m in self.modalities
        }
        rho = confidence_ratios(q, present)
        sigma = {m: torch.ones_like(r) for m, r in rho.items()}
        # With one source no domain is ahead: sigma stays 1.
        losses, domain = {}, None
        if self.discriminator is not None:
            domain, c, encoded = self._domains(outputs)
            sigma = confidence_ratios(c, encoded, invert=True)
            losses["loss_domain"] = domain
        # Zero, with the gradient that turns a + b into what GMP wants.
        correction, logs = self._correction(outputs, classification, domain, rho, sigma)
        return losses | {"loss_gmp": correction - correction.detach()} | logs

    def _terms(self, outputs: StepOutputs) -> list[Tensor]:
        names = ["loss_fused"] if "fused" in self.terms else []
        if "unimodal" in self.terms:
            names += [f"loss_{m}" for m in self.modalities]
        found = [outputs.losses[name] for name in names if name in outputs.losses]
        if not found:
            raise RuntimeError(
                f"GradientModulation modulates {names}, but the objectives before it "
                f"return {list(outputs.losses)}: put it behind the classification "
                "objective, or change its terms"
            )
        return found

    def _domains(
        self, outputs: StepOutputs
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """The domain loss, gradient-reversed, the confidences c, and who has one."""
        losses, confidences, encoded = [], {}, {}
        for m in self.modalities:
            reversed_ = reverse_gradient(outputs.features[m], self.reversal)
            projected = self.projectors[m](reversed_)
            logits, rows = encode_present(
                self.discriminator,
                projected,
                outputs.present[m],
                outputs.rows.get(m),
            )
            ce = masked_cross_entropy(logits, outputs.domains, rows)
            # Connected even if no row was encoded.
            losses.append(at_least_float32(ce) + connected_zero(projected))
            confidences[m] = truth_probability(logits, outputs.domains, rows)
            # One present row alone does not pass BatchNorm and has no confidence.
            encoded[m] = rows.any()
        return self.domain_weight * torch.stack(losses).sum(), confidences, encoded

    def _correction(
        self,
        outputs: StepOutputs,
        classification: Tensor,
        domain: Tensor | None,
        rho: Mapping[str, Tensor],
        sigma: Mapping[str, Tensor],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The surrogate whose gradient GMP adds, and the log values."""
        parameters = [p for m in self.modalities for p in outputs.theta[m].values()]
        # Both gradients of all modalities in one pass each, then read in that order.
        of_class = iter(outputs.gradient(classification, parameters))
        of_domain = iter(
            outputs.gradient(domain, parameters) if domain is not None else ()
        )
        total, logs = [], {}
        for m in self.modalities:
            own = outputs.theta[m]
            # Theta lists the encoder before its head, whose gradient is only scaled.
            head = sum(p.numel() for n, p in own.items() if n.startswith("head."))
            a = _flat([next(of_class) for _ in own])
            b = torch.zeros_like(a)
            if domain is not None:
                b = _flat([next(of_domain) for _ in own])
            k = modulation_coefficient(rho[m], self.alpha_class)
            p = modulation_coefficient(sigma[m], self.alpha_domain)
            if not self.modulation:
                k, p = torch.ones_like(k), torch.ones_like(p)
            new_a, new_b = k * a, p * b
            if domain is not None and self.projection:
                cut = len(a) - head  # the encoder's part of the flat gradient
                (for_a,), (for_b,), conflict = resolve_conflict(
                    [new_a[:cut]], [new_b[:cut]], rho[m] >= sigma[m]
                )
                new_a = torch.cat([for_a, new_a[cut:]])
                new_b = torch.cat([for_b, new_b[cut:]])
                logs[f"conflict/{m}"] = conflict.to(a.dtype)
            # What is missing to the gradient that backward finds anyway.
            change = (new_a - a) + (new_b - b)
            total.append(torch.dot(_flat(list(own.values())), change.detach()))
            logs |= {f"rho/{m}": rho[m], f"k/{m}": k}
            if domain is not None:
                gamma = rho[m] / sigma[m].clamp(min=1e-6)
                logs |= {f"sigma/{m}": sigma[m], f"p/{m}": p, f"gamma/{m}": gamma}
        return torch.stack(total).sum(), logs
