"""Making flow and sound from videos, in the layouts that the datasets read."""

from .audio import AudioExtraction
from .extraction import Extraction, MediaError, NothingToWrite, extract
from .flow import FlowExtraction, dequantize_flow, optical_flow

__all__ = [
    "AudioExtraction",
    "Extraction",
    "FlowExtraction",
    "MediaError",
    "NothingToWrite",
    "dequantize_flow",
    "extract",
    "optical_flow",
]
