"""Batches of samples, and of several views of each."""

from collections.abc import Sequence

from mmengine.dataset import pseudo_collate
from mmengine.registry import FUNCTIONS


@FUNCTIONS.register_module()
def collate_views(batch: Sequence[dict | list[dict]]) -> dict:
    """MMEngine's ``pseudo_collate``; of several views, all first ones come first.

    Args:
        batch: Items of :class:`MultiModalDataset`: a dict each or, with ``views=2``, a
            list of two. ``B`` items become ``B * views`` rows.
    """
    if isinstance(batch[0], list):
        batch = [view for views in zip(*batch, strict=True) for view in views]
    return pseudo_collate(batch)
