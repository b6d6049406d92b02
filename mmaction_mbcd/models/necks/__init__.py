"""Fusion necks."""

from .fusion import AMDFusion, ConcatFusion

__all__ = ["AMDFusion", "ConcatFusion"]
