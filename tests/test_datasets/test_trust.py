"""What a data set lacks, or contradicts, is said when its rows are read."""

import os
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
from mmengine.registry import init_default_scope

from media import (
    pipelines,
    smooth_frames,
    tone,
    write_hac,
    write_split,
    write_video,
    write_wav,
)
from mmaction_mbcd.datasets import (
    AbsentModalityError,
    HACDataset,
    UnreadableMediaError,
    multimodal_dataset,
    presence,
)
from mmaction_mbcd.datasets.epic_splits import read_split
from mmaction_mbcd.datasets.errors import AnnotationError, DataError
from mmaction_mbcd.datasets.transforms import LoadWaveform, OpenVideo, limits
from mmaction_mbcd.datasets.transforms.frames import decode_image
from mmaction_mbcd.datasets.transforms.readers import index_packets
from mmaction_mbcd.datasets.video_folder import read_annotations

ALL = ("video", "flow", "audio")


@pytest.fixture(autouse=True)
def _scope():
    init_default_scope("mmaction")


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clean")
    write_hac(folder, train=2, test=1, domains=("human", "animal"))
    # The same classes in both.
    write_split(folder, "human", "train", [("train_0.mp4", 1), ("train_1.mp4", 2)])
    write_split(folder, "human", "test", [("test_0.mp4", 1)])
    return folder


@pytest.fixture
def root(clean, tmp_path):
    """A copy, to be damaged."""
    return Path(shutil.copytree(clean, tmp_path / "data"))


@pytest.fixture
def said(monkeypatch):
    texts = []
    for module in (multimodal_dataset, presence):
        monkeypatch.setattr(module, "print_log", lambda text, **_: texts.append(text))
    return texts


def build(root, use="train", **kwargs):
    kwargs = dict(target="human", sources="animal", modalities=ALL) | kwargs
    made = pipelines(train=use == "train")
    return HACDataset(data_root=str(root), use=use, pipelines=made, **kwargs)


# --- absence -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("use", "domain", "split"),
    [("train", "animal", "train"), ("val", "animal", "test"), ("test", "human", "tr")],
)
def test_a_folder_that_is_misspelt_is_refused(root, use, domain, split):
    (root / domain / "audio").rename(root / domain / "Audio")
    with pytest.raises(AbsentModalityError) as error:
        build(root, use).refuse_absence()
    text = str(error.value)
    assert f"{split}" in text and f"clips of '{domain}' has audio" in text
    assert f"{root}/{domain}/audio/" in text and "misspelt" in text
    assert "--modalities video flow" in text and "absent_ok=['audio']" in text
    assert "\n" not in text
    # The ways out.
    build(root, use, modalities=("video", "flow")).refuse_absence()
    data = build(root, use, absent_ok="audio")
    data.refuse_absence()
    assert data[0]["data_samples"].present["audio"] is False
    assert "audio" in data.optional_modalities
    # A dataset is built without its files: to count its rows, say.
    data = build(root, use)
    assert len(data)
    for _ in range(2):
        with pytest.raises(AbsentModalityError):
            data.refuse_absence()


def test_every_absence_is_in_one_error(root):
    for domain in ("human", "animal"):
        for folder in ("audio", "flow"):
            (root / domain / folder).rename(root / domain / f"_{folder}")
    with pytest.raises(AbsentModalityError) as error:
        build(root, "val", watch_target=True).refuse_absence()
    text = str(error.value)
    # Test split of animal; train and test split of human; two modalities each.
    assert text.count("none of the ") == 6 and "--modalities video)" in text


def test_a_large_share_is_said_once_with_numbers(root, said):
    build(root).refuse_absence()
    assert not said
    (root / "animal/audio/train_1.wav").unlink()
    data = build(root)
    for _ in range(2):
        data.refuse_absence()
    (line,) = said
    assert "audio is absent in 1 of the 2 train clips of 'animal' (50%)" in line
    said.clear()
    build(root, absent_warning=0.5).refuse_absence()
    assert not said


def test_each_file_is_looked_at_once(root, monkeypatch):
    looked, look = [], presence.is_there
    monkeypatch.setattr(
        presence, "is_there", lambda path: looked.append(path) or look(path)
    )
    build(root).refuse_absence()
    # Two clips: video, two components of flow, sound.
    assert len(looked) == len(set(looked)) == 8


def test_what_may_not_be_looked_at_is_there(tmp_path, monkeypatch):
    """Rights cannot be taken from root, who runs this in a container."""

    def refuse(path, **kwargs):
        raise PermissionError(13, "Permission denied", path)

    assert not presence.is_there(str(tmp_path / "gone"))
    (tmp_path / "file").touch()
    assert not presence.is_there(str(tmp_path / "file" / "below"))
    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", refuse)
        found = presence.is_there(str(tmp_path / "hidden"))
    assert found


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(absent_ok="smell"), "unknown modality 'smell'"),
        (dict(absent_warning=5), "absent_warning is a share .* got 5"),
        (dict(max_skipped=-1), "max_skipped is a share .* got -1"),
        (dict(max_skipped="1%"), "max_skipped is a share .* got '1%'"),
        (dict(read_timeout=0), "read_timeout is in seconds.*got 0"),
    ],
)
def test_settings_that_cannot_be(root, kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(root, **kwargs)


# --- files that are none, and absurd sizes ---------------------------------------


def make(path, kind):
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
    elif kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("404: Not Found")


KINDS = dict(
    folder="it is a folder",
    pipe="it is a named pipe",
    device="it is a device",
    socket="it is a socket",
    empty=r"the file is empty \(0 bytes\)",
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("modality", ALL)
def test_what_is_not_a_file_is_damage(root, tmp_path_factory, kind, modality):
    names = dict(
        video="videos/train_0.mp4", flow="flow/train_0_flow_y.mp4",
        audio="audio/train_0.wav",
    )  # fmt: skip
    path = root / "animal" / names[modality]
    path.unlink()
    # The path of a socket is short; it is moved to where it is wanted.
    make(tmp_path_factory.getbasetemp() / "x", kind)
    (tmp_path_factory.getbasetemp() / "x").rename(path)
    data = build(root, absent_ok=ALL)  # damage is not absence, whatever is admitted
    with pytest.raises(UnreadableMediaError, match=KINDS[kind]) as error:
        data[0]
    assert str(path) in str(error.value)


def test_size_limits(tmp_path, monkeypatch):
    path = tmp_path / "big.mp4"
    with open(path, "wb") as file:
        file.truncate(limits.MAX_BYTES + 1)  # takes no space
    row = dict(filename=str(path), sample_id="a", modality="RGB", start_index=0)
    with pytest.raises(UnreadableMediaError, match="bytes, and more than 4,294,967"):
        OpenVideo()(row)
    write_video(path, smooth_frames(3))
    monkeypatch.setattr(limits, "MAX_PIXELS", 24 * 32 - 1)
    with pytest.raises(ValueError, match="says 32 x 24 pixels"):
        index_packets(path.read_bytes())


def test_headers_of_pictures():
    """A header of any size costs nothing to write."""
    import cv2

    picture = np.full((24, 32, 3), 90, np.uint8)
    for kind in (".jpg", ".png", ".bmp"):
        data = cv2.imencode(kind, picture)[1].tobytes()
        assert limits.image_size(data) == ((0, 0) if kind == ".bmp" else (32, 24))
        assert decode_image(data).shape == (24, 32, 3)
    jpeg = bytearray(cv2.imencode(".jpg", picture)[1].tobytes())
    place = jpeg.index(b"\xff\xc0") + 5
    jpeg[place : place + 4] = (30000).to_bytes(2, "big") * 2
    png = bytearray(cv2.imencode(".png", picture)[1].tobytes())
    png[16:24] = (30000).to_bytes(4, "big") * 2
    for data in (jpeg, png):
        with pytest.raises(ValueError, match="says 30000 x 30000 pixels"):
            decode_image(bytes(data))
    for cut in range(len(jpeg)):  # never an IndexError, never a loop
        limits.image_size(bytes(jpeg[:cut]))


def test_sound_whose_header_promises_hours(tmp_path):
    path = tmp_path / "a.flac"
    write_wav(path, tone(1.0))
    data = bytearray(path.read_bytes())
    # STREAMINFO's last 36 bits of bytes 18 to 25 count the samples.
    place = data.index(b"fLaC") + 8 + 13
    data[place] |= 0x0F
    data[place + 1 : place + 5] = b"\xff" * 4
    path.write_bytes(data)
    row = dict(filename=str(path), sample_id="a", modality_key="audio")
    with pytest.raises(UnreadableMediaError, match=r"promises 68,719,476,735 samples"):
        LoadWaveform()(row)


def test_the_start_of_a_long_sound_can_be_read(tmp_path, monkeypatch):
    monkeypatch.setattr("mmaction_mbcd.datasets.transforms.audio.MAX_SAMPLES", 16000)
    write_wav(tmp_path / "a.wav", tone(1.5))
    row = dict(filename=str(tmp_path / "a.wav"), sample_id="a", modality_key="audio")
    with pytest.raises(UnreadableMediaError, match="24,000 samples at 16000 Hz"):
        LoadWaveform()(dict(row))
    assert len(LoadWaveform(max_seconds=1)(dict(row))["audios"]) == 16000


# --- what is admitted and mentioned --------------------------------------------


def test_an_early_end_is_mentioned_for_a_few_samples(root, said):
    data = build(root)
    data[0], data[1]
    assert not said
    write_wav(root / "animal/audio/train_1.wav", tone(2.4))  # of 3 s
    data[0], data[1], data[1]
    (line,) = said
    assert "'animal/train_1': audio ends 0.6 s before another modality" in line
    said.clear()
    data = build(root)
    data._mentioned.update(range(10, 10 + multimodal_dataset.MENTIONED))
    data[1]
    assert not said


# --- annotations -----------------------------------------------------------------


def test_two_labels_of_a_clip(root):
    path = write_split(root, "animal", "train", [("a.mp4", 1), ("b.mp4", 2)] * 2)
    assert len(build(root, absent_ok=ALL)) == 4  # twice the same is not a contradiction
    write_split(root, "animal", "train", [("a.mp4", 1), ("b.mp4", 2), ("a.mp4", 3)])
    with pytest.raises(AnnotationError) as error:
        build(root, absent_ok=ALL)
    assert str(error.value) == (
        f"{path}, line 3: 'a.mp4' has the label 3, and in line 1 the label 1; a clip "
        "has one"
    )
    write_split(root, "animal", "train", [("test_0.mp4", 6)])
    with pytest.raises(AnnotationError, match="'animal/test_0' has the label 6 in"):
        build(root, absent_ok=ALL)


def test_a_class_that_only_the_target_has(root, said):
    build(root)
    assert not said
    write_split(root, "human", "train", [("train_0.mp4", 0), ("train_1.mp4", 5)])
    write_split(root, "human", "test", [("test_0.mp4", 5)])
    build(root)
    (line,) = said
    # The sources' two clips are of classes 1 and 2.
    assert "that no training clip of ['animal'] has" in line
    assert "'sleeping' (1 clips), 'running' (2 clips)" in line
    # Faults of the target's files are not the training's affair.
    (root / "HAC_Splits/HAC_test_only_human.csv").write_text("nonsense")
    build(root)


def test_a_domain_named_like_a_modality(root):
    class Named(HACDataset):
        METAINFO = dict(HACDataset.METAINFO, domains=("audio", "human", "animal"))

    made = dict(data_root=str(root), pipelines=pipelines(), lazy_init=True)
    with pytest.raises(ValueError, match="'audio' names a domain and a modality"):
        Named(target="human", **made)
    Named(target="human", modalities=("video",), **made)


TEXTS = dict(
    hac="caf\u00e9.mp4,1\n",
    own="file,label,domain\ncaf\u00e9.mp4,x,d\n",
    epic="uid,narration\n1,caf\u00e9\n",
)


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "latin-1"])
def test_another_encoding_names_file_and_line(tmp_path, kind, encoding):
    path = tmp_path / "annotations.csv"
    if kind == "hac":
        path = tmp_path / "HAC_Splits" / "HAC_train_only_animal.csv"
        path.parent.mkdir()
    path.write_bytes(TEXTS[kind].encode(encoding))
    line = 2 if encoding == "latin-1" and kind != "hac" else 1
    with pytest.raises(AnnotationError) as error:
        if kind == "hac":
            build(tmp_path)
        elif kind == "own":
            read_annotations(str(path))
        else:
            read_split(path)
    assert str(error.value).startswith(f"{path}, line {line}: ")
    assert "save it as UTF-8" in str(error.value)


def test_surplus_fields_of_a_table(tmp_path):
    path = tmp_path / "annotations.csv"
    path.write_text("file,label,domain\na.mp4,x,d\nb.mp4,sit, down,d\nc.mp4,x,d,,\n")
    with pytest.raises(AnnotationError) as error:
        read_annotations(str(path))
    lines = str(error.value).splitlines()
    assert len(lines) == 3 and "line 3: it has 4 fields, and the header 3" in lines[1]
    assert "line 4: it has 5 fields" in lines[2] and "quotes" in lines[1]


# --- errors ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [UnreadableMediaError, AnnotationError])
def test_a_worker_s_traceback_is_not_part_of_the_message(kind):
    from torch._utils import ExceptionWrapper

    try:
        try:
            raise ValueError("inner: one")
        except ValueError as inner:
            raise kind("cannot read x: y. Do z") from inner
    except DataError as error:
        info = (type(error), error, error.__traceback__)
    with pytest.raises(kind) as error:
        ExceptionWrapper(info, where="in DataLoader worker process 0").reraise()
    assert str(error.value) == "cannot read x: y. Do z"
