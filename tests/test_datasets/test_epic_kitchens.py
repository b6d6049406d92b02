import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from media import (
    EPIC_FOLDER as FOLDER,
)
from media import (
    EPIC_LAYOUTS as LAYOUTS,
)
from media import (
    EPIC_SEGMENTS as SEGMENTS,
)
from media import (
    HEIGHT,
    WIDTH,
    tone,
    write_epic,
    write_epic_clips,
    write_wav,
)
from mmaction_mbcd.datasets import EPICKitchensDataset, SampleIndex
from mmaction_mbcd.datasets.epic_splits import CLASSES
from mmaction_mbcd.datasets.transforms import (
    DecodeFlowFrames,
    DecodeFrames,
    UnreadableMediaError,
)
from mmaction_mbcd.datasets.transforms.frames import decode_image
from mmaction_mbcd.preparation.epic_splits import convert, read_splits
from tests_support import load_tool

SPLITS = (
    Path(
        os.environ.get("MBCD_SPLITS")
        or Path(__file__).parents[2].parent / "shared" / "data" / "splits"
    )
    / "epic"
)
ALL = ("video", "flow", "audio")
COUNTS = dict(D1=(1543, 435), D2=(2495, 750), D3=(3897, 974))


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    return {x: write_epic(tmp_path_factory.mktemp(x), x) for x in LAYOUTS}


@pytest.fixture
def tree(trees, tmp_path):
    """A copy of the original layout, to be damaged."""
    return Path(shutil.copytree(trees["original"], tmp_path / "epic"))


def pipelines(train=False, clip_len=4, rgb_interval=2, flow_interval=1):
    def clip(interval):
        return dict(
            type="SampleClip",
            clip_len=clip_len,
            frame_interval=interval,
            test_mode=not train,
        )

    shape = dict(type="FormatShape", input_format="NCTHW", collapse=True)
    return dict(
        video=[
            dict(type="OpenVideo"),
            clip(rgb_interval),
            dict(type="DecodeFrames"),
            shape,
        ],
        flow=[
            dict(type="OpenFlowPair"),
            clip(flow_interval),
            dict(type="DecodeFlowFrames"),
            shape,
        ],
        audio=[
            dict(type="LoadWaveform", span="segment", max_seconds=10),
            dict(type="TileWaveform", length=8000),
            dict(type="LogSpectrogram", nperseg=64, noverlap=32),
            dict(type="FormatAudio"),
        ],
    )


def build(root, use="test", target="D1", **kwargs):
    pipes = kwargs.pop("pipelines", None) or pipelines(train=use == "train")
    return EPICKitchensDataset(
        data_root=str(root), use=use, target=target, pipelines=pipes, **kwargs
    )


def unchecked(root, **kwargs):
    """What is absent may be all of a split: what a sample says is looked at."""
    data = build(root, lazy_init=True, **kwargs)
    data.full_init()
    return data


def rgb_frames(item):
    """Frame numbers, read from the pictures' red channel."""
    values = item["inputs"]["video"].float().mean((2, 3))
    assert values[1:].max() < 8
    return [round(v / 3) for v in values[0].tolist()]


def flow_frames(item):
    u, v = item["inputs"]["flow"].float().mean((2, 3))
    frames = [round(x / 5) for x in u.tolist()]
    assert frames == [round((255 - y) / 5) for y in v.tolist()]
    return frames


# --- the published split files ----------------------------------------------


@pytest.fixture
def real(tmp_path):
    if not SPLITS.is_dir():
        pytest.skip(f"the real split files are not in {SPLITS} (set MBCD_SPLITS)")
    convert(read_splits(SPLITS), tmp_path / FOLDER)
    return tmp_path


@pytest.mark.parametrize("target", COUNTS)
def test_published_counts(real, target):
    others = {d: n for d, n in COUNTS.items() if d != target}
    train = build(real, "train", target, absent_ok=ALL)
    assert train.counts == {d: n[0] for d, n in others.items()}
    # The published steps per epoch at batch 16; the last, smaller batch is dropped.
    assert len(train) // 16 == dict(D1=399, D2=340, D3=252)[target]
    for use in ("val", "in_domain"):
        counts = build(real, use, target, absent_ok=ALL).counts
        assert counts == {d: n[1] for d, n in others.items()}
        assert sum(counts.values()) == dict(D1=1724, D2=1409, D3=1185)[target]
    assert len(build(real, "test", target, absent_ok=ALL)) == sum(COUNTS[target])
    only = build(real, "test", target, eval_split="test", absent_ok=ALL)
    assert len(only) == COUNTS[target][1]


def test_published_rows(real):
    data = build(real, "train", sources="D1", target=None, absent_ok=ALL)
    info = data.get_data_info(0)
    # start_frame 245, stop_frame 350: ceil(245 / 2) = 123, int(105 / 2) = 52.
    assert (info["start"], info["stop"]) == (4.09, 5.84)
    assert info["label"] == CLASSES.index("open") == 2
    video, flow = info["extras"]["video"], info["extras"]["flow"]
    assert (video["start_index"], video["total_frames"]) == (245, 105)
    assert (flow["start_index"], flow["total_frames"]) == (123, 52)
    folder = f"{real}/rgb/train/D1/P08_01"
    name = video["filename_tmpl"].format(video["start_index"])
    assert f"{info['files']['video']}/{name}" == f"{folder}/frame_0000000245.jpg"
    assert flow["filename_tmpl"].format(123) == "frame_0000000123.jpg"


def test_names():
    assert EPICKitchensDataset.METAINFO == dict(
        classes=("take", "put", "open", "close", "wash", "cut", "mix", "pour"),
        domains=("D1", "D2", "D3"),
    )


# --- frame numbers ----------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_centre_clips(trees, layout):
    """4 frames at interval 2 (RGB) and 1 (flow), the window in the middle."""
    data = build(trees[layout])
    assert len(data) == 6
    expected = [
        # A window of 7 in 13: 11 + 3. A window of 4 in 6: 6 + 1.
        ([14, 16, 18, 20], [7, 8, 9, 10]),
        # 0 2 4 6 modulo 3; one flow frame.
        ([30, 32, 31, 30], [15, 15, 15, 15]),
        # 7 in 8: 40 + 0. 4 in 4.
        ([40, 42, 44, 46], [20, 21, 22, 23]),
    ]
    # The train split of the target, then its test split.
    for i, (rgb, flow) in enumerate(expected + expected):
        item = data[i]
        assert rgb_frames(item) == rgb
        assert flow_frames(item) == flow
        assert item["data_samples"].present == dict(video=True, flow=True, audio=True)
        assert item["data_samples"].gt_label.tolist() == [i]
        split = "train" if i < 3 else "test"
        root, sound = LAYOUTS[layout]
        files = data.get_data_info(i)["files"]
        video = f"P08_0{1 if i < 3 else 2}"
        base = f"{trees[layout]}/{{}}/{split}/D1/{video}"
        assert files["video"] == base.format(root)
        assert files["flow"] == tuple(f"{base.format('flow')}/{c}" for c in "uv")
        assert files["audio"] == f"{base.format(sound)}.wav"


def test_every_frame_up_to_the_last(trees):
    """8 frames at interval 1: the end, stop - 1, is read; stop is not."""
    pipes = pipelines(clip_len=8, rgb_interval=1)
    data = build(trees["original"], pipelines=pipes)
    assert rgb_frames(data[2]) == [40, 41, 42, 43, 44, 45, 46, 47]
    assert flow_frames(data[2]) == [20, 21, 22, 23, 20, 21, 22, 23]
    pipes = pipelines(clip_len=13, rgb_interval=1)
    data = build(trees["original"], pipelines=pipes)
    assert rgb_frames(data[0]) == list(range(11, 24))
    # 0 ... 12 modulo 6.
    assert flow_frames(data[0]) == [6 + i % 6 for i in range(13)]


def test_train_clips_stay_in_their_segment(trees):
    """Every start of the 13-frame segment occurs, and nothing outside is read."""
    data = build(trees["original"], "train", target="D2", sources="D1")
    assert len(data) == 3
    starts, flow_starts = set(), set()
    for epoch in range(60):
        for i, (start, stop) in enumerate(SEGMENTS):
            item = data[SampleIndex(i, (0, epoch, i))]
            length = stop - start
            rgb, flow = rgb_frames(item), flow_frames(item)
            first = rgb[0] - start
            assert rgb == [start + (first + 2 * k) % length for k in range(4)]
            half, begin = length // 2, (start + 1) // 2
            offset = flow[0] - begin
            assert flow == [begin + (offset + k) % half for k in range(4)]
            if i == 0:
                starts.add(rgb[0])
                flow_starts.add(flow[0])
            elif i == 1:
                assert (rgb[0], flow[0]) == (30, 15)
    # A window of 8 in 13 has 6 places, of 4 in 6 has 3.
    assert starts == set(range(11, 17)) and flow_starts == {6, 7, 8}


def test_repeated_frames_are_copies(trees):
    folder = trees["original"] / "rgb" / "train" / "D1" / "P08_01"
    results = dict(
        filename=str(folder),
        filename_tmpl="frame_{:010d}.jpg",
        frame_inds=np.array([30, 31, 30]),
    )
    imgs = DecodeFrames().transform(results)["imgs"]
    before = imgs[2].copy()
    imgs[0][:] = 255
    assert np.array_equal(imgs[2], before)


def test_audio_is_the_segment(trees):
    data = build(trees["original"], modalities=["audio"])
    info = data.get_data_info(0)
    # [11, 24) at 60 fps, in hundredths of a second.
    assert (info["start"], info["stop"]) == (0.18, 0.40)
    load = data.pipelines["audio"][0]
    results = load.transform(dict(filename=info["files"]["audio"], **info))
    assert results["audio_span"] == pytest.approx((0.18, 0.40))
    assert len(results["audios"]) == round(0.22 * 16000)
    expected = tone(1.0)[2880:6400]
    assert np.allclose(results["audios"], expected, atol=1e-4)


def test_at_most_ten_seconds_of_audio(tmp_path):
    write_wav(tmp_path / "a.wav", tone(12.0))
    data = build(write_epic(tmp_path, segments=[(11, 24)]), modalities=["audio"])
    step = data.pipelines["audio"][0]
    row = dict(filename=str(tmp_path / "a.wav"), start=1.0, stop=11.5)
    assert step.transform(row)["audio_span"] == pytest.approx((1.0, 11.0))


def test_both_layouts_give_the_same(trees):
    one, other = (build(trees[x]) for x in LAYOUTS)
    for i in range(len(one)):
        a, b = one[i], other[i]
        for modality in a["inputs"]:
            assert torch.equal(a["inputs"][modality], b["inputs"][modality])


def test_one_frame_has_no_flow(tmp_path):
    root = write_epic(tmp_path, segments=[(11, 12)])
    rows = root / FOLDER / "D1_train.csv"
    text = rows.read_text().replace(
        "00:00:00.18,00:00:00.20", "00:00:00.18,00:00:00.30"
    )
    rows.write_text(text)
    data = build(root, absent_ok=("flow", "audio"))
    item = data[0]
    assert rgb_frames(item) == [11] * 4
    assert item["data_samples"].present["flow"] is False


# --- damage -----------------------------------------------------------------


def test_missing_frame(tree):
    gone = tree / "rgb/train/D1/P08_01/frame_0000000016.jpg"
    gone.unlink()
    data = build(tree)
    with pytest.raises(UnreadableMediaError) as error:
        data[0]
    assert str(error.value).startswith(
        f"cannot read video of sample 'D1/P08_01/0' from {gone}: there is no such frame"
    )
    assert rgb_frames(data[1]) == [30, 32, 31, 30]


@pytest.mark.parametrize("part", "uv")
def test_missing_flow_frame(tree, part):
    gone = tree / f"flow/test/D1/P08_02/{part}/frame_0000000015.jpg"
    gone.unlink()
    with pytest.raises(UnreadableMediaError, match=f"read flow .* from {gone}: there"):
        build(tree)[4]


@pytest.mark.parametrize("modality", ["video", "flow"])
@pytest.mark.parametrize(
    "keep, reason",
    [
        (0, "the file is empty"),
        (3, "the JPEG is cut off after 3 bytes"),
        (0.5, "the JPEG is cut off"),
        (-1, "the JPEG is cut off"),
    ],
)
def test_truncated_frame(tree, modality, keep, reason):
    path = tree / "rgb/train/D1/P08_01/frame_0000000014.jpg"
    if modality == "flow":
        path = tree / "flow/train/D1/P08_01/v/frame_0000000008.jpg"
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(UnreadableMediaError) as error:
        build(tree)[0]
    text = str(error.value)
    assert text.startswith(
        f"cannot read {modality} of sample 'D1/P08_01/0' from {path}"
    )
    assert reason in text


def test_a_preallocated_or_foreign_file_is_not_an_image():
    random = np.random.default_rng(0)
    picture = random.integers(0, 255, (32, 48, 3), np.uint8)
    jpeg = cv2.imencode(".jpg", picture)[1].tobytes()
    assert decode_image(jpeg).shape == (32, 48, 3)
    assert decode_image(jpeg, grey=True).shape == (32, 48)
    # Every cut is found, and padding behind the end is none.
    for cut in range(len(jpeg)):
        with pytest.raises(ValueError):
            decode_image(jpeg[:cut])
    half = len(jpeg) // 2
    with pytest.raises(ValueError, match="cut off"):
        decode_image(jpeg[:half] + bytes(len(jpeg) - half))
    assert np.array_equal(decode_image(jpeg + bytes(9)), decode_image(jpeg))
    with pytest.raises(ValueError, match="not an image"):
        decode_image(b"<html>404</html>")
    png = cv2.imencode(".png", picture)[1].tobytes()
    assert np.array_equal(decode_image(png), picture[..., ::-1])


def test_frames_of_two_sizes(tree):
    folder = tree / "rgb/train/D1/P08_01"
    cv2.imwrite(str(folder / "frame_0000000016.jpg"), np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(UnreadableMediaError, match=f"{folder}: its frames differ in"):
        build(tree)[0]


def test_flow_components_of_two_sizes(tree):
    path = tree / "flow/train/D1/P08_01/v/frame_0000000015.jpg"
    cv2.imwrite(str(path), np.zeros((8, 8), np.uint8))
    with pytest.raises(UnreadableMediaError, match=r"x frames are \(16, 24\) pixels"):
        build(tree)[1]


@pytest.mark.parametrize(
    "modality, folder",
    [("video", "rgb/train/D1/P08_01"), ("flow", "flow/train/D1/P08_01/v")],
)
def test_missing_folder(tree, modality, folder):
    shutil.rmtree(tree / folder)
    with pytest.raises(FileNotFoundError) as error:
        unchecked(tree)[0]
    assert f"has no {modality}: {tree / folder} does not exist" in str(error.value)


def test_missing_wav_is_a_missing_modality(tree):
    (tree / "rgb/train/D1/P08_01.wav").unlink()
    item = unchecked(tree)[0]
    assert item["data_samples"].present == dict(video=True, flow=True, audio=False)
    assert not item["inputs"]["audio"].any()
    with pytest.raises(FileNotFoundError, match="P08_01.wav does not exist"):
        unchecked(tree, optional_modalities=())[0]


def test_segment_behind_the_sound_is_a_missing_modality(tree):
    # Half a second of sound; the segments start at 0.18, 0.5 and 0.67 s.
    write_wav(tree / "rgb/train/D1/P08_01.wav", tone(0.5))
    data = build(tree)
    items = [data[i] for i in range(3)]
    assert [x["data_samples"].present["audio"] for x in items] == [True, False, False]
    assert not items[1]["inputs"]["audio"].any()
    # An empty file is damage.
    (tree / "rgb/train/D1/P08_01.wav").write_bytes(b"")
    with pytest.raises(UnreadableMediaError, match="P08_01.wav: the file is empty"):
        data[0]


def test_no_sound_file_is_an_error_if_it_is_no_sound(tree):
    path = tree / "rgb/train/D1/P08_01.wav"
    path.write_bytes(b"RIFF nothing")
    with pytest.raises(UnreadableMediaError, match=f"read audio .* from {path}"):
        build(tree)[0]


@pytest.mark.parametrize(
    "old, new, message",
    [
        (",11,24,", ",24,11,", "line 2: stop_frame 11 is not after start_frame 24"),
        (",open,0", ",open,", "line 2: verb_class is missing"),
        (",open,0", ",open,nan", "line 2: verb_class is missing"),
        (",open,0", ",open,8", "line 2: verb_class 8 is none of the 8 classes"),
        ("verb_class", "verb_classes", "lacks the column 'verb_class'"),
        ("0,P08,P08", "0,P01,P01", "uid 0 is of participant P01, but D1 is P08"),
    ],
)
def test_faulty_rows(tree, old, new, message):
    path = tree / FOLDER / "D1_train.csv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=f"{path}.*{message}"):
        build(tree)


def test_missing_annotation(tree):
    (tree / FOLDER / "D1_train.csv").unlink()
    with pytest.raises(FileNotFoundError, match="D1_train.csv .* Download the MM-SADA"):
        build(tree)


def test_published_pickles_are_converted_by_the_command_of_the_error(tree):
    folder = tree / FOLDER
    before = [build(tree).get_data_info(i) for i in range(6)]
    for file in folder.glob("*.csv"):
        table = pd.read_csv(file)
        # Text as Python objects, as in the published files.
        texts = [c for c in table if not pd.api.types.is_numeric_dtype(table[c])]
        table = table.astype(dict.fromkeys(texts, object))
        table.columns = table.columns.astype(object)
        table.to_pickle(file.with_suffix(".pkl"))
        file.unlink()
    with pytest.raises(FileNotFoundError) as error:
        build(tree)
    tool, *arguments = str(error.value).split("`python tools/")[1].rstrip("`").split()
    assert arguments == [str(folder)] * 2
    assert load_tool(tool.removesuffix(".py")).main(arguments) == 0
    assert [build(tree).get_data_info(i) for i in range(6)] == before


def test_transforms_read_nothing_but_the_named_frames(trees):
    """The stock sampler's indices are file numbers; `u` is channel 0."""
    folder = trees["original"] / "flow" / "train" / "D1" / "P08_01"
    results = dict(
        filename=(str(folder / "u"), str(folder / "v")),
        filename_tmpl="frame_{:010d}.jpg",
        frame_inds=np.array([[6], [11]]),
    )
    results = DecodeFlowFrames().transform(results)
    assert [img.shape for img in results["imgs"]] == [(HEIGHT, WIDTH, 2)] * 2
    means = [img.mean((0, 1)).round().tolist() for img in results["imgs"]]
    assert means == [[30, 225], [55, 200]]
    assert results["img_shape"] == results["original_shape"] == (HEIGHT, WIDTH)


# --- one file per segment ----------------------------------------------------

PLACES = ["EPIC-mp4", FOLDER + "/EPIC-mp4", "."]


@pytest.mark.parametrize("place", PLACES)
def test_clips_hold_the_frames_of_the_images(trees, tmp_path, place):
    """Grey clips against red images: every sampled frame by its number."""
    images, clips = (
        build(root) for root in (trees["original"], write_epic_clips(tmp_path, place))
    )
    assert len(clips) == len(images) == 6
    for index in range(6):
        item, other = clips[index], images[index]
        values = item["inputs"]["video"].float().mean((0, 2, 3))
        assert [round(v / 3) for v in values.tolist()] == rgb_frames(other)
        u, v = item["inputs"]["flow"].float().mean((2, 3))
        expected = flow_frames(other)
        assert [round(x / 5) for x in u.tolist()] == expected
        assert [round((255 - y) / 5) for y in v.tolist()] == expected
        assert torch.equal(item["inputs"]["audio"], other["inputs"]["audio"])
        assert all(item["data_samples"].present.values())


def test_published_sampling_of_clips(tmp_path):
    """[11, 24) is 13 frames: 12 count, 4 of 2 start at (12 - 8 + 1) // 2 = 2, and the
    frame before each is decoded."""
    pipes = pipelines()
    pipes["video"][1]["centre"] = "0.x"
    data = build(write_epic_clips(tmp_path), pipelines=pipes, sampling="published")
    values = data[0]["inputs"]["video"].float().mean((0, 2, 3))
    assert [round(v / 3) for v in values.tolist()] == [11 + i for i in (1, 3, 5, 7)]


def test_images_are_preferred_and_a_missing_clip_is_named(trees, tmp_path):
    root = Path(shutil.copytree(trees["original"], tmp_path / "epic"))
    folder = root / "EPIC-mp4" / "video" / "train" / "D1"
    folder.mkdir(parents=True)
    (folder / "D1_P08_01_11_24_0.mp4").write_bytes(b"not looked at")
    assert rgb_frames(build(root)[0])
    for split in ("train", "test"):
        shutil.rmtree(root / "rgb" / split / "D1" / f"P08_0{1 + (split == 'test')}")
    (folder / "D1_P08_01_11_24_0.mp4").unlink()
    (folder / "D1_P08_01_30_33_1.mp4").touch()
    with pytest.raises(FileNotFoundError, match="D1_P08_01_11_24_0.mp4 does not exist"):
        unchecked(root)[0]
