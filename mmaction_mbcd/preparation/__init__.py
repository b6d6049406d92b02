"""Making flow and sound from videos, in the layouts that the datasets read."""

from .audio import AudioExtraction
from .flow import FlowExtraction, dequantize_flow, optical_flow
from .jobs import Extraction, MediaError, NothingToWrite, extract

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
