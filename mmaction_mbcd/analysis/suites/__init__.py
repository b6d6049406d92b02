"""Evaluation beyond accuracy, from a checkpoint: one file per suite.

A :class:`.Suite` says what has to be read, and makes tables and figures of the
predictions. Suites share readings: what several need is read once.
"""

from .accuracy import Accuracy
from .base import Suite, Table
from .calibration import Calibration
from .corruptions import Corruptions
from .detection import Detection
from .evaluation import evaluate, evaluate_kept
from .missing import MissingModality
from .ood import OutOfDistribution
from .readings import Subject
from .shift import ModalityShift

__all__ = [
    "Accuracy",
    "Calibration",
    "Corruptions",
    "Detection",
    "MissingModality",
    "ModalityShift",
    "OutOfDistribution",
    "Subject",
    "Suite",
    "Table",
    "evaluate",
    "evaluate_kept",
]
