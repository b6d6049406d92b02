"""Fusion necks."""

from .amd import AMDFusion
from .concat import ConcatFusion

__all__ = ["AMDFusion", "ConcatFusion"]
