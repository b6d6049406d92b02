"""Transforms beside MMAction2's.

Sound, flow pairs, corruptions, and loading that names faults.
"""

from .audio import (
    FrequencyMask,
    LoadWaveform,
    LogSpectrogram,
    SpectrogramNoise,
    TileWaveform,
)
from .corruptions import (
    CorruptFlow,
    CorruptFrames,
    CorruptWaveform,
    GaussianShift,
    insert_corruption,
)
from .flow import ClipFlip, DecodeFlowPair, OpenFlowPair, mirror_flow
from .formatting import FormatAudio, FormatClip, ResizeClip
from .frames import DecodeFlowFrames, DecodeFrames
from .loading import (
    DecodeVideo,
    MissingModalityError,
    OpenVideo,
    SampleClip,
    UnreadableMediaError,
)

__all__ = [
    "ClipFlip",
    "CorruptFlow",
    "CorruptFrames",
    "CorruptWaveform",
    "DecodeFlowFrames",
    "DecodeFlowPair",
    "DecodeFrames",
    "DecodeVideo",
    "FormatAudio",
    "FormatClip",
    "FrequencyMask",
    "GaussianShift",
    "LoadWaveform",
    "LogSpectrogram",
    "MissingModalityError",
    "OpenFlowPair",
    "OpenVideo",
    "ResizeClip",
    "SampleClip",
    "SpectrogramNoise",
    "TileWaveform",
    "UnreadableMediaError",
    "insert_corruption",
    "mirror_flow",
]
