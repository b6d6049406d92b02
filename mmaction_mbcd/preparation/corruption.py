"""Corrupted copies of videos, from which flow can be computed again.

Flow that belongs to a corrupted video is made in two steps, and both modalities then
read the same corrupted pictures::

    python tools/data/corrupt_videos.py VIDEOS NEW/videos --kind fog --severity 3
    python tools/data/extract_flow.py NEW/videos NEW/flow

Published corrupted data (HAC-C) is stored in this way too, but with the flow of the
clean videos.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import ClassVar

import av
import numpy as np

from ..datasets.transforms.corruptions import VIDEO_CORRUPTIONS
from ..datasets.transforms.corruptions.severities import (
    refuse_unknown,
    sample_generator,
)
from ..errors import UsageError
from .extraction import Extraction, MediaError
from .flow import SHORT_SIDE, X264_OPTIONS, open_video


@dataclass(frozen=True)
class VideoCorruption(Extraction):
    """A corrupted copy of each video: ``X.mp4``, H.264 at full colour resolution.

    The whole video is one clip: the direction of a blur, the field of a fog and the
    share of lost frames are those of the video. It is held in memory.

    Args:
        kind: A key of :data:`.VIDEO_CORRUPTIONS`.
        severity: 1 to 5.
        seed: Another one draws other noise. Random numbers follow from it and from the
            name of the file.
        short_side: Pixels of the shorter side, to which a video is resized first:
            noise is then that of pictures of one size. ``None`` keeps the size, and so
            does a kind whose numbers are pixels of the file (``defocus_hac_c``). Both
            sides are made even, as H.264 needs them.
    """

    name: ClassVar[str] = "corruption"

    kind: str = "gaussian_noise"
    severity: int = 3
    seed: int = 0
    short_side: int | None = SHORT_SIDE

    def check(self) -> None:
        """Raises :class:`UsageError` for an unknown kind or severity, or a size."""
        try:
            refuse_unknown("--kind", VIDEO_CORRUPTIONS, self.kind, self.severity)
        except ValueError as error:
            raise UsageError(str(error)) from error
        if self.short_side is not None and self.short_side < 16:
            raise UsageError(
                f"--short-side: got {self.short_side}, needs at least 16 pixels"
            )

    def outputs(self, stem: Path) -> tuple[Path]:
        """One file."""
        return (stem.with_name(f"{stem.name}.mp4"),)

    def write(self, source: Path, targets: tuple[Path]) -> None:
        """Corrupts one video.

        Raises:
            MediaError: If it is cut off, or holds no picture.
        """
        corruption = VIDEO_CORRUPTIONS[self.kind]
        side = None if corruption.in_file_pixels else self.short_side
        with open_video(source, short_side=side, even=True) as (pictures, rate):
            frames = list(pictures)
        if not frames:
            raise MediaError("it holds no picture")
        rng = sample_generator(self.seed, source.stem, "RGB", self.kind)
        write_video(targets[0], corruption(frames, self.severity, rng), rate)


def write_video(path: Path, frames: Iterable[np.ndarray], rate: Fraction) -> None:
    """Encodes RGB frames of even height and width, see :data:`.X264_OPTIONS`.

    Args:
        path: An mp4.
        frames: ``(H, W, 3)`` uint8 each.
        rate: Frames per second.
    """
    with av.open(str(path), "w", format="mp4") as video:
        rate = rate.limit_denominator(10_000)
        stream = video.add_stream("libx264", rate=rate, options=dict(X264_OPTIONS))
        stream.pix_fmt = "yuv444p"  # noise differs from pixel to pixel in colour too
        stream.codec_context.thread_count = 1
        for number, frame in enumerate(frames):
            if not number:
                stream.height, stream.width = frame.shape[:2]
            picture = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(frame), format="rgb24"
            )
            video.mux(stream.encode(picture))
        video.mux(stream.encode())
