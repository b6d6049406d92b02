"""Transforms beside MMAction2's: sound, flow pairs, and loading that names faults."""

from .audio import (
    FrequencyMask,
    LoadWaveform,
    LogSpectrogram,
    SpectrogramNoise,
    TileWaveform,
)
from .flow import ClipFlip, DecodeFlowPair, OpenFlowPair, mirror_flow
from .formatting import FormatAudio
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
    "DecodeFlowFrames",
    "DecodeFlowPair",
    "DecodeFrames",
    "DecodeVideo",
    "FormatAudio",
    "FrequencyMask",
    "LoadWaveform",
    "LogSpectrogram",
    "MissingModalityError",
    "OpenFlowPair",
    "OpenVideo",
    "SampleClip",
    "SpectrogramNoise",
    "TileWaveform",
    "UnreadableMediaError",
    "mirror_flow",
]
