"""Corrupted input at five severities, for evaluation.

Functions in ``video.py``, ``audio.py`` and ``flow.py``; transforms that apply them in
``transforms.py``; where these stand in a pipeline in ``placement.py``::

    pipelines["video"] = insert_corruption(
        pipelines["video"], "RGB", dict(type="CorruptFrames", kind="fog", severity=3)
    )
"""

from .audio import AUDIO_CORRUPTIONS
from .flow import FLOW_CORRUPTIONS
from .placement import insert_corruption
from .severities import SEVERITIES, Corruption
from .transforms import CorruptFlow, CorruptFrames, CorruptWaveform, GaussianShift
from .video import VIDEO_CORRUPTIONS

CORRUPTIONS = {
    kind.modality_kind: dict(kind.kinds)
    for kind in (CorruptFrames, CorruptFlow, CorruptWaveform)
}
"""``{MMAction2's kind of the modality: {kind of corruption: Corruption}}``"""

__all__ = [
    "AUDIO_CORRUPTIONS",
    "CORRUPTIONS",
    "FLOW_CORRUPTIONS",
    "SEVERITIES",
    "VIDEO_CORRUPTIONS",
    "CorruptFlow",
    "CorruptFrames",
    "CorruptWaveform",
    "Corruption",
    "GaussianShift",
    "insert_corruption",
]
