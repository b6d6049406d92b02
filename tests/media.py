"""Tiny clips for the tests of the datasets, in HAC's layout."""

import shutil
from pathlib import Path

import av
import cv2
import numpy as np
import soundfile

from mmaction_mbcd.datasets.epic_splits import EpicSegment, read_split, write_csv

CLASSES = 7


def write_video(path, frames, fps=10, codec="libx264", options=None, sound=None):
    """Encodes ``(T, H, W)`` grey or ``(T, H, W, 3)`` RGB frames, 16 kHz sound."""
    frames = np.asarray(frames, dtype=np.uint8)
    if frames.ndim == 3:
        frames = np.repeat(frames[..., None], 3, axis=-1)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        # `bf=0, crf=1`: near-lossless, one packet per frame.
        if options is None:
            options = {"crf": "1", "bf": "0", "preset": "ultrafast"}
        video = container.add_stream(codec, rate=fps, options=options)
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt = "yuv420p"
        track = container.add_stream("aac", rate=16000) if sound is not None else None
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(frame), format="rgb24"
            )
            container.mux(video.encode(picture))
        container.mux(video.encode())
        if track is not None:
            samples = np.asarray(sound, dtype=np.float32)[None]
            heard = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            heard.sample_rate = 16000
            container.mux(track.encode(heard))
            container.mux(track.encode())


def numbered_frames(count, height=24, width=32, first=20, step=5):
    """Grey frames of one value each, so that a frame shows its index."""
    values = first + step * np.arange(count)
    return np.broadcast_to(values[:, None, None], (count, height, width))


def frame_index(frame, first=20, step=5):
    """The index that :func:`numbered_frames` wrote into a frame."""
    return round((float(np.mean(frame)) - first) / step)


def smooth_frames(count, seed=0, height=24, width=32):
    """Grey frames of smooth random content, so that crops and flips differ."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    a, b, c = random.uniform(0.1, 0.4, 3)
    return [
        128 + 100 * np.sin(a * x + c * t) * np.cos(b * y + t / 5) for t in range(count)
    ]


def write_wav(path, waveform, rate=16000, **kwargs):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(str(path), np.asarray(waveform), rate, **kwargs)


def tone(seconds, rate=16000, hertz=440.0, amplitude=0.5):
    return amplitude * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)


def write_clip(root, domain, stem, seed=0, frames=30):
    """Video, flow and sound of one clip. The flow's y is the video's brightness."""
    content, other = smooth_frames(frames, seed), smooth_frames(frames, seed + 99)
    write_video(root / domain / "videos" / f"{stem}.mp4", content)
    for axis, shown in zip("xy", (other, content), strict=True):
        write_video(root / domain / "flow" / f"{stem}_flow_{axis}.mp4", shown)
    write_wav(root / domain / "audio" / f"{stem}.wav", tone(frames / 10))


def write_split(root, domain, split, rows, prefix="HAC"):
    """``rows`` of (file, label), as the real files are: no header, CRLF."""
    path = root / f"{prefix}_Splits" / f"{prefix}_{split}_only_{domain}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{f},{n}\r\n" for f, n in rows).encode())
    return path


def write_hac(root, train=3, test=2, domains=("human", "animal", "cartoon")):
    """A whole small dataset. Clip ``i`` of the ``d``-th domain has label ``i + d``."""
    for place, domain in enumerate(domains):
        for split, count in (("train", train), ("test", test)):
            stems = [f"{split}_{i}" for i in range(count)]
            for i, stem in enumerate(stems):
                write_clip(root, domain, stem, seed=10 * place + i)
            labels = [(i + place) % CLASSES for i in range(count)]
            rows = [(f"{s}.mp4", n) for s, n in zip(stems, labels, strict=True)]
            write_split(root, domain, split, rows)
    return root


# --- EPIC-Kitchens

KITCHENS = dict(D1="P08", D2="P01", D3="P22")
EPIC_FOLDER = "MM-SADA_Domain_Adaptation_Splits"
EPIC_LAYOUTS = dict(original=("rgb", "rgb"), repack=("video", "audio"))
HEIGHT, WIDTH = 16, 24

# Per split the segments [start, stop) of one video. By hand:
#            RGB frames       flow frames
# [11, 24)   11 ... 23 (13)   6 ... 11 (6)     odd length, odd start
# [30, 33)   30 ... 32 (3)    15 (1)           shorter than any clip
# [40, 48)   40 ... 47 (8)    20 ... 23 (4)    exactly one window of 4 x 2
EPIC_SEGMENTS = [(11, 24), (30, 33), (40, 48)]
EPIC_RGB = [*range(11, 24), *range(30, 33), *range(40, 48)]
EPIC_FLOW = [*range(6, 12), 15, *range(20, 24)]


def rgb_value(frame):
    return 3 * frame


def flow_value(frame):
    """Of u and of v."""
    return 5 * frame, 255 - 5 * frame


def write_image(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = np.full((HEIGHT, WIDTH, 3), value, np.uint8)
    assert cv2.imwrite(str(path), picture, [cv2.IMWRITE_JPEG_QUALITY, 100])


def stamp(frame):
    return f"00:00:{frame / 60:05.2f}"


def write_epic(root, layout="original", segments=None):
    """Exactly the frames that the segments hold, so any other one is an error."""
    frames, sound = EPIC_LAYOUTS[layout]
    uid = 0
    for domain, kitchen in KITCHENS.items():
        for split in ("train", "test"):
            video = f"{kitchen}_0{1 + (split == 'test')}"
            rows = []
            for start, stop in segments or EPIC_SEGMENTS:
                rows.append(
                    EpicSegment(
                        uid=uid,
                        participant_id=kitchen,
                        video_id=video,
                        narration="open fridge",
                        start_timestamp=stamp(start),
                        stop_timestamp=stamp(stop),
                        start_frame=start,
                        stop_frame=stop,
                        verb="open",
                        verb_class=uid % 8,
                    )
                )
                uid += 1
            (root / EPIC_FOLDER).mkdir(parents=True, exist_ok=True)
            write_csv(rows, root / EPIC_FOLDER / f"{domain}_{split}.csv")
            place = Path(split, domain, video)
            # Its red channel tells RGB from BGR.
            for i in EPIC_RGB:
                path = root / frames / place / f"frame_{i:010d}.jpg"
                write_image(path, (0, 0, rgb_value(i)))
            for i in EPIC_FLOW:
                for part, value in zip("uv", flow_value(i), strict=True):
                    path = root / "flow" / place / part / f"frame_{i:010d}.jpg"
                    write_image(path, value)
            write_wav(root / sound / f"{place}.wav", tone(1.0))
    return root


def write_epic_clips(root, place="EPIC-mp4", **kwargs):
    """The same as :func:`write_epic`, with one file per segment instead of images."""
    write_epic(root, "original", **kwargs)
    for domain, kitchen in KITCHENS.items():
        for split in ("train", "test"):
            video = f"{kitchen}_0{1 + (split == 'test')}"
            for row in read_split(root / EPIC_FOLDER / f"{domain}_{split}.csv"):
                start, stop, label = row.start_frame, row.stop_frame, row.verb_class
                stem = f"{domain}_{video}_{start}_{stop}_{label}"
                folder = root / place / "video" / split / domain
                grey = [np.full((HEIGHT, 32), rgb_value(i)) for i in range(start, stop)]
                write_video(folder / f"{stem}.mp4", grey, fps=60)
                start, count = -(-start // 2), (stop - start) // 2
                stem = f"{domain}_{video}_{start}_{start + count}_{label}"
                folder = root / place / "flow" / split / domain
                for part, axis in enumerate("uv"):
                    values = [flow_value(start + i)[part] for i in range(count)]
                    grey = [np.full((HEIGHT, 32), value) for value in values]
                    write_video(folder / f"{stem}_{axis}.mp4", grey, fps=30)
            for kind in ("rgb", "flow"):
                shutil.rmtree(root / kind / split / domain / video)
    return root


# --- your own videos


def write_own(root, domains=("kitchen", "garden", "studio"), clips=4, sound=True):
    """Raw mp4 files, two classes, and annotations.csv."""
    rows = ["file,label,domain"]
    for place, domain in enumerate(domains):
        for i in range(clips):
            name = f"{domain}/clip {i}.mp4"
            content = smooth_frames(20, seed=10 * place + i, height=48, width=64)
            write_video(
                root / "videos" / name, content, sound=tone(2) if sound else None
            )
            rows.append(f"{name},{'wave' if i % 2 else 'jump'},{domain}")
    (root / "annotations.csv").write_text("\n".join(rows) + "\n")
    return root


def pipelines(train=True, clip_len=4, interval=2, size=16, audio_length=8000):
    """Video, flow and audio pipelines as a config would have them."""
    clip = dict(
        type="SampleClip",
        clip_len=clip_len,
        frame_interval=interval,
        test_mode=not train,
    )
    if train:
        look = [
            dict(type="RandomResizedCrop"),
            dict(type="Resize", scale=(size, size), keep_ratio=False),
            dict(type="ClipFlip", flip_ratio=0.5),
        ]
        noise = [dict(type="SpectrogramNoise"), dict(type="FrequencyMask", width=9)]
    else:
        look, noise = [dict(type="CenterCrop", crop_size=size)], []
    shape = dict(type="FormatShape", input_format="NCTHW", collapse=True)
    return dict(
        video=[
            dict(type="OpenVideo"), clip, dict(type="DecodeVideo"), *look, shape
        ],
        flow=[
            dict(type="OpenFlowPair"), clip, dict(type="DecodeFlowPair"), *look, shape
        ],
        audio=[
            dict(type="LoadWaveform", span="frames"),
            dict(type="TileWaveform", length=audio_length),
            dict(type="LogSpectrogram", nperseg=64, noverlap=32),
            *noise,
            dict(type="FormatAudio"),
        ],
    )  # fmt: skip
