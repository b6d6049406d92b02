"""Objectives: one loss formula per file."""

from .base import Objective
from .collaborative_distillation import CollaborativeDistillation
from .cross_entropy import ClassificationObjective
from .entropy_weighted import EntropyWeightedClassification
from .feature_split import FeatureSplitLoss
from .gradient_modulation import GradientModulation
from .jigsaw import JigsawLoss
from .joint_adversarial import JointAdversarialLoss
from .mer_dg import MaximumEntropyRegularizer
from .nonpolarized import NonpolarizedEmbedding
from .norm_alignment import NormAlignmentLoss
from .representation_flattening import RepresentationFlattening
from .supervised_contrastive import SupervisedContrastiveLoss
from .translation import TranslationLoss
from .weighted_classification import WeightedClassification

__all__ = [
    "ClassificationObjective",
    "CollaborativeDistillation",
    "EntropyWeightedClassification",
    "FeatureSplitLoss",
    "GradientModulation",
    "JigsawLoss",
    "JointAdversarialLoss",
    "MaximumEntropyRegularizer",
    "NonpolarizedEmbedding",
    "NormAlignmentLoss",
    "Objective",
    "RepresentationFlattening",
    "SupervisedContrastiveLoss",
    "TranslationLoss",
    "WeightedClassification",
]
