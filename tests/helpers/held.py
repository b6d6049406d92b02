"""Trained models and clips in memory, at toy size."""

import numpy as np
import torch

from mmaction_mbcd.analysis.clips import HeldClips
from mmaction_mbcd.analysis.trained import TrainedModel
from mmaction_mbcd.models.batch import Batch
from toys import build_toy, toy_batch


def trained_toy(modalities=("video", "audio"), **kwargs):
    """A toy recognizer in eval mode, in float64."""
    model = build_toy(names=modalities, **kwargs).eval()
    return TrainedModel(None, model, {})


def held_toy(trained, counts=(5, 3), absent=None, role="target"):
    """Clips in batches of the given sizes; ``absent`` as in ``toy_batch``."""
    names = trained.modalities
    inputs, samples = toy_batch(names, sum(counts), absent=absent)
    batches, start = [], 0
    for count in counts:
        rows = slice(start, start + count)
        part = {m: x[rows] for m, x in inputs.items()}
        batch = Batch.read(part, samples[rows], names)
        with torch.no_grad():
            batches.append((trained.model.encoders.stems(part, batch), batch))
        start += count
    held = HeldClips(
        batches,
        np.array([s.sample_id for s in samples]),
        np.array([s.domain for s in samples]),
        np.array([int(s.gt_label) for s in samples]),
        role,
    )
    return held, inputs, samples
