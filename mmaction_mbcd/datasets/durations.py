"""How long a clip's modalities are, and which of them end early.

That is admitted, in training and by tools/data/check.py: sound behind a track's end is
silence, and flow that is shorter than its video is sampled within its own length.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

EARLY = 0.5
"""Seconds that a modality may end before another one without being mentioned."""


def seconds_of(results: Mapping) -> float:
    """Length of what a pipeline has opened, in seconds; NaN where it is not known."""
    if "recorded" in results:
        return results["recorded"]
    fps = results.get("avg_fps")
    return results.get("total_frames", 0) / fps if fps else math.nan


def ending_early(seconds: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    """Modalities that end more than :data:`EARLY` before the longest, and by how much.

    Args:
        seconds: ``{modality: length}``; NaN is compared with nothing.
    """
    end = max((each for each in seconds.values() if each > 0), default=0.0)
    for modality, own in seconds.items():
        if own < end - EARLY:
            yield modality, end - own
