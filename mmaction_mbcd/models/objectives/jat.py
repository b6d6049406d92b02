"""JAT: neither the domain nor the modality can be told from a feature."""

from collections.abc import Mapping

import torch
from mmaction.registry import MODELS
from mmengine.model import ModuleDict
from torch import Tensor, nn

from ..functional import (
    at_least_float32,
    masked_cross_entropy,
    masked_mean,
    modality_pairs,
    softmax_entropy,
    weighted_terms,
)
from ..layers import (
    DomainDiscriminator,
    DomainProjector,
    encode_present,
    reverse_gradient,
)
from ..step import StepOutputs
from .base import Objective


def confusion_weights(
    logits: Mapping[str, Tensor],
    present: Mapping[str, Tensor],
    temperature: float = 1.0,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    r"""JAT's weight of each modality, larger the less its domain can be told.

    .. math:: w_m = \mathrm{softmax}_m ( H_m / T ), \qquad
              H_m = \frac{1}{N} \sum_i H(\mathrm{softmax}(l_{m,i}))

    Not detached in the published code: the weights have a gradient.

    Args:
        logits: ``{modality: (N, S)}`` of the local domain discriminator; the class
            logits if there is one source.
        present: ``{modality: (N,) bool}``, rows that have logits.
        temperature: ``T``.

    Returns:
        ``{modality: w}``, which sum to 1, and ``{modality: H}`` in nats. A modality
        without rows has weight 0; if none has any, all are equal.
    """
    entropies = {
        m: masked_mean(softmax_entropy(own), present[m]) for m, own in logits.items()
    }
    scores = torch.stack(list(entropies.values())) / temperature  # (M,)
    known = torch.stack([present[m].any() for m in logits])
    # The lowest number, not -inf: if no modality is known, all weights are equal.
    scores = scores.masked_fill(~known, torch.finfo(scores.dtype).min)
    return dict(zip(logits, scores.softmax(dim=0), strict=True)), entropies


@MODELS.register_module()
class JointAdversarialLoss(Objective):
    r"""Classification and adversaries of JAT (MDJA, ACM MM 2025), published code.

    .. math:: \mathrm{CE}(g(z), y) + \alpha \sum_m w_m \mathrm{CE}(h_m(z_m), y)
              + \beta_g L_{glob} + \beta_l L_{loc} + \beta_m L_{mod}

    ``L_mod`` tells the modality from a feature, ``L_loc`` its domain by one
    discriminator for all modalities (both are means over the modalities), ``L_glob``
    the domain from the fused feature. All see the features through reversed gradients.
    ``w`` are the weights of :func:`confusion_weights` from the local discriminator. It
    takes the place of ``ClassificationObjective``.

    With a single source there is no domain to tell: the modality adversary stays, and
    the weights follow the entropy of the class logits.

    The official repository differs: no dropout in the encoders, LayerNorm, feature
    noise, unimodal heads with a hidden layer, modality dropout, ``alpha = M``, a wider
    global discriminator, weight decay and an evaluated average.

    Args:
        channels: ``{modality: d}``, filled in by the recognizer.
        num_domains: ``S``, filled in by the recognizer.
        unimodal_weight: ``alpha``; 3.0 in the published code.
        global_weight: ``beta_g``; 0.5 there.
        local_weight: ``beta_l``; 0.5 there.
        modality_weight: ``beta_m``; 0.1 there.
        domain_reversal: Factor of the domain adversaries' reversed gradient; 0.3 there.
        modality_reversal: Of the modality adversary's; 0.1 there.
        temperature: ``T`` of the weights; 1 there.
        hidden_channels: Of the projectors and the global discriminator; 512 there.
        dropout: Of the same; 0.5 there.

    Raises:
        ValueError: With fewer than two modalities.
    """

    filled_in = ("channels", "num_domains")
    needs_unimodal = True

    def __init__(
        self,
        channels: Mapping[str, int],
        num_domains: int,
        unimodal_weight: float = 3.0,
        global_weight: float = 0.5,
        local_weight: float = 0.5,
        modality_weight: float = 0.1,
        domain_reversal: float = 0.3,
        modality_reversal: float = 0.1,
        temperature: float = 1.0,
        hidden_channels: int = 512,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        modality_pairs(channels, "JointAdversarialLoss")  # for its check alone
        self.unimodal_weight, self.temperature = unimodal_weight, temperature
        self.global_weight, self.local_weight = global_weight, local_weight
        self.modality_weight = modality_weight
        self.domain_reversal = domain_reversal
        self.modality_reversal = modality_reversal

        def projectors() -> ModuleDict:
            return ModuleDict(
                {
                    m: DomainProjector(d, hidden_channels, dropout)
                    for m, d in channels.items()
                }
            )

        self.modality_projectors = projectors()
        self.modality_discriminator = nn.Linear(hidden_channels, len(channels))
        self.needs_domains = num_domains > 1
        if self.needs_domains:
            self.domain_projectors = projectors()
            self.local_discriminator = DomainDiscriminator(num_domains, hidden_channels)
            self.global_discriminator = nn.Sequential(
                DomainProjector(sum(channels.values()), hidden_channels, dropout),
                nn.Linear(hidden_channels, num_domains),
            )

    def forward(self, outputs: StepOutputs) -> dict[str, Tensor]:
        """``loss_fused``, ``loss_<modality>`` and the adversaries' losses.

        These are ``loss_adversary_modality`` and, with several sources,
        ``loss_adversary_local`` and ``loss_adversary_global``. Logs each modality's
        weight.
        """
        adversaries = {
            "loss_adversary_modality": self.modality_weight * self._modality(outputs)
        }
        # What the weights judge by: the domain logits, if there is a domain to tell.
        certain, usable = outputs.unimodal_logits, outputs.present
        if self.needs_domains:
            certain, usable = self._local_logits(outputs)
            local = [
                masked_cross_entropy(logits, outputs.domains, usable[m])
                for m, logits in certain.items()
            ]
            adversaries["loss_adversary_local"] = (
                self.local_weight * torch.stack(local).mean()
            )
            adversaries["loss_adversary_global"] = self.global_weight * self._global(
                outputs
            )
        weights, _ = confusion_weights(certain, usable, self.temperature)
        scaled = {m: self.unimodal_weight * w for m, w in weights.items()}
        logs = {f"weight/{m}": w.detach() for m, w in weights.items()}
        return weighted_terms(outputs, 1.0, scaled) | adversaries | logs

    def _modality(self, outputs: StepOutputs) -> Tensor:
        terms = []
        for index, (m, projector) in enumerate(self.modality_projectors.items()):
            z = reverse_gradient(outputs.features[m], self.modality_reversal)
            logits = at_least_float32(self.modality_discriminator(projector(z)))
            # Every row's truth is the modality it came from.
            target = torch.full_like(outputs.labels, index)
            terms.append(masked_cross_entropy(logits, target, outputs.present[m]))
        return torch.stack(terms).mean()

    def _local_logits(
        self, outputs: StepOutputs
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Domain logits of each modality and the rows that have them."""
        logits, usable = {}, {}
        for m, projector in self.domain_projectors.items():
            z = reverse_gradient(outputs.features[m], self.domain_reversal)
            # One discriminator for all modalities, with BatchNorm: present rows alone.
            own, usable[m] = encode_present(
                self.local_discriminator,
                projector(z),
                outputs.present[m],
                outputs.rows.get(m),
            )
            logits[m] = at_least_float32(own)
        return logits, usable

    def _global(self, outputs: StepOutputs) -> Tensor:
        z = reverse_gradient(outputs.fused_features, self.domain_reversal)
        logits = at_least_float32(self.global_discriminator(z))
        return masked_cross_entropy(logits, outputs.domains, outputs.valid)
