"""Objectives: one loss formula per file."""

from .base import Objective
from .collaborative_distillation import CollaborativeDistillation
from .cross_entropy import ClassificationObjective

__all__ = ["ClassificationObjective", "CollaborativeDistillation", "Objective"]
