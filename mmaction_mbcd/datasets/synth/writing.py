"""The files of a data set: clips, split files and what describes them."""

import json
import os
import shutil
from contextlib import closing, nullcontext
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile

from ...flow_coding import quantize_flow
from ...parallel import run_parallel
from ...progress import Meter, count
from .config import CLASSES, DOMAINS, GENERATOR_VERSION, SPLITS, SynthClip, SynthConfig
from .rendering import compute_flow, render_frames
from .sound import render_audio

META_FILE = "synth.json"
"""Written last: it marks a complete data set."""

SPLIT_FOLDER = "Synth_Splits"


def write_video(path: Path, frames: np.ndarray, fps: int) -> None:
    """Encodes (T, H, W, 3) RGB or (T, H, W) grey uint8 frames as mp4.

    h264 by libx264, or MPEG-4 part 2 where FFmpeg was built without it.
    """
    codec, options = _codec(min(frames.shape[1:3]))
    pixels = "rgb24" if frames.ndim == 4 else "gray"
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=Fraction(fps))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = options
        # More threads would make the bytes depend on the machine.
        stream.thread_count = 1
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame, format=pixels)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def _codec(side: int) -> tuple[str, dict[str, str]]:
    if "libx264" in av.codec.codecs_available:
        # Short groups of pictures without B frames: clips are read at random places.
        options = {"crf": "16", "preset": "veryfast", "g": "8", "bf": "0"}
        options |= {"threads": "1"}
        if side < 64:
            # With AVX-512, 7 to 9 of 162 clips of 32, 40 and 48 pixels came out
            # differently from run to run, of 56 and 64 none.
            options |= {"x264-params": "cpu-independent=1"}
        return "libx264", options
    return "mpeg4", {"qmin": "2", "qmax": "3", "g": "8"}


def write_clip(out_dir: Path, clip: SynthClip) -> None:
    """Renders and encodes one clip, in HAC's layout."""
    folder, config = out_dir / clip.domain, clip.config
    frames = render_frames(clip)
    flow = quantize_flow(compute_flow(frames), config.flow_bound)
    random = clip.random("useless")
    if "video" in config.useless:
        frames = random.integers(256, size=frames.shape, dtype=np.uint8)
    if "flow" in config.useless:
        flow = random.integers(256, size=flow.shape, dtype=np.uint8)
    write_video(folder / "videos" / f"{clip.name}.mp4", frames, config.fps)
    for axis, letter in enumerate("xy"):
        path = folder / "flow" / f"{clip.name}_flow_{letter}.mp4"
        write_video(path, flow[..., axis], config.fps)
    if clip.has_audio:
        path = folder / "audio" / f"{clip.name}.wav"
        wave = render_audio(clip).mix()
        if "audio" in config.useless:
            wave = random.uniform(-0.5, 0.5, wave.shape)
        soundfile.write(path, wave, config.sample_rate, subtype="PCM_16")


def dataset_meta(config: SynthConfig) -> dict:
    """Content of ``synth.json``: classes, domains, every setting and the counts."""
    counts = {split: config.count(split) for split in SPLITS}
    silent = {
        domain: {
            split: sum(not clip.has_audio for clip in config.clips(domain, split))
            for split in SPLITS
        }
        for domain in config.domains
    }
    meta = {
        "generator_version": GENERATOR_VERSION,
        "classes": CLASSES[: config.num_classes],
        "domains": config.domains,
        "sources": [d for d in config.domains if d not in config.targets],
        "targets": config.targets,
        "seed": config.seed,
        # As before there were useless modalities, where there is none.
        "parameters": {
            key: value
            for key, value in asdict(config).items()
            if key != "useless" or value
        },
        "seconds_per_clip": config.seconds,
        "codec": _codec(config.size)[0],
        "counts": {domain: counts for domain in config.domains},
        "clips_without_audio": silent,
    }
    return json.loads(json.dumps(meta))


def generate(
    out_dir: Path | str,
    config: SynthConfig | None = None,
    workers: int = 2,
    overwrite: bool = False,
    progress: bool = True,
) -> dict:
    """Writes a data set in HAC's layout.

    ::

        Synth_Splits/Synth_{train,test}_only_{domain}.csv   (no header: file,label)
        {domain}/videos/X.mp4
        {domain}/flow/X_flow_x.mp4 and X_flow_y.mp4
        {domain}/audio/X.wav
        synth.json

    ``synth.json`` is written last. A folder that has it, with the same settings, is
    left as it is; what an interrupted call has left is made anew.

    Args:
        out_dir: Folder to fill, created if need be.
        config: What to generate; the defaults of :class:`SynthConfig` if None.
        workers: Processes. The files do not depend on it; 1 stays in this process. A
            script of your own that uses more calls this below
            ``if __name__ == "__main__":``.
        overwrite: Replace the synthetic data set in ``out_dir``.
        progress: Show how far it is, on standard error.

    Returns:
        The content of ``synth.json``, see :func:`dataset_meta`.

    Raises:
        ValueError: The config or ``workers`` cannot work.
        FileExistsError: ``out_dir`` holds something else.
        RuntimeError: A clip cannot be written; it is named.
    """
    config = config or SynthConfig()
    config.validate()
    if workers < 1:
        raise ValueError(f"workers: got {workers!r}, needs an integer from 1")
    out_dir, meta = Path(out_dir), dataset_meta(config)
    # An interrupted call has left the second one.
    complete, unfinished = out_dir / META_FILE, out_dir / f"{META_FILE}.part"
    if complete.exists() and not overwrite:
        _check_same(complete, meta)
        return _read(complete)
    ours = _folders(complete) | _folders(unfinished)
    _check_free(out_dir, {SPLIT_FOLDER, *config.domains} - ours)
    out_dir.mkdir(parents=True, exist_ok=True)
    unfinished.write_text(json.dumps(meta, indent=2) + "\n")
    complete.unlink(missing_ok=True)
    for name in ours:
        shutil.rmtree(out_dir / name, ignore_errors=True)
    _write_splits(out_dir, config)
    _write_clips(out_dir, config, workers, progress)
    os.replace(unfinished, complete)
    return meta


def _read(file: Path) -> dict:
    try:
        meta = json.loads(file.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return meta if isinstance(meta, dict) else {}


def _folders(file: Path) -> set[str]:
    """What the data set that a file describes has made: no other name is removed."""
    meta = _read(file)
    if "domains" not in meta:
        return set()
    return {SPLIT_FOLDER, *meta["domains"]} & {SPLIT_FOLDER, *DOMAINS}


def _check_same(file: Path, meta: dict) -> None:
    old, new = (
        {"generator_version": m.get("generator_version"), **m.get("parameters", {})}
        for m in (_read(file), meta)
    )
    changes = [
        f"{key} {old.get(key)!r} there, {new.get(key)!r} asked for"
        for key in {**old, **new}
        if old.get(key) != new.get(key)
    ]
    if changes:
        raise FileExistsError(
            f"{file.parent} holds a synthetic data set of other settings "
            f"({', '.join(changes)}): name another folder, or replace it with "
            "--overwrite (overwrite=True)"
        )


def _check_free(out_dir: Path, names: set[str]) -> None:
    taken = [name for name in sorted(names) if (out_dir / name).exists()]
    if taken:
        raise FileExistsError(
            f"{out_dir} has {', '.join(taken)}, not made by this generator (no "
            f"{META_FILE} names it) and not touched: name another folder"
        )


def _write_splits(out_dir: Path, config: SynthConfig) -> None:
    (out_dir / SPLIT_FOLDER).mkdir()
    for domain in config.domains:
        for split in SPLITS:
            clips = config.clips(domain, split)
            rows = "".join(f"{clip.name}.mp4,{clip.label}\r\n" for clip in clips)
            file = out_dir / SPLIT_FOLDER / f"Synth_{split}_only_{domain}.csv"
            file.write_bytes(rows.encode())


def _write_clips(
    out_dir: Path, config: SynthConfig, workers: int, progress: bool
) -> None:
    for domain in config.domains:
        for kind in ("videos", "flow", "audio"):
            (out_dir / domain / kind).mkdir(parents=True)
    items = [
        (out_dir, clip)
        for domain in config.domains
        for split in SPLITS
        for clip in config.clips(domain, split)
    ]
    meter = Meter("rendering", "clips", len(items), workers) if progress else None
    sender = meter.sender if meter else None
    outcomes = run_parallel(_write_item, items, workers, sender=sender)
    with meter or nullcontext(), closing(outcomes):
        for outcome in outcomes:
            if outcome.error is not None:
                clip = outcome.item[1]
                raise RuntimeError(
                    f"cannot write clip {clip.index} of {clip.domain}/{clip.split}: "
                    f"{outcome.error}"
                ) from outcome.error


def _write_item(item: tuple[Path, SynthClip]) -> None:
    write_clip(*item)
    count()
