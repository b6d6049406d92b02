"""Evaluation beyond accuracy, from a checkpoint: one file per suite.

A :class:`.Suite` says what has to be read, and makes tables and figures of the
predictions. Suites share readings: what several need is read once.
"""

from .accuracy import Accuracy
from .base import Suite, Table
from .corruptions import Corruptions
from .evaluation import evaluate
from .missing import MissingModality
from .readings import Subject
from .shift import ModalityShift

__all__ = [
    "Accuracy",
    "Corruptions",
    "MissingModality",
    "ModalityShift",
    "Subject",
    "Suite",
    "Table",
    "evaluate",
]
