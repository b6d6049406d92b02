"""Where in a dataset's pipeline a corruption belongs."""

from collections.abc import Iterator, Mapping, Sequence

from mmaction.datasets.transforms import (
    DecordDecode,
    OpenCVDecode,
    PyAVDecode,
    RawFrameDecode,
    Resize,
)
from mmaction.registry import TRANSFORMS

from ..audio import LoadWaveform, TileWaveform
from ..flow import DecodeFlowPair
from ..frames import DecodeFlowFrames, DecodeFrames
from .transforms import CorruptTransform, GaussianShift

_DECODERS = {
    "RGB": (DecordDecode, DecodeFrames, OpenCVDecode, PyAVDecode, RawFrameDecode),
    "Flow": (DecodeFlowPair, DecodeFlowFrames),
    "Audio": (LoadWaveform, TileWaveform),
}
"""What gives the data that a modality's corruption takes; the last one counts."""


def insert_corruption(
    pipeline: Sequence, modality_kind: str, corruption: Mapping
) -> list:
    """A pipeline with a corruption at its place.

    ========================== ========================================================
    :class:`.CorruptFrames`,   behind decoding, and behind the ``Resize`` that follows
    :class:`.CorruptFlow`      it at once: noise and blocks are then those of pictures
                               of one size, as in ImageNet-C, and are not averaged away
                               in larger files. Kinds whose numbers are pixels of the
                               file (``defocus_hac_c``): before that ``Resize``
    :class:`.CorruptWaveform`  behind ``TileWaveform``, or behind ``LoadWaveform`` where
                               nothing tiles: its ratios hold for what is analysed
    :class:`.GaussianShift`    at the end
    ========================== ========================================================

    Args:
        pipeline: A modality's transforms, as a dataset's config has them: dicts, built
            transforms, and lists of them.
        modality_kind: MMAction2's kind of the modality: ``'RGB'``, ``'Flow'`` or
            ``'Audio'`` (``MultiModalDataset.MODALITY_TYPES``).
        corruption: Config of one of the transforms above.

    Returns:
        list: A new, flat pipeline. The given one is not changed.

    Raises:
        ValueError: If the corruption is wrong or of another modality, or if the
            pipeline has no place for it.
    """
    transform = TRANSFORMS.build(dict(corruption))
    steps = list(_flat(pipeline))
    if isinstance(transform, GaussianShift):
        return [*steps, dict(corruption)]
    _refuse_other_modality(transform, modality_kind)
    place = _place(steps, transform)
    return [*steps[:place], dict(corruption), *steps[place:]]


def _refuse_other_modality(transform: object, modality_kind: str) -> None:
    if not isinstance(transform, CorruptTransform):
        raise ValueError(
            f"{type(transform).__name__} is not a corruption; CorruptFrames, "
            "CorruptFlow, CorruptWaveform and GaussianShift are"
        )
    if transform.modality_kind != modality_kind:
        raise ValueError(
            f"{type(transform).__name__} corrupts {transform.modality_kind!r}, not "
            f"{modality_kind!r}"
        )


def _place(steps: list, transform: CorruptTransform) -> int:
    decoders = _DECODERS[transform.modality_kind]
    types = [_type(step) for step in steps]
    found = [i for i, each in enumerate(types) if issubclass(each, decoders)]
    if not found:
        names = ", ".join(sorted(each.__name__ for each in decoders))
        raise ValueError(
            f"a pipeline without any of {names} has no place for "
            f"{type(transform).__name__}; it has "
            f"{', '.join(each.__name__ for each in types)}"
        )
    place = found[-1] + 1
    resized = place < len(steps) and _keeps_shape(steps[place])
    return place + (resized and not transform.corruption.in_file_pixels)


def _type(step: object) -> type:
    if not isinstance(step, Mapping):
        return type(step)
    name = step["type"]
    return name if isinstance(name, type) else TRANSFORMS.get(name)


def _keeps_shape(step: object) -> bool:
    """Whether it is a resizing that keeps the aspect ratio."""
    if not issubclass(_type(step), Resize):
        return False
    if isinstance(step, Mapping):
        return step.get("keep_ratio", True)
    return step.keep_ratio


def _flat(pipeline: Sequence) -> Iterator:
    for step in pipeline:
        if isinstance(step, (list, tuple)):
            yield from _flat(step)
        else:
            yield step
