"""Clips that are decoded once and asked many questions."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from ..errors import UsageError
from ..models.batch import Batch, metainfo
from ..models.functional import masked_cross_entropy
from ..models.stages import State
from ..models.step import StepOutputs
from .trained import TrainedModel

ROLES = ("source", "target")
"""The sources' validation clips and the unseen target's test clips."""


def chosen_clips(count: int, wanted: int | None, seed: int = 0) -> np.ndarray:
    """Which of ``count`` clips are used: the same for every run of a dataset.

    Args:
        count: How many there are.
        wanted: How many to draw without replacement; all if None.
        seed: Of the draw.

    Returns:
        Their indices, ascending.
    """
    if wanted is None or wanted >= count:
        return np.arange(count)
    order = np.random.default_rng(seed).permutation(count)
    return np.sort(order[:wanted])


def clip_loader(
    trained: TrainedModel,
    role: str,
    wanted: int | None = None,
    seed: int = 0,
    **changes: object,
) -> DataLoader:
    """Batches of a fixed choice of clips, without augmentation.

    Args:
        trained: Whose config names the data.
        role: ``'source'`` (the validation clips) or ``'target'`` (the test clips).
        wanted: See :func:`chosen_clips`.
        seed: Of the choice.
        changes: Of the dataset, such as other ``pipelines``.
    """
    if role == "source":
        whole = trained.loader("val", **{"watch_target": False} | changes)
    else:
        # An in-domain test may have left its config in the run's folder.
        whole = trained.loader("test", **{"use": "test"} | changes)
    indices = chosen_clips(len(whole.dataset), wanted, seed)
    clips = Subset(whole.dataset, indices.tolist())
    clips.metainfo = whole.dataset.metainfo  # the classes' names
    return DataLoader(
        clips,
        batch_size=whole.batch_size,
        num_workers=min(whole.num_workers, len(indices)),
        collate_fn=whole.collate_fn,
        worker_init_fn=whole.worker_init_fn,
    )


@dataclass
class HeldClips:
    """Clips in memory as the trained parts of the encoders get them.

    What a frozen stem makes of a clip does not depend on the trained weights, so it is
    kept instead of the clip; a modality without a frozen stem is kept as it is.

    Attributes:
        batches: Stems' outputs and facts of each batch, on the model's device.
        sample_ids: ``(N,)`` str.
        domains: ``(N,)`` str.
        labels: ``(N,)`` class indices.
        role: ``'source'`` or ``'target'``.
        through_stems: False if the stems are yet to run.
    """

    batches: list[tuple[Mapping[str, State], Batch]]
    sample_ids: np.ndarray
    domains: np.ndarray
    labels: np.ndarray
    role: str
    through_stems: bool = True

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    @torch.no_grad()
    def read(
        cls,
        trained: TrainedModel,
        role: str,
        wanted: int | None = None,
        seed: int = 0,
        gigabytes: float = 4.0,
        through_stems: bool = True,
        advance: Callable[[int], object] = lambda count: None,
    ) -> HeldClips:
        """Decodes them.

        Clips that the dataset skips as unreadable are left out.

        Args:
            trained: Its stems run, in eval mode.
            role: See :func:`clip_loader`.
            wanted: How many clips; all if None.
            seed: Of their choice.
            gigabytes: Limit of what is kept.
            through_stems: False keeps the stems' inputs: for weights whose stems
                differ.
            advance: Called with the number of clips after each batch.

        Raises:
            UsageError: If the clips need more memory than the limit.
        """
        loader = clip_loader(trained, role, wanted, seed)
        model, held, samples, size = trained.model, [], [], 0
        for inputs, batch_samples in trained.batches(loader):
            rows = [
                i for i, s in enumerate(batch_samples) if not metainfo(s, "skipped", "")
            ]
            advance(len(batch_samples))
            if not rows:
                continue
            batch_samples = [batch_samples[i] for i in rows]
            inputs = {m: inputs[m][rows] for m in model.modalities}
            batch = Batch.read(inputs, batch_samples, model.modalities)
            states = model.encoders.stems(inputs, batch) if through_stems else inputs
            held.append((states, batch))
            samples += batch_samples
            size += sum(x.numel() * x.element_size() for x in _tensors(states))
            if size > gigabytes * 1e9:
                raise UsageError(
                    f"{len(samples)} of {len(loader.dataset)} {role} clips fill "
                    f"{gigabytes:g} GB: choose fewer by --clips, or raise --gigabytes"
                )
        if not samples:
            raise UsageError(f"none of the {role} clips could be read")
        return cls(
            held,
            np.array([str(s.sample_id) for s in samples]),
            np.array([str(s.domain) for s in samples]),
            np.array([int(s.gt_label) for s in samples]),
            role,
            through_stems,
        )

    @classmethod
    def joined(cls, parts: Sequence[HeldClips]) -> HeldClips:
        """Several as one, such as those of both roles."""
        return cls(
            [batch for part in parts for batch in part.batches],
            *(
                np.concatenate([getattr(part, name) for part in parts])
                for name in ("sample_ids", "domains", "labels")
            ),
            "+".join(part.role for part in parts),
            parts[0].through_stems,
        )

    def states(
        self, model: torch.nn.Module
    ) -> Iterator[tuple[dict[str, State], Batch]]:
        """What the branches get, batch by batch."""
        for states, batch in self.batches:
            if not self.through_stems:
                states = model.encoders.stems(states, batch)
            yield states, batch

    def outputs(
        self, model: torch.nn.Module, kept: Collection[str] | None = None
    ) -> Iterator[tuple[StepOutputs, Batch]]:
        """The model's evaluation, batch by batch.

        Args:
            model: In eval mode.
            kept: Modalities that it gets; the others count as absent. All if None.
        """
        for states, batch in self.states(model):
            if kept is not None:
                states = {m: x for m, x in states.items() if m in kept}
                batch = without_modalities(batch, kept)
            yield model.evaluate(states, batch), batch

    def loss(self, model: torch.nn.Module) -> float:
        """Mean cross-entropy of the fused prediction, nats per clip."""
        total = 0.0
        for outputs, batch in self.outputs(model):
            mean = masked_cross_entropy(outputs.fused_logits, batch.labels)
            total += float(mean) * len(batch)
        return total / len(self)


def without_modalities(batch: Batch, kept: Collection[str]) -> Batch:
    """The batch as it were if its clips had only the kept modalities."""
    none = torch.zeros_like(batch.domains, dtype=torch.bool)
    nobody = batch.domains.new_zeros(0)
    return replace(
        batch,
        present={m: x if m in kept else none for m, x in batch.present.items()},
        rows={m: x if m in kept else nobody for m, x in batch.rows.items()},
    )


def _tensors(states: Mapping[str, State]) -> Iterator[Tensor]:
    for state in states.values():
        yield from state if isinstance(state, tuple) else (state,)
