"""What one forward pass hands to the objectives."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class StepOutputs:
    """Everything that an objective may read. Objectives never call the model.

    ``N`` samples, ``C`` classes; dicts run over the modalities in declared order.

    Attributes:
        labels: ``(N,)`` class indices.
        domains: ``(N,)`` index of each sample's domain among the sources, -1 for a
            target.
        present: ``{modality: (N,) bool}``, which samples have the modality.
        features: ``{modality: (N, d)}`` at theta: pooled, after LayerNorm if there
            is one. Rows of absent samples are zero.
        raw_features: The same before LayerNorm.
        unimodal_logits: ``{modality: (N, C)}`` at theta; empty without heads.
        unimodal_ce: ``{modality: scalar}``, their cross-entropies (means over the
            present samples); empty without gradient, for the teacher and in
            evaluation.
        probe: True if the unimodal heads only watch (detached features).
        fused_features: ``(N, sum d)``, what the fused head saw.
        fused_logits: ``(N, C)``; at theta' if the step has an inner update.
        teacher: The teacher's outputs for the same samples, without gradient.
        logs: ``{name: scalar}`` for the log; keys must not contain "loss".
    """

    labels: Tensor | None = None
    domains: Tensor | None = None
    present: dict[str, Tensor] = field(default_factory=dict)
    features: dict[str, Tensor] = field(default_factory=dict)
    raw_features: dict[str, Tensor] = field(default_factory=dict)
    unimodal_logits: dict[str, Tensor] = field(default_factory=dict)
    unimodal_ce: dict[str, Tensor] = field(default_factory=dict)
    probe: bool = False
    fused_features: Tensor | None = None
    fused_logits: Tensor | None = None
    teacher: StepOutputs | None = None
    logs: dict[str, Tensor] = field(default_factory=dict)
