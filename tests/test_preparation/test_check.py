import csv
import multiprocessing
import os
import shutil
import signal
import threading
import time
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from mmengine.config import Config

import media
from helpers.forked import run_script
from helpers.listed import ListedDataset, Misbehave
from mmaction_mbcd.datasets import UnreadableMediaError
from mmaction_mbcd.errors import UsageError
from mmaction_mbcd.preparation import check
from tests_support import load_tool

ROOT = Path(__file__).parents[2]
CLASSES = "sleeping,watching TV,eating,drinking,swimming,running,opening door"


def split_config(dataset, train, test):
    """A config whose three loaders differ as the package's do."""
    # Packed rows save nothing here, and packing collects all garbage first.
    dataset = dict(dataset, serialize_data=False)
    loaders = {
        f"{use}_dataloader": dict(dataset=dict(dataset, use=use, pipelines=pipelines))
        for use, pipelines in (("train", train), ("val", test), ("test", test))
    }
    return Config(dict(default_scope="mmaction", **loaders))


def hac_config(root, **kwargs):
    pipelines = [media.pipelines(train) for train in (True, False)]
    dataset = dict(type="HACDataset", data_root=str(root), target="cartoon", **kwargs)
    return split_config(dataset, *pipelines)


FRAMES = [dict(type="OpenVideo"), dict(type="SampleClip", clip_len=4)]
FLOW = [dict(type="OpenFlowPair"), dict(type="SampleClip", clip_len=4)]
SEGMENT = [
    dict(type="LoadWaveform", span="segment", max_seconds=10),
    dict(type="TileWaveform", length=8000),
    dict(type="LogSpectrogram", nperseg=64, noverlap=32),
]
EPIC = dict(
    video=[*FRAMES, dict(type="DecodeFrames")],
    flow=[*FLOW, dict(type="DecodeFlowFrames")],
    audio=SEGMENT,
)


def epic_config(root):
    dataset = dict(type="EPICKitchensDataset", data_root=str(root), target="D3")
    return split_config(dataset, EPIC, EPIC)


def listed_config(modality, rows, pipeline=None):
    """A config of one modality, and clips whose rows are given."""
    rows = [dict(dict(label=0), **row) for row in rows]
    dataset = dict(
        type=ListedDataset,
        listed=rows,
        use="train",
        pipelines={modality: pipeline or media.pipelines()[modality]},
        optional_modalities=(),
        serialize_data=False,
    )
    return Config(dict(train_dataloader=dict(dataset=dataset)))


def readings(modality, *files, quick=False, pipeline=None, extras=None, **row):
    """Reads single files in this process."""
    row |= dict(extras={modality: extras or {}})
    rows = [dict(row, files={modality: f}) for f in files]
    cfg = listed_config(modality, rows, pipeline)
    items = [row.items[modality] for row in check.collect(cfg, quick)]
    return [check.read(item) for item in items]


def reading(modality, file, **kwargs):
    return readings(modality, file, **kwargs)[0]


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


def run(cfg, tmp_path, **kwargs):
    """Exit code and the rows of the CSV, paths without their root."""
    path = tmp_path / "new" / "problems.csv"
    code = check.check(cfg, workers=2, csv_file=str(path), **kwargs)
    with open(path, newline="") as file:
        header, *rows = csv.reader(file)
    assert header == "domain class sample_id modality kind file reason".split()
    return code, [[cell.replace(f"{tmp_path}/data/", "") for cell in r] for r in rows]


def squash(text):
    return " ".join(text.split())


# --- whole datasets


def test_clean_trees(clean_hac, clean_epic, tmp_path, capsys):
    for quick in (False, True):
        assert run(hac_config(clean_hac), tmp_path, quick=quick) == (0, [])
        out = squash(capsys.readouterr().out)
        assert "animal source train 4 4 ok 4 ok 4 ok" in out
        assert "human source val 1 1 ok 1 ok 1 ok" in out
        assert "cartoon target test 5 5 ok 5 ok 5 ok" in out
        assert "no file with a problem found" in out
    published = hac_config(clean_hac, sampling="published", joint_augment=False)
    assert run(published, tmp_path) == (0, [])
    # Exactly the frames of the segments are there.
    assert run(epic_config(clean_epic), tmp_path) == (0, [])
    assert "D3 target test 6 6 ok 6 ok 6 ok" in squash(capsys.readouterr().out)


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
    media.write_wav(root / audio("animal", "train_2"), media.tone(2.4))
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
    # A clip's class is its number plus that of its domain.
    return [
        ("human", 0, "train_0", "video", "damaged", "the file is empty (0 bytes)"),
        ("human", 1, "train_1", "video", "damaged", "Invalid data"),
        ("human", 2, "train_2", "flow y", "missing", "does not exist"),
        ("human", 3, "train_3", "audio", "admitted", "does not exist"),
        ("human", 0, "test_0", "video", "missing", "does not exist"),
        ("human", 0, "test_0", "audio", "damaged", "the file is empty"),
        ("animal", 1, "train_0", "audio", "admitted", "is silent between 0.00"),
        ("animal", 2, "train_1", "audio", "admitted", "holds no samples"),
        ("animal", 3, "train_2", "audio", "note", "it ends 0.6 s before another"),
        ("animal", 4, "train_3", "flow x", "damaged", "its y frames (32, 32)"),
        ("animal", 1, "test_0", "audio", "damaged", "NaN or infinity"),
        ("cartoon", 2, "train_0", "flow x", "damaged", "have 28 and 30 frames"),
        ("cartoon", 4, "train_2", "audio", "note", "it ends 2.8 s before another"),
        ("cartoon", 5, "train_3", "audio", "damaged", "ormat not recognised"),
        ("cartoon", 2, "test_0", "video", "damaged", "the file is cut off"),
    ]


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
        assert row[:2] == [domain, CLASSES.split(",")[label]]
        assert row[4:6] == [kind, f"{domain}/{file}"]
        assert reason in row[6], row
    out = squash(capsys.readouterr().out)
    human = "2 ok, 2 damaged 3 ok, 1 missing (25%) 3 ok, 1 missing (25%)"
    assert f"human source train 4 {human}" in out
    assert "animal source train 4 4 ok 3 ok, 1 damaged 2 ok, 2 silent" in out
    assert "no test clip of human has video: is its folder where" in out
    assert "audio: 2 clips end more than 0.5 s before another modality" in out
    assert "10 problems:" in out
    # Without the advice, which the CSV file has.
    assert "train_1.mp4: [Errno 1094995529] Invalid data found" in out
    assert "Fetch the file again" in by_key["human/train_1", "video"][6]
    assert "Fetch" not in out

    # Three frames are enough for all of this.
    assert run(hac_config(hac), tmp_path, quick=True) == (1, rows)
    # Only kinds that are not allowed fail.
    kinds = ["missing", "damaged", "silent"]
    assert run(hac_config(hac), tmp_path, allow=kinds, quick=True) == (0, rows)
    for kind in kinds:
        others = [each for each in kinds if each != kind]
        # Silence is admitted as absence is; where absence is not, it fails too.
        use = dict(modalities=["flow", "audio"], optional_modalities=())
        cfg = hac_config(hac, **use)
        assert run(cfg, tmp_path, allow=others, quick=True)[0] == 1
    capsys.readouterr()
    run(hac_config(hac), tmp_path, allow=["damaged"], quick=True)
    out = capsys.readouterr().out.splitlines()
    place = out.index("10 problems, 8 of them allowed:")
    assert [line.split()[0] for line in out[place + 1 :]] == (
        ["missing", "missing"] + 8 * ["damaged"]
    )
    # What is not used is not read.
    code, rows = run(hac_config(hac, modalities=["flow"]), tmp_path, quick=True)
    assert code == 1 and {row[3] for row in rows} == {"flow"} and len(rows) == 3


def test_absence_that_is_not_admitted(hac, tmp_path, capsys):
    (hac / "animal/audio/train_0.wav").unlink()
    use = dict(modalities=["flow", "audio"])

    def outcome(cfg):
        code, rows = run(cfg, tmp_path, quick=True)
        return code, [row[2:5] for row in rows]

    row = ["animal/train_0", "audio"]
    assert outcome(hac_config(hac, **use)) == (0, [[*row, "admitted"]])
    strict = hac_config(hac, **use, optional_modalities=())
    assert outcome(strict) == (1, [[*row, "missing"]])
    # It is read by the training set, so what the other sets admit does not help.
    cfg = hac_config(hac, **use)
    cfg.train_dataloader.dataset.optional_modalities = ["video"]
    assert outcome(cfg)[0] == 1
    cfg = hac_config(hac, **use)
    cfg.val_dataloader.dataset.optional_modalities = []
    assert outcome(cfg)[0] == 0
    # Without any modality there is nothing to recognize the clip by.
    assert outcome(hac_config(hac, modalities=["audio"]))[0] == 1


def test_a_modality_that_no_clip_has_is_a_misspelt_folder(hac, tmp_path, capsys):
    (hac / "animal/audio").rename(hac / "animal/Audio")
    code, rows = run(hac_config(hac), tmp_path, quick=True)
    assert code == 1 and {tuple(row[3:5]) for row in rows} == {("audio", "admitted")}
    out = squash(capsys.readouterr().out)
    assert "animal source train 4 4 ok 4 ok 4 missing (100%)" in out
    assert "no train clip of animal has audio: is its folder where" in out
    assert "no test clip of animal has audio" in out and "cartoon has" not in out
    assert run(hac_config(hac), tmp_path, quick=True, allow=["missing"])[0] == 0


def test_a_clip_in_both_splits_is_listed_once(hac, tmp_path):
    media.write_split(hac, "human", "test", [("train_0.mp4", 0)])
    (hac / "human/videos/train_0.mp4").unlink()
    code, found = run(hac_config(hac), tmp_path, quick=True)
    assert code == 1 and len(found) == 1


def test_datasets_within_datasets(hac, tmp_path, capsys):
    (hac / "human/videos/train_0.mp4").unlink()
    train = hac_config(hac).train_dataloader.dataset
    both = [dict(train, sources=["animal"]), dict(train, sources=["human"])]
    both = dict(type="ConcatDataset", datasets=both)
    dataset = dict(type="RepeatDataset", times=3, dataset=both)
    cfg = Config(dict(train_dataloader=dict(dataset=dataset)))
    code, rows = run(cfg, tmp_path, quick=True)
    assert code == 1 and [row[2] for row in rows] == ["human/train_0"]
    out = squash(capsys.readouterr().out)
    assert "animal source train 4 4 ok" in out and "human source train 4 3 ok" in out


def frame(folder, number):
    return f"{folder}/frame_{number:010d}.jpg"


def test_epic_with_every_damage(clean_epic, tmp_path, capsys):
    epic = Path(shutil.copytree(clean_epic, tmp_path / "data"))
    rgb, flow = "rgb/train/D1/P08_01", "flow/train/D1/P08_01"
    # D1's train video. Segments [11, 24), [30, 33), [40, 48); flow 6-11, 15, 20-23.
    (epic / frame(rgb, 16)).unlink()
    (epic / frame(rgb, 31)).write_bytes(b"")
    path = epic / frame(rgb, 47)
    path.write_bytes(path.read_bytes()[:-1])
    (epic / frame(f"{flow}/u", 7)).write_text("no picture")
    small = np.zeros((8, 8), np.uint8)
    cv2.imwrite(str(epic / frame(f"{flow}/v", 15)), small)
    cv2.imwrite(str(epic / frame(f"{flow}/v", 22)), small)
    # Its test video: no folder at all, and half a second of sound.
    shutil.rmtree(epic / "flow/test/D1/P08_02/v")
    media.write_wav(epic / "rgb/test/D1/P08_02.wav", media.tone(0.5))
    # D2: no sound, and sound that is silent from 0.45 to 0.6 s.
    (epic / "rgb/train/D2/P01_01.wav").unlink()
    sound = media.tone(1.0)
    sound[7200:9600] = 0
    media.write_wav(epic / "rgb/test/D2/P01_02.wav", sound)

    code, rows = run(epic_config(epic), tmp_path)
    assert code == 1
    D1, D2 = "D1/P08_0{}/{}".format, "D2/P01_0{}/{}".format
    test_flow, lost = "flow/test/D1/P08_02/v", "rgb/train/D2/P01_01.wav"
    short, silent = "rgb/test/D1/P08_02.wav", "rgb/test/D2/P01_02.wav"
    assert sorted(row[2:6] for row in rows) == sorted(
        [
            [D1(1, 0), "video", "damaged", rgb],
            [D1(1, 0), "flow", "damaged", f"{flow}/u"],
            [D1(1, 1), "video", "damaged", rgb],
            [D1(1, 1), "flow", "damaged", f"{flow}/u"],
            [D1(1, 2), "video", "damaged", rgb],
            [D1(1, 2), "flow", "damaged", f"{flow}/v"],
            *([D1(2, i), "flow", "missing", test_flow] for i in (3, 4, 5)),
            # [0.5, 0.55) and [0.67, 0.80) s.
            *([D1(2, i), "audio", "admitted", short] for i in (4, 5)),
            *([D2(1, i), "audio", "admitted", lost] for i in (6, 7, 8)),
            [D2(2, 10), "audio", "admitted", silent],
        ]
    )
    reasons = {(row[2], row[3]): row[6] for row in rows}
    assert f"{frame(rgb, 16)}: there is no such frame" in reasons[D1(1, 0), "video"]
    assert "cut off after" in reasons[D1(1, 2), "video"]
    assert "(16, 24)" in reasons[D1(1, 1), "flow"]
    sizes = "frames differ in size (h, w): [(8, 8), (16, 24)]"
    assert sizes in reasons[D1(1, 2), "flow"]
    assert "before the segment from 0.50" in reasons[D1(2, 4), "audio"]
    out = squash(capsys.readouterr().out)
    # A file that clips share is listed once.
    assert out.count(f"{test_flow} does not exist (and 2 more clips)") == 1
    assert "no train clip of D2 has audio" in out
    # The first, the middle and the last frame: not 7 and 16.
    quick = run(epic_config(epic), tmp_path, quick=True)[1]
    found = [row[2:4] for row in rows if row not in quick]
    assert found == [[D1(1, 0), "video"], [D1(1, 0), "flow"]]


def test_one_frame_has_no_flow(tmp_path):
    root = media.write_epic(tmp_path / "data", segments=[(11, 12)])
    for path in (root / media.EPIC_FOLDER).iterdir():
        text = path.read_text().replace("00:00:00.20", "00:00:00.30")
        path.write_text(text)
    code, rows = run(epic_config(root), tmp_path, quick=True)
    assert code == 1 and len(rows) == 6
    assert {tuple(row[3:]) for row in rows} == {
        ("flow", "missing", "", "the split has no file for it")
    }


# --- one clip


@pytest.mark.parametrize("memory", [1, 3 * 24 * 32 * 3, 1 << 20])
def test_all_frames_are_decoded_in_pieces(memory, monkeypatch):
    monkeypatch.setattr(check, "_MEMORY", memory)
    asked = []

    def decode(results):
        asked.append(results["frame_inds"].tolist())
        image = np.zeros((24, 32, 3), np.uint8)
        return dict(results, imgs=[image] * len(results["frame_inds"]))

    def never(results):
        raise AssertionError("behind the decoder")

    steps = [lambda results: results, decode, never]
    segment = dict(start_index=5, total_frames=8)
    assert check.DecodeAll(steps, False)(segment)["total_frames"] == 8
    assert sum(asked, []) == list(range(5, 13))
    assert max(map(len, asked)) == min(max(memory // (24 * 32 * 3), 1), 7)
    asked.clear()
    check.DecodeAll(steps, True)(segment)
    assert sum(asked, []) == [5, 9, 12]
    # The published sampling calls nine frames eight and reaches all of them.
    asked.clear()
    published = dict(start_index=0, total_frames=8, decode_shift=(-1, 9))
    check.DecodeAll(steps, False)(published)
    assert sum(asked, []) == list(range(9))
    with pytest.raises(UnreadableMediaError, match="the clip has 0 frames"):
        check.DecodeAll(steps, False)(dict(segment, total_frames=0, filename="a"))


def remux(source, target):
    """Copies the packets. MP4's index then lies behind the pictures."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)
    return target


@pytest.mark.parametrize("index_first", [True, False])
def test_a_video_that_was_cut_anywhere(tmp_path, index_first):
    path = tmp_path / "a.mp4"
    media.write_video(path, media.smooth_frames(12))
    if not index_first:
        path = remux(path, tmp_path / "b.mp4")
    whole = path.read_bytes()
    path.write_bytes(whole + b"\xff" * 100)  # rubbish behind it does no harm
    assert reading("video", str(path)).kind == ""
    files = []
    for cut in [0, 7, *range(8, len(whole), len(whole) // 40), len(whole) - 1]:
        files.append(str(tmp_path / f"cut_{cut}.mp4"))
        Path(files[-1]).write_bytes(whole[:cut])
    kinds = []
    for found in readings("video", *files):
        kinds.append(found.kind)
        # The index may end with things that no reader needs.
        assert found.kind == "damaged" or found.seconds == 1.2
    assert kinds.count("damaged") >= len(kinds) - 2


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
@pytest.mark.parametrize("place", [0.5, 0.97])
def test_a_video_that_was_overwritten_inside(tmp_path, codec, place):
    path = tmp_path / "a.mp4"
    frames = media.smooth_frames(30, height=64, width=64)
    options = {"preset": "veryfast", "crf": "28"} if codec == "libx264" else {}
    media.write_video(path, frames, codec=codec, options=options)
    data = bytearray(path.read_bytes())
    start = data.find(b"mdat") + int(place * (len(data) - data.find(b"mdat")))
    end = len(data) if place > 0.9 else start + 60
    data[start:end] = bytes(end - start)
    path.write_bytes(data)
    assert reading("video", str(path)).kind == "damaged"
    if place > 0.9:  # the tail is among the three frames
        assert reading("video", str(path), quick=True).kind == "damaged"


def test_random_damage_is_found(tmp_path):
    source, files = tmp_path / "a.mp4", []
    frames = media.smooth_frames(30, height=64, width=64)
    options = {"preset": "veryfast", "crf": "28"}
    media.write_video(source, frames, options=options)
    whole = np.frombuffer(source.read_bytes(), np.uint8)
    random = np.random.default_rng(0)
    for i in range(20):
        data = whole.copy()
        data[random.integers(len(data), size=15)] = random.integers(256, size=15)
        files.append(str(tmp_path / f"{i}.mp4"))
        Path(files[-1]).write_bytes(data.tobytes())
    cfg = listed_config("video", [dict(files=dict(video=file)) for file in files])
    items = [row.items["video"] for row in check.collect(cfg)]
    kinds = [found.kind for found in check.read_all(items, 2).values()]
    # Bytes that nobody reads are no damage, but there are few.
    assert set(kinds) <= {"", "damaged"} and kinds.count("damaged") > 15


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
    assert reading("video", str(path)).kind == "damaged"


def test_segments_of_a_video(tmp_path):
    path = str(tmp_path / "a.mp4")
    media.write_video(path, media.smooth_frames(30))
    inside = reading("video", path, extras=dict(start_index=20, total_frames=10))
    assert inside.kind == "" and inside.seconds == 1.0
    behind = reading("video", path, extras=dict(start_index=20, total_frames=11))
    assert behind.kind == "damaged" and "frames 20 to 30 is not in" in behind.reason
    folder = str(tmp_path)
    assert reading("video", folder).kind == "damaged"
    extras = dict(filename_tmpl="{}.jpg")
    found = reading("video", folder, pipeline=EPIC["video"], extras=extras)
    assert found[:3] == ("damaged", folder, "KeyError: 'total_frames'")


def test_sound(tmp_path):
    path = str(tmp_path / "a.flac")
    noise = 0.5 * np.random.default_rng(0).uniform(-1, 1, 48000)
    media.write_wav(path, noise)
    assert reading("audio", path).seconds == 3.0
    Path(path).write_bytes(Path(path).read_bytes()[:40000])
    assert reading("audio", path).kind == "damaged"
    path = str(tmp_path / "a.wav")
    media.write_wav(path, media.tone(12.0))
    # Ten seconds are read; how much there is of the segment is known all the same.
    for stop, seconds in ((9.0, 8.0), (11.5, 10.5), (20.0, 11.0)):
        found = reading("audio", path, pipeline=SEGMENT, start=1.0, stop=stop)
        assert (found.kind, found.seconds) == ("", seconds)
    # -80.1 dB is less than the pipeline's threshold.
    for decibels, kind in ((-79.9, ""), (-80.1, "silent")):
        media.write_wav(path, np.full(999, 10 ** (decibels / 20)), subtype="FLOAT")
        assert reading("audio", path).kind == kind
    # A spectrogram's window needs 64 samples where nothing repeats the sound.
    pipeline = [SEGMENT[0] | dict(span="file"), SEGMENT[2]]
    for samples, kind in ((64, ""), (63, "damaged")):
        media.write_wav(path, media.tone(1.0)[:samples])
        assert reading("audio", path, pipeline=pipeline).kind == kind


# --- processes


def misbehaving(tmp_path, *names):
    """A config of files with these words in their names."""
    rows = []
    for name in names:
        media.write_wav(tmp_path / f"{name}.wav", media.tone(0.1))
        rows.append(dict(files=dict(audio=str(tmp_path / f"{name}.wav"))))
    pipeline = [dict(type=Misbehave), *media.pipelines()["audio"]]
    return listed_config("audio", rows, pipeline)


def test_a_bad_decoder_costs_its_file_only(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(check, "_SECONDS", 3.0)
    cfg = misbehaving(tmp_path, "a", "crash", "b", "memory", "hang", "c")
    code, rows = run(cfg, tmp_path)
    assert code == 1
    assert [(row[2], row[4], row[6]) for row in rows] == [
        ("d/1", "crash", rows[0][6]),
        ("d/3", "damaged", "MemoryError: much"),
        ("d/4", "timeout", "it was not finished within 3 s"),
    ]
    assert "the process that worked on it died" in rows[0][6]
    kinds = "3 ok, 1 damaged, 1 timeout, 1 crash"
    assert f"d source train 6 {kinds}" in squash(capsys.readouterr().out)


def test_ctrl_c_ends_all(tmp_path, capsys):
    cfg = misbehaving(tmp_path, "hang_1", "hang_2")

    def interrupt():
        while len(list(tmp_path.glob("*.pid"))) < 2:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert check.check(cfg, 2) == 130
    thread.join()
    assert multiprocessing.active_children() == []
    assert "interrupted; nothing is reported" in capsys.readouterr().err


# --- usage


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(data_root="nowhere"), "no split file nowhere/HAC_Splits/HAC_train"),
        (dict(target="dog"), "unknown domain 'dog' in targets"),
        (dict(type="NoSuchDataset"), "NoSuchDataset is not in the"),
        (dict(type="VideoDataset"), "train_dataloader: "),
    ],
)
def test_config_errors_are_the_datasets_own(clean_hac, change, message):
    cfg = hac_config(clean_hac)
    cfg.train_dataloader.dataset.update(change)
    with pytest.raises(UsageError, match=message):
        check.check(cfg, 1)


def test_requests_that_cannot_work(hac, tmp_path):
    with pytest.raises(UsageError, match="no train_dataloader, val_dataloader or test"):
        check.check(Config(dict(train_dataloader=None)), 1)
    with pytest.raises(UsageError, match="--workers must be 1 or more, got 0"):
        check.check(hac_config(hac), 0)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="--csv: .*Not a directory|File exists"):
        check.check(hac_config(hac), 1, csv_file=f"{tmp_path}/file/a.csv")
    (tmp_path / "list.txt").write_text("a.mp4 0")
    other = dict(type="VideoDataset", ann_file=f"{tmp_path}/list.txt", pipeline=[])
    with pytest.raises(UsageError, match="val_.*: VideoDataset is not a MultiModalDa"):
        check.check(Config(dict(val_dataloader=dict(dataset=other))), 1)
    media.write_split(hac, "human", "train", [("train_0.mp4", 9)])
    with pytest.raises(UsageError, match="line 1: label '9' is none of the 7 classes"):
        check.check(hac_config(hac), 1)


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
    assert out.count("mp4 does not exist") == 20 and "75 problems:" in out
    assert f"and 55 more in {tmp_path}/new/problems.csv" in out
    assert check.check(cfg, 2) == 1
    assert "and 55 more (--csv FILE lists all)" in capsys.readouterr().out


def write_config(path, cfg):
    """As a file, with the model that --modalities checks against."""
    for split in ("train", "val", "test"):  # a file does not keep the pipelines' order
        cfg[f"{split}_dataloader"].dataset.modalities = ["video", "flow", "audio"]
    cfg.model = dict(encoders=dict(video={}, flow={}, audio={}))
    cfg.custom_imports = dict(imports=["mmaction_mbcd"])
    cfg.dump(str(path))


def test_the_command_line(hac, tmp_path, capsys):
    config, report = tmp_path / "config.py", tmp_path / "problems.csv"
    write_config(config, hac_config(hac))
    (hac / "human/videos/train_0.mp4").write_bytes(b"")
    (hac / "human/audio/train_0.wav").unlink()

    done = run_script(
        ROOT / "tools" / "data" / "check.py", config, "--csv", report,
        "--workers", 1, "--modalities", "video", cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    header, row = report.read_text().splitlines()
    assert header == "domain,class,sample_id,modality,kind,file,reason"
    file = f"{hac}/human/videos/train_0.mp4"
    assert row.startswith(f"human,sleeping,human/train_0,video,damaged,{file},")
    assert "animal source train 4 4 ok" in squash(done.stdout)
    tool = load_tool("data/check")
    options = [str(config), "--quick", "--allow", "damaged", "silent", "--workers", "1"]
    assert tool.main(options) == 0
    assert "1 problem, 1 of them allowed:" in capsys.readouterr().out
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
