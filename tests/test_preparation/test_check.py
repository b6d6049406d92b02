import csv
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from mmengine.config import Config

import media
from mmaction_mbcd.cli import UsageError
from mmaction_mbcd.preparation import check
from mmaction_mbcd.preparation.check import Fault, Frames, Job, Need, Sound, Video
from tests_support import load_tool

CLIP = dict(clip_len=4, interval=2)
ROOT = Path(__file__).parents[2]


def split_config(dataset, train, test):
    """A config whose three loaders differ as the package's do."""
    # Packed rows save nothing here, and packing collects all garbage first.
    dataset = dict(dataset, serialize_data=False)
    return Config(
        dict(
            default_scope="mmaction",
            train_dataloader=dict(dataset=dict(dataset, use="train", pipelines=train)),
            val_dataloader=dict(dataset=dict(dataset, use="val", pipelines=test)),
            test_dataloader=dict(dataset=dict(dataset, use="test", pipelines=test)),
        )
    )


def hac_config(root, span="file", clip=CLIP, **kwargs):
    pipes = [media.pipelines(train, **clip) for train in (True, False)]
    for each in pipes:
        each["audio"][0]["span"] = span
    dataset = dict(type="HACDataset", data_root=str(root), target="cartoon", **kwargs)
    return split_config(dataset, *pipes)


def epic_config(root, **kwargs):
    def pipelines(train):
        rgb, flow = (
            dict(
                type="SampleClip",
                clip_len=4,
                frame_interval=interval,
                test_mode=not train,
            )
            for interval in (2, 1)
        )
        return dict(
            video=[rgb, dict(type="DecodeFrames")],
            flow=[flow, dict(type="DecodeFlowFrames")],
            audio=[
                dict(type="LoadWaveform", span="segment", max_seconds=10),
                dict(type="TileWaveform", length=8000),
                dict(type="LogSpectrogram", nperseg=64, noverlap=32),
            ],
        )

    dataset = dict(
        type="EPICKitchensDataset", data_root=str(root), target="D3", **kwargs
    )
    return split_config(dataset, pipelines(True), pipelines(False))


@pytest.fixture(scope="module")
def clean_hac(tmp_path_factory):
    return media.write_hac(tmp_path_factory.mktemp("hac"), train=4, test=1)


@pytest.fixture
def hac(clean_hac, tmp_path):
    """A copy, to be damaged."""
    return Path(shutil.copytree(clean_hac, tmp_path / "data"))


@pytest.fixture(scope="module")
def clean_epic(tmp_path_factory):
    return media.write_epic(tmp_path_factory.mktemp("epic"))


@pytest.fixture
def epic(clean_epic, tmp_path):
    return Path(shutil.copytree(clean_epic, tmp_path / "data"))


def run(cfg, tmp_path, **kwargs):
    """Exit code and the rows of the CSV, files without their root."""
    path = tmp_path / "new" / "problems.csv"
    code = check.check(cfg, workers=2, csv_file=str(path), **kwargs)
    with open(path, newline="") as file:
        header, *rows = csv.reader(file)
    assert header == "domain class sample_id modality kind file reason".split()
    root = f"{tmp_path}/data/"
    return code, [[cell.replace(root, "") for cell in row] for row in rows]


def without_reasons(rows):
    return sorted(row[2:6] for row in rows)


def squash(text):
    return " ".join(text.split())


# --- whole datasets


def test_clean_trees(clean_hac, clean_epic, tmp_path, capsys):
    for quick in (False, True):
        assert run(hac_config(clean_hac), tmp_path, quick=quick) == (0, [])
        assert run(epic_config(clean_epic), tmp_path, quick=quick) == (0, [])
    out = squash(capsys.readouterr().out)
    # 3 domains x 5 clips x 4 files; 30 frames at 10 per second.
    assert "15 clips, 60 files" in out
    assert "human source 4 1 0 5 3.00 3.00" in out
    assert "animal source 4 1 0 5 3.00 3.00" in out
    assert "cartoon target 0 0 5 5 3.00 3.00" in out
    # 6 videos: 24 RGB frames, 2 x 11 flow frames, one sound.
    assert "18 clips, 282 files" in out
    # By hand, in hundredths of a second: 0.22, 0.05 and 0.13 for each domain.
    assert "D1 source 3 3 0 6 0.13 0.05" in out
    assert "D3 target 0 0 6 6 0.13 0.05" in out
    # One of three segments has 3 RGB frames (window 7) and 1 flow frame (window 4).
    assert (
        "video: 6 clips are shorter than the sampled window of 7 frames and repeat"
        in out
    )
    assert (
        "flow: 6 clips are shorter than the sampled window of 4 frames and repeat"
        in out
    )
    assert out.count("repeat") == 4 and out.count("no problem found") == 4


def damage_hac(root):
    """One damage a clip; the rows that must come out for each."""
    audio = "{}/audio/{}.wav".format
    video = "{}/videos/{}.mp4".format
    flow = "{}/flow/{}_flow_{}.mp4".format
    frames = media.smooth_frames(30)

    (root / video("human", "train_0")).write_bytes(b"")
    (root / video("human", "train_1")).write_text("<html>404</html>\n" * 99)
    (root / flow("human", "train_2", "y")).unlink()
    (root / audio("human", "train_3")).unlink()
    (root / video("human", "test_0")).unlink()
    (root / audio("human", "test_0")).write_bytes(b"")
    media.write_wav(root / audio("animal", "train_0"), media.tone(3.0, amplitude=6e-5))
    media.write_wav(root / audio("animal", "train_1"), [])
    media.write_wav(root / audio("animal", "train_2"), media.tone(3.0)[:63])
    path = root / flow("animal", "train_3", "y")
    media.write_video(path, media.smooth_frames(30, height=32))
    bad = media.tone(3.0)
    bad[40000] = np.nan
    media.write_wav(root / audio("animal", "test_0"), bad, subtype="FLOAT")
    media.write_video(root / flow("cartoon", "train_0", "x"), frames[:28])
    media.write_video(root / flow("cartoon", "train_1", "x"), frames[:29])
    path = root / audio("cartoon", "train_2")
    path.write_bytes(path.read_bytes()[:5000])
    (root / audio("cartoon", "train_3")).write_text("no sound")
    path = root / video("cartoon", "test_0")
    path.write_bytes(path.read_bytes()[:-200])
    cut = "it is cut off: "
    # A clip's class is its number plus that of its domain.
    return [
        ("human", 0, "train_0", "video", "empty", "0 bytes"),
        ("human", 1, "train_1", "video", "unreadable", "Invalid data"),
        ("human", 2, "train_2", "flow y", "missing", "no such file"),
        ("human", 3, "train_3", "audio", "missing", "admitted by optional_modalities"),
        ("human", 0, "test_0", "video", "missing", "no such file"),
        ("human", 0, "test_0", "audio", "empty", "0 bytes"),
        ("animal", 1, "train_0", "audio", "silent", "nothing louder than -84 dB"),
        ("animal", 2, "train_1", "audio", "too_short", "the file ends at 0.00 s"),
        ("animal", 3, "train_2", "audio", "too_short", "63 samples in it; a spectro"),
        ("animal", 4, "train_3", "flow y", "unreadable", "(24, 32) and (32, 32)"),
        ("animal", 1, "test_0", "audio", "unreadable", "NaN or infinity"),
        ("cartoon", 2, "train_0", "flow x", "unreadable", "have 28 and 30 frames"),
        ("cartoon", 4, "train_2", "audio", "truncated", cut + "of its 96044 bytes"),
        ("cartoon", 5, "train_3", "audio", "unreadable", "ormat not recognised"),
        ("cartoon", 2, "test_0", "video", "truncated", cut + "its part 'mdat'"),
    ]


CLASSES = "sleeping,watching TV,eating,drinking,swimming,running,opening door".split(
    ","
)


def test_hac_with_every_damage(hac, tmp_path, capsys):
    expected = damage_hac(hac)
    code, rows = run(hac_config(hac), tmp_path)
    assert code == 1
    names = dict(video="videos/{}.mp4", audio="audio/{}.wav")
    by_key = {(row[2], row[3]): row for row in rows}
    assert len(rows) == len(expected) == len(by_key)
    for domain, label, stem, modality, kind, reason in expected:
        modality, _, axis = modality.partition(" ")
        file = names.get(modality, f"flow/{{}}_flow_{axis}.mp4").format(stem)
        row = by_key[f"{domain}/{stem}", modality]
        assert row[:2] == [domain, CLASSES[label]]
        assert row[4:6] == [kind, f"{domain}/{file}"]
        assert reason in row[6], row
    out = squash(capsys.readouterr().out)
    assert "absent, admitted by optional_modalities: human: audio of 1 clips" in out
    assert "14 problems:" in out

    # Nothing is decoded, so silence and NaN stay hidden.
    code, quick = run(hac_config(hac), tmp_path, quick=True)
    hidden = [row for row in rows if row not in quick]
    assert code == 1 and len(quick) == len(rows) - 2
    assert [row[2] for row in hidden] == ["animal/train_0", "animal/test_0"]

    # Only kinds that are not allowed fail.
    kinds = ["missing", "empty", "truncated", "unreadable", "silent", "too_short"]
    assert run(hac_config(hac), tmp_path, allow=kinds) == (0, rows)
    clips = check.collect(hac_config(hac))
    jobs = check.plan(clips)
    facts = check.inspect_all(jobs, 2)
    verdicts = [check.judge(clip, facts) for clip in clips]
    failures = {}
    for kind in kinds:
        others = [each for each in kinds if each != kind]
        failures[kind] = check.Report(verdicts, len(jobs), others).failures
    assert failures == dict(
        missing=2, empty=2, truncated=2, unreadable=5, silent=1, too_short=2
    )
    capsys.readouterr()
    run(hac_config(hac), tmp_path, allow=["unreadable"])
    out = squash(capsys.readouterr().out)
    assert "14 problems, 5 of them allowed:" in out


def test_modalities_that_are_not_used_are_not_read(hac, tmp_path):
    damage_hac(hac)
    cfg = hac_config(hac, modalities=["flow"])
    code, rows = run(cfg, tmp_path, quick=True)
    assert code == 1 and {row[3] for row in rows} == {"flow"} and len(rows) == 3


def test_absence_that_is_not_admitted(hac, tmp_path):
    (hac / "animal/audio/train_0.wav").unlink()
    row = ["animal/train_0", "audio", "missing", "animal/audio/train_0.wav"]
    use = dict(modalities=["flow", "audio"])
    code, rows = run(hac_config(hac, **use), tmp_path, quick=True)
    assert (code, without_reasons(rows)) == (0, [row])
    strict = hac_config(hac, **use, optional_modalities=())
    code, rows = run(strict, tmp_path, quick=True)
    assert (code, without_reasons(rows)) == (1, [row])
    # It is read by the training set, so what the other sets admit does not help.
    cfg = hac_config(hac, **use)
    cfg.train_dataloader.dataset.optional_modalities = ["video"]
    assert run(cfg, tmp_path, quick=True)[0] == 1
    cfg = hac_config(hac, **use)
    cfg.val_dataloader.dataset.optional_modalities = []
    assert run(cfg, tmp_path, quick=True)[0] == 0
    # Without any modality there is nothing to recognize the clip by.
    assert run(hac_config(hac, modalities=["audio"]), tmp_path)[0] == 1


def test_a_clip_in_both_splits_is_checked_once(hac, tmp_path, capsys):
    media.write_split(hac, "human", "test", [("train_0.mp4", 0)])
    (hac / "human/videos/train_0.mp4").unlink()
    code, rows = run(hac_config(hac), tmp_path, quick=True)
    assert code == 1 and len(rows) == 1
    assert "human source 4 1 0 4 3.00 3.00" in squash(capsys.readouterr().out)


def test_datasets_within_datasets(hac, tmp_path, capsys):
    (hac / "human/videos/train_0.mp4").unlink()
    cfg = hac_config(hac)
    inner = dict(cfg.train_dataloader.dataset, sources=["animal"])
    other = dict(cfg.train_dataloader.dataset, sources=["human"])
    for each in (inner, other):
        each["metainfo"] = dict(domains=("human", "animal", "cartoon"))
    both = dict(
        type="ConcatDataset",
        datasets=[inner, other],
        ignore_keys=["sources", "N", "clips"],
    )
    cfg = Config(
        dict(
            default_scope="mmaction",
            train_dataloader=dict(
                dataset=dict(type="RepeatDataset", times=3, dataset=both)
            ),
        )
    )
    code, rows = run(cfg, tmp_path, quick=True)
    assert code == 1 and [row[2] for row in rows] == ["human/train_0"]
    out = squash(capsys.readouterr().out)
    assert "animal source 4 0 0 4" in out and "human source 4 0 0 4" in out


def test_windows_that_begin_after_the_sound(hac, tmp_path, capsys):
    """30 frames at 10 per second, a window of 8: it begins at 2.2 s at the latest."""
    media.write_wav(hac / "human/audio/train_0.wav", media.tone(2.2))
    media.write_wav(hac / "animal/audio/train_0.wav", media.tone(2.3))
    # The centre of validation begins at (30 - 7) // 2 = 11 frames.
    media.write_wav(hac / "human/audio/test_0.wav", media.tone(1.2))
    media.write_wav(hac / "animal/audio/test_0.wav", media.tone(1.1))
    assert run(hac_config(hac, span="file"), tmp_path, quick=True)[0] == 0
    assert "window may begin" not in capsys.readouterr().out
    cfg = hac_config(hac, span="frames")
    assert run(cfg, tmp_path, quick=True)[0] == 0
    text = "clips: the sampled window may begin after the sound has ended"
    assert f"2 {text}" in capsys.readouterr().out
    # At 30 frames per second everything is earlier.
    for split in ("train", "val", "test"):
        sound = cfg[f"{split}_dataloader"].dataset.pipelines.audio[0]
        sound.span_fps = 30
    assert run(cfg, tmp_path, quick=True)[0] == 0
    assert "window may begin" not in capsys.readouterr().out


def test_clips_that_repeat(clean_hac, tmp_path, capsys):
    """A window of (4 - 1) * 10 + 1 = 31 frames repeats, one of 28 does not."""
    assert (
        run(
            hac_config(clean_hac, clip=dict(clip_len=4, interval=10)),
            tmp_path,
            quick=True,
        )[0]
        == 0
    )
    text = "15 clips are shorter than the sampled window of 31 frames and repeat"
    assert capsys.readouterr().out.count(text) == 2
    assert (
        run(
            hac_config(clean_hac, clip=dict(clip_len=4, interval=9)),
            tmp_path,
            quick=True,
        )[0]
        == 0
    )
    assert "repeat" not in capsys.readouterr().out


# --- frames and whole-video sound


RGB, FLOW = "rgb/train/D1/P08_01", "flow/train/D1/P08_01"


def frame(folder, number):
    return f"{folder}/frame_{number:010d}.jpg"


def test_epic_with_every_damage(epic, tmp_path, capsys):
    # D1's train video. Segments [11, 24), [30, 33), [40, 48); flow 6-11, 15, 20-23.
    (epic / frame(RGB, 16)).unlink()
    (epic / frame(RGB, 18)).unlink()
    (epic / frame(RGB, 31)).write_bytes(b"")
    path = epic / frame(RGB, 47)
    path.write_bytes(path.read_bytes()[:-1])
    (epic / frame(f"{FLOW}/u", 7)).write_text("no picture")
    small = np.zeros((8, 8), np.uint8)
    cv2.imwrite(str(epic / frame(f"{FLOW}/v", 15)), small)
    cv2.imwrite(str(epic / frame(f"{FLOW}/v", 22)), small)
    # Its test video: no folder at all, and half a second of sound.
    shutil.rmtree(epic / "flow/test/D1/P08_02/v")
    media.write_wav(epic / "rgb/test/D1/P08_02.wav", media.tone(0.5))
    # D2: no sound, and sound that is silent from 0.45 to 0.6 s.
    (epic / "rgb/train/D2/P01_01.wav").unlink()
    sound = media.tone(1.0)
    sound[7200:9600] = 0
    media.write_wav(epic / "rgb/test/D2/P01_02.wav", sound)
    # D3: sound that was cut after 0.6 s, in the middle of nothing.
    path = epic / "rgb/train/D3/P22_01.wav"
    path.write_bytes(path.read_bytes()[: 44 + 2 * 9600])

    code, rows = run(epic_config(epic), tmp_path)
    assert code == 1
    D1, D2, D3 = "D1/P08_0{}/{}", "D2/P01_0{}/{}", "D3/P22_0{}/{}"
    silence, missing = "rgb/test/D2/P01_02.wav", "rgb/train/D2/P01_01.wav"
    assert without_reasons(rows) == sorted(
        [
            [D1.format(1, 0), "video", "missing", frame(RGB, 16)],
            [D1.format(1, 0), "flow", "unreadable", frame(f"{FLOW}/u", 7)],
            [D1.format(1, 1), "video", "empty", frame(RGB, 31)],
            [D1.format(1, 1), "flow", "unreadable", f"{FLOW}/v"],
            [D1.format(1, 2), "video", "truncated", frame(RGB, 47)],
            [D1.format(1, 2), "flow", "unreadable", f"{FLOW}/v"],
            *(
                [D1.format(2, i), "flow", "missing", "flow/test/D1/P08_02/v"]
                for i in (3, 4, 5)
            ),
            # [0.5, 0.55) and [0.67, 0.80) s.
            [D1.format(2, 4), "audio", "too_short", "rgb/test/D1/P08_02.wav"],
            [D1.format(2, 5), "audio", "too_short", "rgb/test/D1/P08_02.wav"],
            *([D2.format(1, i), "audio", "missing", missing] for i in (6, 7, 8)),
            [D2.format(2, 10), "audio", "silent", silence],
            # The two segments before the cut are intact.
            [D3.format(1, 14), "audio", "truncated", "rgb/train/D3/P22_01.wav"],
        ]
    )
    reasons = {(row[2], row[3]): row[6] for row in rows}
    assert reasons[D1.format(1, 0), "video"] == (
        "no such frame (and 1 more frames of the segment)"
    )
    sizes = "the components of flow have frames of (16, 24) and (8, 8) pixels (h, w)"
    assert reasons[D1.format(1, 1), "flow"] == sizes
    sizes = "frames of the segment differ in size (h, w): [(8, 8), (16, 24)]"
    assert reasons[D1.format(1, 2), "flow"] == sizes
    ends = "no sound between 0.50 and 0.55 s: the file ends at 0.50 s"
    assert reasons[D1.format(2, 4), "audio"] == ends
    silent = "nothing louder than digital silence between 0.50 and 0.55 s"
    assert reasons[D2.format(2, 10), "audio"] == silent

    # By kind: missing, empty, truncated, unreadable, silent, too_short.
    out = capsys.readouterr().out
    lines = [squash(line) for line in out.splitlines()]
    place = lines.index("D1 source video 1 1 1 0 0 0")
    assert lines[place + 1 : place + 3] == [
        "flow 3 0 0 3 0 0",
        "audio 0 0 0 0 0 2",
    ]
    assert "D2 source audio 0 0 0 0 1 0" in lines
    assert "D3 target audio 0 0 1 0 0 0" in lines
    # Rows 4, 12 have this class, and 20 has not: there are 18.
    assert "wash 2 flow 1 0 0 0 0 0" in lines and "audio 0 0 0 0 0 1" in lines
    # A file that rows share is listed once.
    assert out.count("flow/test/D1/P08_02/v: no such folder (3 clips)") == 1

    # Frames are not decoded.
    code, quick = run(epic_config(epic), tmp_path, quick=True)
    hidden = without_reasons([row for row in rows if row not in quick])
    assert hidden == sorted(
        [
            [D1.format(1, 0), "flow", "unreadable", frame(f"{FLOW}/u", 7)],
            [D1.format(1, 1), "flow", "unreadable", f"{FLOW}/v"],
            [D1.format(1, 2), "flow", "unreadable", f"{FLOW}/v"],
            [D1.format(1, 2), "video", "truncated", frame(RGB, 47)],
            [D2.format(2, 10), "audio", "silent", silence],
        ]
    )


def test_one_frame_has_no_flow(tmp_path):
    root = media.write_epic(tmp_path / "data", segments=[(11, 12)])
    for path in (root / media.EPIC_FOLDER).iterdir():
        text = path.read_text().replace("00:00:00.20", "00:00:00.30")
        path.write_text(text)
    code, rows = run(epic_config(root), tmp_path, quick=True)
    assert code == 1 and len(rows) == 6
    assert {tuple(row[3:]) for row in rows} == {
        ("flow", "too_short", "", "the segment has 0 frames")
    }
    assert run(epic_config(root, modalities=["video"]), tmp_path) == (0, [])


def test_files_that_rows_share_are_read_once(clean_epic):
    clips = check.collect(epic_config(clean_epic))
    jobs = check.plan(clips)
    # 6 videos with a sound, 3 segments of RGB and 3 of each flow component.
    sounds = [job for job in jobs if isinstance(job.medium, Sound)]
    assert len(sounds) == 6 and {len(job.detail) for job in sounds} == {3}
    numbers = {}
    for job in jobs:
        if isinstance(job.medium, Frames):
            numbers.setdefault(job.medium.path, []).extend(job.detail)
    assert len(numbers) == 18
    for folder, found in numbers.items():
        expected = media.EPIC_RGB if "/rgb/" in folder else media.EPIC_FLOW
        assert found == expected


@pytest.mark.parametrize(
    ("ranges", "expected"),
    [
        ([(5, 8), (0, 2), (1, 3)], [range(0, 3), range(5, 8)]),
        ([(0, 10), (2, 3), (10, 11)], [range(0, 11)]),
        ([(4, 4)], [range(4, 4)]),
        ([(1, 600)], [range(1, 257), range(257, 513), range(513, 600)]),
    ],
)
def test_frame_ranges(ranges, expected):
    assert list(check._chunks(ranges)) == expected


def clip_of(files, extras=None, kind="RGB", need=None, **row):
    """A clip of one modality, and what is found in its files."""
    row = dict(sample_id="a", domain="d", files=dict(m=files), **row)
    clip = check.Clip(row | dict(extras=dict(m=extras or {})), "label")
    clip.needs["m"] = {need or Need(kind): None}
    clip.required = {"m"}
    return clip


def judged(clip):
    facts = check.inspect_all(check.plan([clip]), 1)
    return [finding[1:4] for finding in check.judge(clip, facts).problems]


def test_segments_of_a_video(tmp_path):
    path = str(tmp_path / "a.mp4")
    media.write_video(path, media.smooth_frames(30))
    assert judged(clip_of(path, dict(start_index=20, total_frames=10))) == []
    assert judged(clip_of(path, dict(start_index=20, total_frames=11))) == [
        ("missing", path, "the segment is frames 20 to 30 of a file of 30")
    ]
    assert judged(clip_of(path, dict(total_frames=0))) == [
        ("too_short", path, "the segment has 0 frames")
    ]


def test_rows_that_cannot_work(tmp_path):
    folder = str(tmp_path)
    assert judged(clip_of(folder)) == [
        ("unreadable", folder, "it is a folder, not a file")
    ]
    (row,) = judged(clip_of(folder, dict(filename_tmpl="{}.jpg")))
    assert row[0] == "unreadable" and "names no total_frames" in row[2]
    assert judged(clip_of(None)) == [("missing", "", "the row has no file for it")]


def test_other_modalities_are_looked_for(tmp_path):
    """A subclass may add kinds of its own."""
    path = tmp_path / "a.txt"
    path.write_text("words")
    assert judged(clip_of(str(path), kind="Text")) == []
    path.write_text("")
    assert judged(clip_of(str(path), kind="Text"))[0][0] == "empty"


# --- one file


def video_fault(path, data=None, quick=False):
    if data is not None:
        Path(path).write_bytes(data)
    return Video(str(path)).inspect(None, quick).fault


def remux(source, target):
    """Copies the packets. MP4's index then lies behind the pictures."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)
    return target


def test_facts_of_a_video(tmp_path):
    path = tmp_path / "a.mp4"
    media.write_video(path, media.smooth_frames(30, height=24, width=32))
    for quick in (False, True):
        facts = Video(str(path)).inspect(None, quick)
        assert facts == check.VideoFacts(None, 30, 10.0, (24, 32))


@pytest.mark.parametrize("index_first", [True, False])
def test_a_video_that_was_cut_anywhere(tmp_path, index_first):
    path = tmp_path / "a.mp4"
    media.write_video(path, media.smooth_frames(12))
    if not index_first:
        path = remux(path, tmp_path / "b.mp4")
    whole = path.read_bytes()
    cuts = [*range(8, len(whole), len(whole) // 60), len(whole) - 1]
    for cut in cuts:
        for quick in (False, True):
            assert video_fault(path, whole[:cut], quick).kind == "truncated", cut
    assert video_fault(path, whole[:7]).kind == "unreadable"
    assert video_fault(path, b"").kind == "empty"
    # Rubbish behind it does no harm.
    assert video_fault(path, whole + b"\xff" * 100) is None


def test_matroska_that_was_cut(tmp_path):
    path = tmp_path / "a.mp4"
    media.write_video(path, media.smooth_frames(30))
    path = remux(path, tmp_path / "b.mkv")
    whole = path.read_bytes()
    assert video_fault(path) is None
    fault = video_fault(path, whole[: len(whole) // 2])
    assert fault.kind == "truncated" and "header promises 3.0 s" in fault.reason


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_a_video_that_was_overwritten_inside(tmp_path, codec):
    path = tmp_path / "a.mp4"
    media.write_video(path, media.smooth_frames(30), codec=codec)
    data = bytearray(path.read_bytes())
    start = data.find(b"mdat") + (len(data) - data.find(b"mdat")) // 2
    data[start : start + 60] = bytes(60)
    fault = video_fault(path, data)
    assert fault.kind == "truncated" and " of 30 frames decode; frame " in fault.reason
    # Only decoding finds it.
    assert video_fault(path, data, quick=True) is None
    # Nothing is left: an index over zeros.
    data[data.find(b"mdat") + 4 :] = bytes(len(data) - data.find(b"mdat") - 4)
    assert video_fault(path, data).kind in ("truncated", "unreadable")


def test_a_video_that_begins_without_a_key_frame(tmp_path):
    source, path = tmp_path / "a.mp4", tmp_path / "b.mp4"
    options = {"x264-params": "keyint=20:min-keyint=20:scenecut=0:bframes=0"}
    media.write_video(source, media.smooth_frames(30), options=options)
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for i, packet in enumerate(old.demux(video=0)):
            if packet.dts is not None and i >= 5:
                packet.stream = stream
                new.mux(packet)
    fault = video_fault(path)
    assert fault == Fault(
        "truncated", "10 of 25 frames decode (does it begin with a key frame?)"
    )


def test_frames_of_two_sizes_in_a_video(tmp_path):
    path = tmp_path / "a.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.height, stream.width, stream.pix_fmt = 24, 32, "yuvj420p"
        for i in range(6):
            picture = np.full((24 if i < 4 else 48, 32, 3), 20 * i, np.uint8)
            packet = av.Packet(cv2.imencode(".jpg", picture)[1].tobytes())
            packet.pts = packet.dts = i
            packet.time_base, packet.stream = Fraction(1, 10), stream
            packet.is_keyframe = True
            container.mux(packet)
    reason = "its frames differ in size (h, w): [(24, 32), (48, 32)]"
    assert video_fault(path) == Fault("unreadable", reason)


def test_a_codec_that_decord_lacks_is_read_by_pyav(tmp_path):
    if "libsvtav1" not in av.codecs_available:
        pytest.skip("this PyAV cannot write AV1")
    path = str(tmp_path / "a.mp4")
    frames = media.smooth_frames(9, height=64, width=64)
    media.write_video(path, frames, codec="libsvtav1", options={})
    for reader in ("decord", "pyav"):
        assert Video(path, reader).inspect(None, False).fault is None


def test_a_video_without_pictures(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        sound = np.zeros((1, 16000), np.float32)
        sound = av.AudioFrame.from_ndarray(sound, "fltp", "mono")
        sound.sample_rate = 16000
        container.mux([*stream.encode(sound), *stream.encode()])
    assert video_fault(path) == Fault("unreadable", "the file has no video stream")


def sound_facts(path, spans=((0.0, np.inf),), quick=False):
    return Sound(str(path)).inspect(spans, quick)


def test_a_wav_that_was_cut_anywhere(tmp_path):
    path = tmp_path / "a.wav"
    media.write_wav(path, media.tone(0.1))
    whole = path.read_bytes()
    assert len(whole) == 44 + 2 * 1600
    assert not sound_facts(path).cut
    for cut in range(12, len(whole), 97):
        path.write_bytes(whole[:cut])
        facts = sound_facts(path)
        assert facts.cut or facts.fault.kind == "truncated", cut
        assert facts.samples == max(cut - 44, 0) // 2
    path.write_bytes(whole[:11])
    assert sound_facts(path).fault.kind == "unreadable"
    # A program that writes to a pipe does not know the size; chunks may come before.
    header = bytearray(whole)
    header[40:44] = b"\xff" * 4
    path.write_bytes(header)
    assert sound_facts(path).cut == ""
    listed = whole[:36] + b"LIST\x03\0\0\0abc\0" + whole[36:]
    path.write_bytes(listed)
    assert sound_facts(path).cut == ""
    path.write_bytes(listed[:-2])
    assert sound_facts(path).samples == 1599 and sound_facts(path).cut


def test_other_sound_that_was_cut(tmp_path):
    path = tmp_path / "a.flac"
    noise = 0.5 * np.random.default_rng(0).uniform(-1, 1, 48000)
    media.write_wav(path, noise)
    assert sound_facts(path).cut == ""
    path.write_bytes(path.read_bytes()[:40000])
    facts = sound_facts(path)
    assert facts.cut and facts.samples < 48000


def test_peaks_of_parts(tmp_path, monkeypatch):
    """Whatever the blocks, the peak is that of the mono signal between the samples."""
    monkeypatch.setattr(check, "_BLOCK", 7)
    random = np.random.default_rng(1)
    left, right = random.uniform(-0.5, 0.5, (2, 100))
    path = tmp_path / "a.wav"
    media.write_wav(path, np.stack([left, right], 1), rate=10, subtype="FLOAT")
    spans = [(0.0, np.inf), (0.0, 0.7), (0.7, 1.4), (3.14, 7.77), (9.9, 30.0)]
    facts = sound_facts(path, [*spans, (10.0, 12.0)])
    assert (facts.samples, facts.rate) == (100, 10)
    mono = np.abs((left + right) / 2)
    parts = [mono, mono[:7], mono[7:14], mono[31:78], mono[99:]]
    expected = [part.max() for part in parts]
    found = [facts.peaks[span] for span in spans]
    assert found == pytest.approx(expected, abs=1e-6)
    assert facts.peaks[10.0, 12.0] == 0
    # As loud as each other and opposite: no sound is left.
    media.write_wav(path, np.stack([left, -left], 1), rate=10, subtype="FLOAT")
    assert sound_facts(path).peaks[0.0, np.inf] == 0


@pytest.mark.parametrize(("decibels", "silent"), [(-79.9, False), (-80.1, True)])
def test_silence_is_what_the_pipeline_says(tmp_path, decibels, silent):
    path = str(tmp_path / "a.wav")
    media.write_wav(path, np.full(999, 10 ** (decibels / 20)), subtype="FLOAT")
    assert judged(clip_of(path, kind="Audio")) == (
        [("silent", path, "nothing louder than -80 dB in it")] if silent else []
    )
    need = Need("Audio", silence=0.0)
    assert judged(clip_of(path, need=need)) == []


def test_the_window_is_counted_at_the_pipelines_rate(tmp_path):
    path = str(tmp_path / "a.wav")
    media.write_wav(path, media.tone(0.1, rate=8000), rate=8000)
    need = Need("Audio", sample_rate=16000, window=1600)
    assert judged(clip_of(path, need=need)) == []
    need = Need("Audio", sample_rate=16000, window=1601)
    reason = "1600 samples in it; a spectrogram needs 1601"
    assert judged(clip_of(path, need=need)) == [("too_short", path, reason)]


# --- processes


def test_a_file_that_kills_the_process(hac, tmp_path, monkeypatch):
    stock = Video.inspect

    def inspect(self, detail, quick):
        if self.path.endswith("human/videos/train_1.mp4"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.path.endswith("animal/videos/train_2.mp4"):
            raise MemoryError("much")
        if self.path.endswith("cartoon/videos/train_3.mp4"):
            os._exit(3)
        return stock(self, detail, quick)

    monkeypatch.setattr(Video, "inspect", inspect)
    code, rows = run(hac_config(hac), tmp_path)
    assert code == 1
    assert [(row[2], row[4], row[6]) for row in rows] == [
        (
            "human/train_1",
            "unreadable",
            "decoding it killed the process (signal 9)",
        ),
        ("animal/train_2", "unreadable", "MemoryError: much"),
        (
            "cartoon/train_3",
            "unreadable",
            "decoding it killed the process (exit code 3)",
        ),
    ]


def test_the_frame_that_kills_the_process_is_found(clean_epic, monkeypatch):
    stock = Frames.inspect

    def inspect(self, numbers, quick):
        if 20 in numbers or 9 in numbers:
            os.kill(os.getpid(), signal.SIGKILL)
        return stock(self, numbers, quick)

    monkeypatch.setattr(Frames, "inspect", inspect)
    frames = Frames(str(clean_epic / RGB), "frame_{:010d}.jpg")
    counted = []
    facts = check.inspect_all([Job(frames, range(8, 24))], 2, advance=counted.append)
    died = Fault("unreadable", "decoding it killed the process (signal 9)")
    gone = Fault("missing", "no such frame")
    assert facts[frames].faults == {8: gone, 9: died, 10: gone, 20: died}
    assert sum(counted) == 16
    assert sorted(facts[frames].sizes[16, 24]) == [i for i in range(11, 24) if i != 20]


def test_a_file_that_never_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "_SECONDS", 0.3)
    monkeypatch.setattr(Video, "inspect", lambda *_: time.sleep(60))
    jobs = [Job(Video(str(tmp_path / f"{i}.mp4")), None) for i in range(3)]
    start = time.monotonic()
    facts = check.inspect_all(jobs, 2)
    assert time.monotonic() - start < 10
    assert [facts[job.medium].fault.kind for job in jobs] == ["unreadable"] * 3
    assert "not read within" in facts[jobs[0].medium].fault.reason


def test_random_damage_neither_hangs_nor_kills(tmp_path):
    source = tmp_path / "a.mp4"
    options = {"preset": "veryfast", "crf": "28"}
    media.write_video(
        source, media.smooth_frames(30, height=64, width=64), options=options
    )
    whole = np.frombuffer(source.read_bytes(), np.uint8)
    random = np.random.default_rng(0)
    jobs = []
    for i in range(40):
        data = whole.copy()
        data[random.integers(len(data), size=15)] = random.integers(256, size=15)
        path = tmp_path / f"{i}.mp4"
        path.write_bytes(data.tobytes())
        jobs.append(Job(Video(str(path)), None))
    facts = check.inspect_all(jobs, 2)
    faults = [facts[job.medium].fault for job in jobs]
    assert {f.kind for f in faults if f} <= {"truncated", "unreadable"}
    # Bytes that nobody reads are no damage, but there are few.
    assert sum(f is not None for f in faults) > 30
    assert not any("killed" in f.reason or "within" in f.reason for f in faults if f)


def test_ctrl_c_ends_all(clean_hac, tmp_path, monkeypatch):
    """An interrupt of the whole process group, as a terminal sends it."""
    monkeypatch.setattr(Video, "inspect", lambda *_: time.sleep(60))
    errors = tmp_path / "errors"

    def run_in_a_group():
        os.setsid()
        sys.stderr = open(errors, "w")
        code = check.check(hac_config(clean_hac), 2)
        sys.stderr.close()
        os._exit(code)

    process = multiprocessing.get_context("fork").Process(target=run_in_a_group)
    process.start()
    time.sleep(2)
    os.killpg(process.pid, signal.SIGINT)
    process.join(20)
    assert process.exitcode == 130
    assert errors.read_text().startswith("interrupted after 0 of 60 files")
    with pytest.raises(ProcessLookupError):  # no worker is left
        os.killpg(process.pid, 0)


# --- usage


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(data_root="nowhere"), "no split file nowhere/HAC_Splits/HAC_train"),
        (dict(target="dog"), "unknown domain 'dog' in targets"),
        (dict(type="NoSuchDataset"), "NoSuchDataset is not in the"),
    ],
)
def test_config_errors_are_the_datasets_own(clean_hac, change, message):
    cfg = hac_config(clean_hac)
    cfg.train_dataloader.dataset.update(change)
    with pytest.raises(UsageError, match=message):
        check.check(cfg, 1)


def test_a_label_that_is_none(hac):
    media.write_split(hac, "human", "train", [("train_0.mp4", 9)])
    with pytest.raises(UsageError, match="line 1: label '9' is none of the 7 classes"):
        check.check(hac_config(hac), 1)


def test_other_datasets_have_other_rows(tmp_path):
    (tmp_path / "list.txt").write_text("a.mp4 0")
    dataset = dict(
        type="VideoDataset", ann_file=str(tmp_path / "list.txt"), pipeline=[]
    )
    cfg = dict(default_scope="mmaction", val_dataloader=dict(dataset=dataset))
    with pytest.raises(UsageError, match="val_.*: VideoDataset is no MultiModalData"):
        check.check(Config(cfg), 1)


def test_requests_that_cannot_work(clean_hac, tmp_path):
    with pytest.raises(UsageError, match="no train_dataloader, val_dataloader or test"):
        check.check(Config(dict(train_dataloader=None)), 1)
    with pytest.raises(UsageError, match="--workers must be 1 or more, got 0"):
        check.check(hac_config(clean_hac), 0)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="--csv: .*Not a directory|File exists"):
        check.check(hac_config(clean_hac), 1, csv_file=f"{tmp_path}/file/a.csv")


def test_many_problems_are_shortened(tmp_path, capsys):
    root = tmp_path / "data"
    rows = [(f"clip_{i}.mp4", i % 7) for i in range(25)]
    for domain in ("human", "animal", "cartoon"):
        for split in ("train", "test"):
            media.write_split(root, domain, split, rows)
    cfg = hac_config(root, modalities=["video"])
    code, found = run(cfg, tmp_path, quick=True)
    assert code == 1 and len(found) == 75
    out = capsys.readouterr().out
    assert out.count("no such file") == 20
    assert f"and 55 more in {tmp_path}/new/problems.csv" in out
    # 25 clips of 7 classes in 3 domains: 4 x 3 of the first four, 3 x 3 of the rest.
    lines = [squash(line) for line in out.splitlines()]
    assert "sleeping 12 video 12" in lines and "running 9 video 9" in lines
    assert "human source 25 25 0 25 - -" in lines
    assert "human source video 25" in lines
    assert check.check(cfg, 1) == 1
    assert "and 55 more (--csv FILE lists all)" in capsys.readouterr().out


def write_config(path, cfg):
    """As a file, with the model that --modalities checks against."""
    cfg.model = dict(encoders=dict(video={}, flow={}, audio={}))
    cfg.custom_imports = dict(imports=["mmaction_mbcd"])
    cfg.dump(str(path))


def test_usage_errors_end_with_code_2(hac, tmp_path, capsys):
    tool = load_tool("data/check")
    config = tmp_path / "config.py"
    write_config(config, hac_config(hac))
    for options, message in [
        (["gone.py"], "config file not found: gone.py"),
        ([str(config), "--modalities", "smell"], "the config has no smell; it has"),
        ([str(config), "--data-root", "gone"], "no split file gone/HAC_Splits/"),
        ([str(config), "--allow", "noisy"], "invalid choice: 'noisy'"),
    ]:
        with pytest.raises(SystemExit) as end:
            tool.main(options)
        assert end.value.code == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert ": error: " in error and message in error


def test_the_command_line(hac, tmp_path, capsys):
    config, report = tmp_path / "config.py", tmp_path / "problems.csv"
    write_config(config, hac_config(hac))
    (hac / "human/videos/train_0.mp4").write_bytes(b"")
    (hac / "human/audio/train_0.wav").unlink()

    done = subprocess.run(
        [sys.executable, "tools/data/check.py", str(config), "--csv", str(report)]
        + ["--workers", "2", "--modalities", "video"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr == ""  # no bar where there is no terminal
    assert report.read_text().splitlines() == [
        "domain,class,sample_id,modality,kind,file,reason",
        f"human,sleeping,human/train_0,video,empty,{hac}/human/videos/train_0.mp4,"
        "the file has 0 bytes",
    ]
    assert "15 clips, 15 files" in done.stdout
    options = [str(config), "--quick", "--allow", "empty", "silent", "--workers", "1"]
    assert load_tool("data/check").main(options) == 0
    assert "1 problem, 1 of them allowed:" in capsys.readouterr().out
