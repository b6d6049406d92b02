"""Models: recognizer, encoders, heads, necks, objectives."""

from . import functional
from .encoders import ModalityEncoder
from .heads import MLPHead
from .necks import AMDFusion, ConcatFusion
from .objectives import ClassificationObjective, CollaborativeDistillation, Objective
from .recognizer import MultiModalRecognizer
from .step import StepOutputs

__all__ = [
    "AMDFusion",
    "ClassificationObjective",
    "CollaborativeDistillation",
    "ConcatFusion",
    "MLPHead",
    "ModalityEncoder",
    "MultiModalRecognizer",
    "Objective",
    "StepOutputs",
    "functional",
]
