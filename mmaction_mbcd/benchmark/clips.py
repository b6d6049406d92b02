"""Clips of a real size to measure reading with: HAC's layout, textured and moving.

Their content means nothing. What reading costs depends on the size, the codec, the
distance of key frames and on how much moves, and these are as in clips from the web.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import av
import cv2
import numpy as np
import soundfile

from .. import progress
from ..datasets import HACDataset

RATE = 16000


def write_hac_clips(
    root: Path,
    clips: int = 12,
    frames: int = 100,
    size: tuple[int, int] = (340, 256),
    fps: int = 25,
    seed: int = 0,
    distinct: int | None = None,
) -> Path:
    """Writes a data set of one source domain's training clips.

    Args:
        root: Its folder.
        clips: How many.
        frames: Of each.
        size: Width and height, pixels.
        fps: Frames per second.
        seed: Of the content.
        distinct: How many contents there are; what follows are links to the same
            files. One for each clip if None.

    Returns:
        The folder.
    """
    first, *others = HACDataset.METAINFO["domains"]
    counts = {first: clips} | dict.fromkeys(others, 1)
    encoded = min(clips, distinct or clips) + len(others)
    with progress.Meter("encoding", "clips", encoded) as meter:
        for place, (domain, count) in enumerate(counts.items()):
            names = [f"clip_{number:03d}" for number in range(count)]
            for number, name in enumerate(names):
                if distinct is not None and number >= distinct:
                    _link(root / domain, names[number % distinct], name)
                    continue
                random = np.random.default_rng([seed, number, place])
                _write_clip(root / domain, name, random, frames, size, fps)
                meter.add(1)
            for split in ("train", "test"):
                path = root / HACDataset.SPLIT_FILE.format(split=split, domain=domain)
                path.parent.mkdir(parents=True, exist_ok=True)
                lines = (f"{name}.mp4,{i % 7}\n" for i, name in enumerate(names))
                path.write_text("".join(lines))
    return root


def _write_clip(
    folder: Path,
    name: str,
    random: np.random.Generator,
    frames: int,
    size: tuple[int, int],
    fps: int,
) -> None:
    _encode(folder / "videos" / f"{name}.mp4", _scene(random, frames, size), fps)
    for axis in "xy":
        path = folder / "flow" / f"{name}_flow_{axis}.mp4"
        _encode(path, _field(random, frames, size), fps)
    _sound(folder / "audio" / f"{name}.wav", random, frames / fps)


def _link(folder: Path, old: str, new: str) -> None:
    for path in [*folder.rglob(f"{old}.*"), *folder.rglob(f"{old}_flow_?.*")]:
        os.link(path, path.with_name(path.name.replace(old, new)))


def _scene(
    random: np.random.Generator, frames: int, size: tuple[int, int]
) -> Iterable[np.ndarray]:
    """A textured background that pans, a textured square that moves, grain."""
    width, height = size
    margin = 64
    world = _surface(random, height + margin, width + margin)
    side = min(size) // 3
    thing = _surface(random, side, side)
    pan, walk = random.uniform(1, 3, 2), random.uniform(1, 4, 2)
    for t in range(frames):
        x, y = (int(abs((p * t) % (2 * margin) - margin)) for p in pan)
        image = world[y : y + height, x : x + width].copy()
        left, top = (int(w * t) % (n - side) for w, n in zip(walk, size, strict=True))
        image[top : top + side, left : left + side] = thing
        grain = random.normal(0, 2, image.shape[:2])[..., None]
        yield np.clip(image + grain, 0, 255).astype(np.uint8)


def _field(
    random: np.random.Generator, frames: int, size: tuple[int, int]
) -> Iterable[np.ndarray]:
    """A smooth flow component around 128, as grey RGB."""
    width, height = size
    field = _texture(random, (height, width), 16) - 128
    for t in range(frames):
        moved = np.roll(field, 2 * t, axis=1) * 0.4 * np.sin(0.1 * t + 1)
        grey = np.clip(128 + moved, 0, 255).astype(np.uint8)
        yield np.repeat(grey[..., None], 3, axis=-1)


def _surface(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Fine detail in brightness, coarse colour: as in pictures, unlike in noise."""
    fine = _texture(random, (height, width), 1.5)[..., None] * 0.5
    return fine + _texture(random, (height, width, 3), 12) * 0.5


def _texture(
    random: np.random.Generator, shape: tuple[int, ...], sigma: float
) -> np.ndarray:
    noise = cv2.GaussianBlur(
        random.normal(0, 1, shape).astype(np.float32), (0, 0), sigma
    )
    return 128 + 50 * noise / noise.std()


def _encode(path: Path, frames: Iterable[np.ndarray], fps: int) -> None:
    """H.264 as web sites have it: B frames, a key frame every ten seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options = dict(crf="23", preset="medium", g=str(10 * fps), threads="1")
    # Else x264 encodes some clips differently from run to run where there is AVX-512.
    options["x264-params"] = "cpu-independent=1"
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = None
        for image in frames:
            if stream is None:
                stream = container.add_stream("libx264", rate=fps, options=options)
                stream.height, stream.width = image.shape[:2]
                stream.pix_fmt = "yuv420p"
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _sound(path: Path, random: np.random.Generator, seconds: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = random.normal(0, 0.1, int(seconds * RATE)).astype(np.float32)
    soundfile.write(path, samples, RATE, "PCM_16")
