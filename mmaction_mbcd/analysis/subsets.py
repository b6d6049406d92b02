"""What a model says of every clip with some of its modalities only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..errors import DivergenceError
from ..evaluation.predictions import Predictions, collect
from ..models.batch import Batch, write_scores
from .trained import TrainedModel


def without_others(samples: Sequence, kept: Sequence[str]) -> list:
    """Copies of the data samples that have no other modalities than ``kept``.

    Args:
        samples: Data samples; not changed.
        kept: Names of modalities.
    """
    masked = []
    for sample in samples:
        copy = sample.clone()
        present = {m: has and m in kept for m, has in sample.present.items()}
        copy.set_metainfo(dict(present=present))
        masked.append(copy)
    return masked


@torch.no_grad()
def predict_subsets(
    trained: TrainedModel,
    loader: DataLoader,
    subsets: Mapping[str, Sequence[str]],
    advance: Callable[[int], object] = lambda count: None,
) -> dict[str, Predictions]:
    """Masks modalities, in one pass over the data for all subsets.

    A modality that is left out is absent (``present`` is false), as in training: its
    feature is zero, behind its normalisation, in what is fused. In evaluation no
    sample influences another one, so this equals the published protocol, in which the
    encoder sees the input and its *embedding* is set to zero.

    A clip that has none of the kept modalities is predicted from zeros alone.

    Args:
        trained: The model.
        loader: Of :meth:`.TrainedModel.loader`.
        subsets: ``{name: modalities that are kept}``.
        advance: Called with the number of clips after each batch.

    Returns:
        ``{name: predictions}``, where ``present`` is what was kept.

    Raises:
        DivergenceError: If a logit is not finite.
    """
    model, samples = trained.model, {name: [] for name in subsets}
    for inputs, batch in trained.batches(loader):
        # The stems run once: leaving a modality out changes no other one's rows.
        whole = Batch.read(inputs, batch, model.modalities)
        states = model.encoders.stems(inputs, whole)
        for name, kept in subsets.items():
            masked = without_others(batch, kept)
            own = {m: state for m, state in states.items() if m in kept}
            facts = Batch.read(inputs, masked, model.modalities)
            outputs = model.evaluate(own, facts)
            logits = {"": outputs.fused_logits} | outputs.unimodal_logits
            _refuse_divergence(logits, trained)
            write_scores(masked, logits)
            samples[name] += [sample.to_dict() for sample in masked]
        advance(len(batch))
    classes = loader.dataset.metainfo.get("classes", trained.classes)
    return {
        name: collect(each, classes, trained.facts) for name, each in samples.items()
    }


def _refuse_divergence(logits: Mapping[str, Tensor], trained: TrainedModel) -> None:
    # NaN would be taken for a head that says nothing.
    for head, values in logits.items():
        if not torch.isfinite(values).all():
            raise DivergenceError(
                f"the {head or 'fused'} predictions of {trained.facts['checkpoint']} "
                "are not finite: the model has diverged"
            )
