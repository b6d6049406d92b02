"""What a batch is: who has which modality, and what else the data samples say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .functional import at_least_float32


@dataclass
class Batch:
    """Facts about one batch that do not depend on the weights.

    Attributes:
        labels: ``(N,)`` class indices, None if a sample has no label.
        domains: ``(N,)`` index of each sample's source domain, -1 for a target.
        present: ``{modality: (N,) bool}``, which samples have it.
        rows: ``{modality: indices of the present samples}``, None for all of them:
            known on the CPU, so that using them does not wait for the device.
        valid: ``(N,) bool``, samples with any modality; None for all.
        skipped: Number of samples that are not valid.
        views: 1, or 2 for two views of each clip, one behind the other.
    """

    labels: Tensor | None
    domains: Tensor
    present: dict[str, Tensor]
    rows: dict[str, Tensor | None]
    valid: Tensor | None = None
    skipped: int = 0
    views: int = 1

    @classmethod
    def read(
        cls,
        inputs: Mapping[str, Tensor],
        data_samples: Sequence | None,
        modalities: Sequence[str],
    ) -> Batch:
        """Reads the data samples of a batch.

        Args:
            inputs: ``{modality: (N, ...)}``.
            data_samples: ``N`` with ``gt_label`` and, as metainfo, ``present``,
                ``domain_index``, ``skipped`` and ``view``; None means that nothing is
                known, and every sample has every modality.
            modalities: Those of the model.

        Raises:
            KeyError: If the inputs lack a modality.
        """
        missing = [m for m in modalities if m not in inputs]
        if missing:
            raise KeyError(
                f"inputs lack {missing}; got {list(inputs)}. A modality that a sample "
                "does not have is a zero placeholder with present[modality]=False"
            )
        first = inputs[modalities[0]]
        count, device = len(first), first.device
        data_samples = data_samples or [None] * count
        has = {
            m: [metainfo(s, "present", {}).get(m, True) for s in data_samples]
            for m in modalities
        }
        # Not skipped, and with one of the model's modalities (the dataset may yield
        # more than the model uses).
        valid = [
            any(has[m][i] for m in modalities) and not metainfo(s, "skipped", "")
            for i, s in enumerate(data_samples)
        ]
        labels = [s.gt_label for s in data_samples if s is not None and "gt_label" in s]
        domains = [metainfo(s, "domain_index", -1) for s in data_samples]
        return cls(
            labels=torch.cat(labels) if len(labels) == count else None,
            domains=_on(device, domains, torch.long),
            present={m: _mask(device, has[m]) for m in modalities},
            rows={m: _rows(device, has[m]) for m in modalities},
            valid=None if all(valid) else _on(device, valid, torch.bool),
            skipped=valid.count(False),
            views=1 + max(metainfo(s, "view", 0) for s in data_samples),
        )

    def __len__(self) -> int:
        return len(self.domains)

    @property
    def present_modalities(self) -> list[str]:
        """The modalities that at least one sample has."""
        return [m for m, rows in self.rows.items() if rows is None or len(rows)]

    def row_indices(self) -> dict[str, Tensor]:
        """``rows`` with the indices written out where all samples are present."""
        everything = torch.arange(len(self), device=self.domains.device)
        return {m: everything if r is None else r for m, r in self.rows.items()}


def metainfo(sample: Any, key: str, default: Any) -> Any:
    """A data sample's metainfo; a missing sample has the default."""
    return default if sample is None else sample.get(key, default)


def check_domains(data_samples: Sequence, count: int | None) -> None:
    """Every training sample must come from a source, where objectives read domains.

    Raises:
        ValueError: Naming the first sample that does not.
    """
    for sample in data_samples:
        index = metainfo(sample, "domain_index", -1)
        if not 0 <= index < (count or 0):
            raise ValueError(
                f"sample {metainfo(sample, 'sample_id', '?')!r} has domain_index "
                f"{index}, but an objective tells {count} source domains apart: train "
                "on sources only (use='train'), and set model.num_domains to their "
                "number"
            )


def write_scores(data_samples: Sequence, logits: Mapping[str, Tensor]) -> None:
    """Writes each head's probabilities and logits into the data samples.

    Args:
        data_samples: ``N``; get ``pred_score`` and ``pred_label`` of the fused head,
            the others' probabilities as metainfo ``pred_scores``, and every head's
            logits as metainfo ``logits``.
        logits: ``{head: (N, C)}``; ``''`` is the fused head.
    """
    # One copy from the device for all scores of the batch, (N, 2, heads, C).
    table = torch.stack(
        [torch.stack([x.softmax(1), x], dim=1) for x in logits.values()], dim=2
    )
    table = at_least_float32(table).cpu()
    for sample, rows in zip(data_samples, table.unbind(), strict=True):
        own, raw = (dict(zip(logits, row.clone(), strict=True)) for row in rows)
        fused = own.pop("")
        sample.set_pred_score(fused)
        sample.set_pred_label(fused.argmax(dim=0, keepdim=True))
        sample.set_metainfo(dict(pred_scores=own, logits=raw))


def _mask(device: torch.device, has: list[bool]) -> Tensor:
    # All present, the usual case: made on the device, so there is nothing to copy.
    if all(has):
        return torch.ones(len(has), dtype=torch.bool, device=device)
    return _on(device, has, torch.bool)


def _rows(device: torch.device, has: list[bool]) -> Tensor | None:
    if all(has):
        return None
    return _on(device, [i for i, present in enumerate(has) if present], torch.long)


def _on(device: torch.device, values: list, dtype: torch.dtype) -> Tensor:
    """A small tensor made without waiting for the device."""
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)
