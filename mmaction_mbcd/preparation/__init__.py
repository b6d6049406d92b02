"""Making flow and sound from videos, in the layouts that the datasets read."""

from ..flow_coding import dequantize_flow
from .audio import AudioExtraction
from .extraction import Extraction, MediaError, NothingToWrite, extract
from .flow import FlowExtraction, optical_flow

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
