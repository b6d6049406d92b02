"""Metrics, and the predictions that they are computed from."""

from .domain_accuracy import DomainAccuracy
from .predictions import PredictionFile, Predictions

__all__ = ["DomainAccuracy", "PredictionFile", "Predictions"]
