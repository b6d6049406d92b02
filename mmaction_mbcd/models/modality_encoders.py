"""How the modalities are encoded: each on the samples that have it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from mmaction.registry import MODELS
from mmengine.model import ModuleDict
from torch import Tensor, nn

from .batch import Batch
from .layers import connected_zero
from .stages import State


class ModalityEncoders(ModuleDict):
    """``{modality: encoder}``, run as one.

    MMEngine's container, not torch's: only it passes ``init_weights`` on.

    Args:
        configs: ``{modality: encoder config}``; may name more than are used.
        modalities: Those to use, in this order.
    """

    def __init__(self, configs: Mapping[str, dict], modalities: Sequence[str]) -> None:
        super().__init__({m: MODELS.build(configs[m]) for m in modalities})

    @property
    def channels(self) -> dict[str, int]:
        """``{modality: d}`` of the pooled features."""
        return {m: encoder.feature_channels for m, encoder in self.items()}

    def put_channels_last(self) -> None:
        """Lays the weights of convolutions out as tensor cores read them.

        What is computed from them follows: maps, and parameters after an inner step.
        Shapes and values stay, in checkpoints, too. Rounding differs.
        """
        layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
        for p in self.parameters():
            if p.dim() in layouts:
                p.data = p.data.contiguous(memory_format=layouts[p.dim()])

    def stems(
        self,
        inputs: Mapping[str, Tensor],
        batch: Batch,
        modalities: Sequence[str] | None = None,
    ) -> dict[str, State]:
        """Runs each frozen stem once; no entry for a modality that no sample has."""
        states = {}
        for m in self if modalities is None else modalities:
            rows = batch.rows[m]
            if rows is None:
                states[m] = self[m].stem(inputs[m])
            elif len(rows):
                states[m] = self[m].stem(inputs[m][rows])  # (N, ...) -> (n, ...)
        return states

    def rerun_drifting_stems(
        self, inputs: Mapping[str, Tensor], batch: Batch, states: dict[str, State]
    ) -> dict[str, State]:
        """Stem outputs, run again only where the stem's BatchNorm drifts.

        For another model's ``states`` that is where the stems differ; for the own
        ones, where a second pass moves the statistics.
        """
        drifting = [
            m
            for m, encoder in self.items()
            if not encoder.stem_norm_eval and encoder.frozen_stages >= 0
        ]
        return states | self.stems(inputs, batch, drifting)

    def features(
        self,
        states: Mapping[str, State],
        batch: Batch,
        norms: Mapping[str, nn.Module],
        run: Callable[[str, State], Tensor],
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Pooled features with and without normalisation, ``{modality: (N, d)}`` each.

        Args:
            states: Outputs of the stems.
            batch: Who has which modality. Rows of absent samples are zero.
            norms: ``{modality: normalisation}``.
            run: ``(modality, state) -> (n, d)``, the branch at the wanted parameters.
        """
        features, raw_features = {}, {}
        for m, encoder in self.items():
            if m not in states:
                # Nobody has it. Zeros that still depend on its parameters: DDP would
                # wait for ever for their gradients.
                zero = connected_zero(encoder, norms[m])
                raw = zero.new_zeros(len(batch), encoder.feature_channels) + zero
                features[m] = raw_features[m] = raw
                continue
            raw = run(m, states[m])
            # Normalised before it is scattered: a zero row must stay zero.
            features[m] = _scattered(norms[m](raw), batch.rows[m], len(batch))
            raw_features[m] = _scattered(raw, batch.rows[m], len(batch))
        return features, raw_features

    def shared_stem_modules(self) -> list[str]:
        """Dotted names of the frozen submodules that a teacher can share."""
        return [
            f"{m}.{name}"
            for m, encoder in self.items()
            if encoder.stem_norm_eval
            for name in encoder.stem_modules()
        ]


def _scattered(values: Tensor, rows: Tensor | None, count: int) -> Tensor:
    """Present samples at their places, ``(n, d) -> (N, d)``, zeros elsewhere."""
    if rows is None:
        return values
    return values.new_zeros(count, values.shape[1]).index_copy(0, rows, values)


def build_norm(norm: dict | None, width: int) -> nn.Module:
    """The normalisation of a pooled feature.

    Args:
        norm: ``dict(type='LayerNorm', affine=False, eps=1e-5)``, or None for none.
        width: ``d``.

    Raises:
        ValueError: For any other config.
    """
    if norm is None:
        return nn.Identity()
    norm = dict(norm)
    kind = norm.pop("type", None)
    if kind != "LayerNorm" or norm.keys() - {"affine", "eps"}:
        raise ValueError(
            f"model.norm={norm | {'type': kind}}: only dict(type='LayerNorm', "
            "affine=False, eps=1e-5) and None are known"
        )
    return nn.LayerNorm(
        width, eps=norm.get("eps", 1e-5), elementwise_affine=norm.get("affine", False)
    )
