"""Frame stores: what is read from them is what the files give."""

import copy
import csv
import errno
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile
import zlib

import cv2
import numpy as np
import pytest
import torch
from mmaction.registry import TRANSFORMS

import media
from helpers.stores import config_of, pack_quietly
from mmaction_mbcd.datasets import (
    EPICKitchensDataset,
    HACDataset,
    SampleIndex,
    UnreadableMediaError,
    frame_store,
)
from mmaction_mbcd.datasets.frame_store import (
    SETTINGS,
    Clip,
    FrameStore,
    FrameStoreError,
    StoredClip,
    StoreSettings,
    entry_path,
    leading_short_side,
)
from mmaction_mbcd.datasets.stored_sound import StoredSpectrogram
from mmaction_mbcd.datasets.transforms.images import decode_image
from mmaction_mbcd.errors import UsageError
from mmaction_mbcd.preparation import packing
from mmaction_mbcd.preparation.check import check
from tests_support import ROOT

TOOL = ROOT / "tools" / "data" / "pack.py"
SIDE = 20  # to which the pipelines here resize first; the clips are 32 x 24


def pipelines(train=True, side=SIDE):
    found = media.pipelines(train)
    for modality in ("video", "flow"):
        resize = dict(type="Resize", scale=(-1, side))
        found[modality].insert(3, resize)
    return found


@pytest.fixture(scope="module")
def hac(tmp_path_factory):
    root = tmp_path_factory.mktemp("hac")
    return media.write_hac(root, train=2, test=1, domains=("human", "animal"))


def config(root, **settings):
    own = dict(sources=["human"], target="animal") | settings
    own["modalities"] = ["video", "flow", "audio"]  # Config.dump sorts a mapping
    return config_of("HACDataset", root, pipelines(), pipelines(False), **own)


@pytest.fixture(scope="module")
def stores(hac, tmp_path_factory):
    """``{codec: store}`` of the same clips."""
    found = {}
    for codec in ("jpeg", "png", "pnm"):
        found[codec] = tmp_path_factory.mktemp("stores") / codec
        assert pack_quietly(config(hac), found[codec], codec) == 0
    return found


def built(root, use="train", store=None, **settings):
    own = pipelines(use == "train")
    given = dict(sources=["human"], target="animal", pipelines=own) | settings
    store = None if store is None else str(store)
    return HACDataset(str(root), use=use, frame_store=store, **given)


def items(dataset, epochs=(1,)):
    """Every clip of a data set, as some epochs draw it."""
    return [
        dataset[SampleIndex(index, (0, epoch))]
        for epoch in epochs
        for index in range(len(dataset))
    ]


def assert_same(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        assert one["data_samples"].present == other["data_samples"].present
        assert one["inputs"].keys() == other["inputs"].keys()
        for modality, tensor in one["inputs"].items():
            assert torch.equal(tensor, other["inputs"][modality]), modality


# --------------------------------------------------------------------------------
# What is read


@pytest.mark.parametrize("sampling", ["repaired", "published"])
@pytest.mark.parametrize("codec", ["png", "pnm"])
def test_a_lossless_store_gives_the_bits_of_the_files(hac, stores, codec, sampling):
    for use in ("train", "val", "test"):
        epochs = range(6) if use == "train" else (0,)
        settings = dict(use=use, sampling=sampling, joint_augment=False)
        plain = items(built(hac, **settings), epochs)
        assert_same(plain, items(built(hac, store=stores[codec], **settings), epochs))


def frames_of(store, root, name):
    """All frames of a clip in a store."""
    clip = Clip((str(root / "human" / "videos" / name),))
    stored = StoredClip(entry_path(str(store), str(root), "video", clip), decode_image)
    return stored.get_batch(np.arange(len(stored)))


def test_jpeg_gives_what_opencv_makes_of_the_frames(hac, stores):
    lossless = frames_of(stores["png"], hac, "train_0.mp4")
    found = frames_of(stores["jpeg"], hac, "train_0.mp4")
    assert len(lossless) == len(found) == 30
    for frame, other in zip(lossless, found, strict=True):
        data = cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])[1]
        assert np.array_equal(other, cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1])
        assert not np.array_equal(other, frame)
    plain, jpeg = items(built(hac)), items(built(hac, store=stores["jpeg"]))
    for one, other in zip(plain, jpeg, strict=True):
        assert torch.equal(one["inputs"]["audio"], other["inputs"]["audio"])


def test_repeated_frames_are_arrays_of_their_own(hac, stores):
    clip = Clip((str(hac / "human" / "videos" / "train_0.mp4"),))
    path = entry_path(str(stores["png"]), str(hac), "video", clip)
    first, second, other = StoredClip(path, decode_image).get_batch([3, 3, 4])
    assert np.array_equal(first, second) and not np.array_equal(first, other)
    first[:] = 0
    assert second.any()


def test_an_entry_is_a_zip_archive_of_images(hac, stores):
    name = hac / "human" / "flow" / "train_0_flow_x.mp4"
    clip = Clip((str(name), str(name).replace("_x.mp4", "_y.mp4")))
    path = entry_path(str(stores["png"]), str(hac), "flow", clip)
    stored = StoredClip(path, decode_image)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert names[:2] == ["000000_x.png", "000000_y.png"] and len(names) == 61
        for number in (0, 7, 29):
            (frame,) = stored.get_batch([number])
            for axis, part in enumerate("xy"):
                data = np.frombuffer(archive.read(f"{number:06d}_{part}.png"), np.uint8)
                image = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)
                assert np.array_equal(frame[..., axis], image)
    assert stored.intact() and stored.get_avg_fps() == 10
    with pytest.raises(ValueError, match="has no frame 30"):
        stored.get_batch([30])


def test_images_of_the_right_size_are_taken_over_byte_by_byte(tmp_path):
    root = media.write_epic(tmp_path / "epic")
    shape = dict(type="FormatClip")
    small = dict(type="Resize", scale=(-1, media.HEIGHT))
    clip = dict(type="SampleClip", clip_len=4, frame_interval=1, test_mode=True)
    own = dict(
        video=[dict(type="OpenVideo"), clip, dict(type="DecodeFrames"), small, shape],
        flow=[
            dict(type="OpenFlowPair"), clip, dict(type="DecodeFlowFrames"), small, shape
        ],
    )  # fmt: skip
    cfg = config_of("EPICKitchensDataset", root, own, target="D1")
    store = tmp_path / "store"
    assert pack_quietly(cfg, store, "jpeg") == 0
    given = dict(data_root=str(root), use="test", target="D1", pipelines=own)
    plain = EPICKitchensDataset(**given)
    assert_same(
        items(plain), items(EPICKitchensDataset(**given, frame_store=str(store)))
    )
    row = plain.get_data_info(1)  # frames 30 to 32
    found = Clip.of(row["files"]["video"], row["extras"]["video"])
    path = entry_path(str(store), str(root), "video", found)
    assert path.endswith("_30-32.zip")
    with zipfile.ZipFile(path) as archive:
        for number in (30, 31, 32):
            source = os.path.join(found.files[0], f"frame_{number:010d}.jpg")
            with open(source, "rb") as file:
                assert archive.read(f"{number:06d}.jpg") == file.read()
    # Larger images are made smaller, by the pipeline's own transform.
    for steps in own.values():
        steps[3]["scale"] = (-1, 8)
    cfg = config_of("EPICKitchensDataset", root, own, target="D1")
    assert pack_quietly(cfg, tmp_path / "small", "pnm") == 0
    plain = EPICKitchensDataset(**given)
    small = EPICKitchensDataset(**given, frame_store=str(tmp_path / "small"))
    assert_same(items(plain), items(small))
    with pytest.raises(FrameStoreError, match="short side of 8 .* side of 16"):
        steps[3]["scale"] = (-1, 16)
        EPICKitchensDataset(**given, frame_store=str(tmp_path / "small"))


# --------------------------------------------------------------------------------
# Sound


def epic_sound(train=True, span="segment", front=()):
    """A pipeline of EPIC-Kitchens' sound."""
    noise = [dict(type="SpectrogramNoise"), dict(type="FrequencyMask", width=9)]
    return [
        dict(type="LoadWaveform", span=span, max_seconds=10, span_from=()),
        *front,
        dict(type="TileWaveform", length=8000),
        dict(type="LogSpectrogram", nperseg=64, noverlap=32),
        *(noise if train else []),
        dict(type="FormatAudio"),
    ]


@pytest.fixture
def kitchens(tmp_path):
    """EPIC-Kitchens of which one segment is silent; and a store of its sound."""
    root = media.write_epic(tmp_path / "epic")
    wav = root / "rgb" / "train" / "D2" / "P01_01.wav"
    sound = media.tone(1.0)
    sound[round(16000 * 29 / 60) : round(16000 * 34 / 60)] = 0
    media.write_wav(wav, sound)
    train, test = (dict(audio=epic_sound(use)) for use in (True, False))
    cfg = config_of("EPICKitchensDataset", root, train, test, target="D1")
    return root, wav, cfg, tmp_path / "store"


def heard(root, store=None, use="train", steps=None, **settings):
    pipelines = dict(audio=steps or epic_sound(use == "train"))
    given = dict(use=use, target="D1", pipelines=pipelines) | settings
    store = None if store is None else str(store)
    return EPICKitchensDataset(str(root), frame_store=store, **given)


def stored_part(dataset):
    first = dataset.pipelines["audio"][0]
    return first if isinstance(first, StoredSpectrogram) else None


def test_spectrograms_of_segments_are_stored_once(kitchens, monkeypatch):
    root, wav, cfg, store = kitchens
    assert pack_quietly(cfg, store) == 0
    segments = set()
    for use in ("train", "val", "test"):
        dataset = heard(root, use=use)
        rows = map(dataset.get_data_info, range(len(dataset)))
        segments |= {(row["files"]["audio"], row["start"], row["stop"]) for row in rows}
    assert len(list((store / "audio").rglob("*.zip"))) == len(segments) > 10
    for use in ("train", "val", "test"):
        kept = dict(on_error="skip", max_skipped=1.0, use=use)
        plain = items(heard(root, **kept), range(3))
        from_store = heard(root, store, **kept)
        assert stored_part(from_store) is not None
        assert_same(plain, items(from_store, range(3)))
        skipped = [item["data_samples"].skipped for item in plain]
        assert sum(map(bool, skipped)) == (3 if use == "train" else 0)  # the silent one
    # What is read is not computed, and what else is known of the sound is kept.
    found = heard(root, store)
    steps = stored_part(found).steps
    row = found.get_data_info(0) | dict(modality_key="audio", sampling="repaired")
    row["filename"] = row["files"]["audio"]
    expected = row
    for step in steps:
        expected = step(expected)
    for step in steps:
        monkeypatch.setattr(type(step), "transform", None)
    own = stored_part(found)(row)
    keys = ("audio_span", "recorded", "sample_rate")
    assert {k: own[k] for k in keys} == {k: expected[k] for k in keys}
    assert np.array_equal(own["audios"], expected["audios"])
    assert own["audios"].dtype == np.float32 and own["audios"].flags.writeable


def test_stored_spectrograms_are_of_the_pipeline_or_not_used(kitchens):
    root, wav, cfg, store = kitchens
    assert pack_quietly(cfg, store) == 0
    other = dict(type="CorruptWaveform", kind="white_noise", severity=3)
    cases = dict(
        corrupted=dict(steps=epic_sound(False, front=[other])),
        published=dict(sampling="published"),
        whole=dict(steps=epic_sound(False, span="file")),
    )
    for settings in cases.values():
        given = dict(use="test", on_error="skip", max_skipped=1.0) | settings
        dataset = heard(root, store, **given)
        assert stored_part(dataset) is None
        assert_same(items(heard(root, **given)), items(dataset))
    # Nor where training and test make them differently, or sound follows the frames.
    own = config_of(
        "EPICKitchensDataset", root, dict(audio=epic_sound()),
        dict(audio=epic_sound(False, span="file")), target="D1",
    )  # fmt: skip
    assert packing.store_settings(own).spectrograms == {}


def test_another_config_does_not_undo_what_a_store_holds(kitchens):
    root, wav, cfg, store = kitchens
    assert pack_quietly(cfg, store) == 0
    whole = (store / SETTINGS).read_text()
    other = copy.deepcopy(cfg)
    for use in ("train", "val", "test"):
        other[f"{use}_dataloader"].dataset.sampling = "published"
    with pytest.raises(UsageError, match="holds spectrograms of audio .* --overwrite"):
        pack_quietly(other, store)
    for use in ("train", "val", "test"):
        steps = other[f"{use}_dataloader"].dataset.pipelines.audio
        steps[0].update(span="frames", span_from=["video"])
    with pytest.raises(UsageError, match="nothing to pack"):
        pack_quietly(other, store)
    assert (store / SETTINGS).read_text() == whole
    # One that was rewritten below a running training is not read, and no error.
    dataset = heard(root, store, use="test")
    dataset.frame_store.settings.spectrograms["audio"][-1] = "another"
    assert_same(items(heard(root, use="test")), items(dataset))


def test_a_store_without_spectrograms_is_as_good(kitchens):
    root, wav, cfg, store = kitchens
    assert pack_quietly(cfg, store) == 0
    expected = items(heard(root, use="test"))
    whole = json.loads((store / SETTINGS).read_text())
    missing = next((store / "audio" / "rgb" / "test").rglob("*.zip"))
    missing.unlink()
    assert_same(expected, items(heard(root, store, use="test")))
    (store / SETTINGS).write_text(json.dumps({**whole, "spectrograms": {}}))
    assert_same(expected, items(heard(root, store, use="test")))
    # Packing an older store again adds them, and refuses nothing.
    assert pack_quietly(cfg, store) == 0 and missing.exists()
    assert json.loads((store / SETTINGS).read_text()) == whole


def test_a_spectrogram_of_changed_sound_is_refused_and_made_anew(kitchens):
    root, wav, cfg, store = kitchens
    assert pack_quietly(cfg, store) == 0
    os.utime(wav, (1, 1))  # touched, not changed
    heard(root, store)[SampleIndex(0, (0, 0))]
    media.write_wav(wav, media.tone(1.0, hertz=523.0))
    with pytest.raises(UnreadableMediaError, match="changed after .*/pack.py"):
        heard(root, store)[SampleIndex(0, (0, 0))]
    assert packing.verify(cfg, store, workers=1) == 1
    assert pack_quietly(cfg, store) == 0
    assert packing.verify(cfg, store, workers=1) == 0
    assert_same(items(heard(root)), items(heard(root, store)))


def test_a_damaged_spectrogram_is_seen(kitchens):
    root, wav, cfg, store = kitchens
    assert pack_quietly(cfg, store) == 0
    path = next((store / "audio" / "rgb" / "test" / "D1").rglob("*.zip"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UnreadableMediaError, match="fails its checksum"):
        items(heard(root, store, use="test"))


# --------------------------------------------------------------------------------
# What does not fit


@pytest.fixture
def own(hac, tmp_path):
    """Clips and a store that may be spoiled."""
    root = shutil.copytree(hac, tmp_path / "hac")
    assert pack_quietly(config(root), tmp_path / "store") == 0
    return root, tmp_path / "store"


def test_a_changed_source_is_refused_and_made_again(own, capsys):
    root, store = own
    video = root / "human" / "videos" / "train_0.mp4"
    os.utime(video, (1, 1))  # copied or touched: its content decides
    assert_same(items(built(root)), items(built(root, store=store)))
    media.write_video(video, media.smooth_frames(30, seed=77))
    with pytest.raises(UnreadableMediaError, match=r"train_0.mp4 changed after .*pack"):
        built(root, store=store)[0]
    capsys.readouterr()
    assert pack_quietly(config(root), store) == 0
    shown = capsys.readouterr().out
    assert "1 entries to make" in shown
    assert_same(items(built(root)), items(built(root, store=store)))


def test_gaps_are_found_before_a_run_begins(own):
    root, store = own
    (store / "flow" / "human" / "flow" / "train_1_flow_x.mp4.zip").unlink()
    dataset = built(root, store=store)
    with pytest.raises(
        FrameStoreError, match="lacks 1 entries of the train clips.*_1_"
    ):
        dataset.refuse_absence()
    with pytest.raises(UnreadableMediaError, match="the frame store has no"):
        items(dataset)
    built(root, "test", store=store).refuse_absence()


def test_a_store_without_a_modality_is_refused(hac, tmp_path):
    only = config(hac)
    for loader in ("train", "val", "test"):
        only[f"{loader}_dataloader"].dataset.modalities = ["video", "audio"]
    assert pack_quietly(only, tmp_path / "store", "pnm") == 0
    built(hac, store=tmp_path / "store", modalities=["video", "audio"])
    with pytest.raises(FrameStoreError, match="holds video and no flow"):
        built(hac, store=tmp_path / "store")


def test_the_check_reads_a_store(own, tmp_path):
    root, store = own
    cfg = config(root)
    for loader in ("train", "val", "test"):
        cfg[f"{loader}_dataloader"].dataset.frame_store = str(store)
    entry = store / "flow" / "human" / "flow" / "train_1_flow_x.mp4.zip"
    data = bytearray(entry.read_bytes())
    data[3000] ^= 8
    entry.write_bytes(data)
    assert check(cfg, workers=1, csv_file=str(tmp_path / "found.csv")) == 1
    (found,) = csv.DictReader((tmp_path / "found.csv").open())
    assert (found["sample_id"], found["modality"]) == ("human/train_1", "flow")
    assert "train_1_flow_x.mp4.zip is damaged" in found["reason"]


def test_images_that_differ_in_size_are_refused(tmp_path, capsys):
    root = media.write_epic(tmp_path / "epic")
    steps = [
        dict(type="OpenVideo"), dict(type="SampleClip", clip_len=4),
        dict(type="DecodeFrames"), dict(type="FormatClip"),
    ]  # fmt: skip
    folder = root / "rgb" / "train" / "D1" / "P08_01"
    small = np.zeros((8, 8, 3), np.uint8)
    assert cv2.imwrite(str(folder / f"frame_{31:010d}.jpg"), small)
    cfg = config_of("EPICKitchensDataset", root, dict(video=steps), target="D3")
    assert pack_quietly(cfg, tmp_path / "store") == 1
    assert "its frames differ in size (h, w): [(8, 8), (16, 24)]" in " ".join(
        capsys.readouterr().out.split()
    )


def test_a_pipeline_of_another_size_is_refused(hac, stores):
    with pytest.raises(FrameStoreError, match="short side of 20 pixels, and the .* 22"):
        built(hac, store=stores["png"], pipelines=pipelines(side=22))
    with pytest.raises(FrameStoreError, match="does not begin with a Resize"):
        built(hac, store=stores["png"], pipelines=media.pipelines())
    with pytest.raises(FrameStoreError, match="is not a frame store"):
        built(hac, store=hac)


def test_one_size_for_all_uses_or_that_of_the_files(hac, tmp_path):
    cfg = config(hac)
    assert packing.store_settings(cfg).short_sides == dict(video=SIDE, flow=SIDE)
    cfg.test_dataloader.dataset.pipelines.video[3].scale = (-1, 22)
    assert packing.store_settings(cfg).short_sides == dict(video=None, flow=SIDE)
    assert pack_quietly(cfg, tmp_path / "store", "pnm") == 0
    for side in (20, 22):
        given = dict(pipelines=pipelines(side=side), modalities=["video"])
        plain = items(built(hac, **given))
        assert_same(plain, items(built(hac, store=tmp_path / "store", **given)))


@pytest.mark.parametrize(
    ("steps", "side"),
    [
        ([dict(type="Resize", scale=(-1, 256))], 256),
        ([dict(type="Resize", scale=(256, 256))], None),
        ([dict(type="Resize", scale=(224, 224), keep_ratio=False)], None),
        ([dict(type="Resize", scale=0.5)], None),
        ([dict(type="CenterCrop", crop_size=8), dict(type="Resize", scale=(-1, 9))],
         None),
        ([], None),
    ],
)  # fmt: skip
def test_the_size_with_which_a_pipeline_begins(steps, side):
    head = [
        dict(type="OpenVideo"), dict(type="SampleClip", clip_len=2),
        dict(type="DecodeVideo"),
    ]  # fmt: skip
    built = [TRANSFORMS.build(each) for each in (*head, *steps)]
    assert leading_short_side(built) == side


def test_checksums_are_zlibs_with_and_without_isal(monkeypatch):
    data = np.random.default_rng(0).bytes(100_003)
    assert frame_store.crc32(memoryview(data)) == zlib.crc32(data)
    monkeypatch.setitem(sys.modules, "isal.isal_zlib", None)
    spec = importlib.util.find_spec(frame_store.__name__)
    without = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(without)
    assert without.crc32 is zlib.crc32


def test_damage_is_an_error_and_never_another_picture(hac, stores, tmp_path):
    clip = Clip((str(hac / "human" / "videos" / "train_0.mp4"),))
    whole = entry_path(str(stores["png"]), str(hac), "video", clip)
    with open(whole, "rb") as file:
        data = file.read()
    numbers = np.arange(30)
    expected = np.stack(StoredClip(whole, decode_image).get_batch(numbers))
    chance, refused = random.Random(0), 0
    path = tmp_path / "entry.zip"
    comment = data.rfind(b"PK\x05\x06")
    for trial in range(600):
        spoiled = bytearray(data)
        first = comment if trial % 2 else 0  # half of them where it says what it is
        for _ in range(chance.randint(1, 3)):
            spoiled[chance.randrange(first, len(data))] ^= 1 << chance.randrange(8)
        spoiled = spoiled[: chance.choice([len(data), chance.randrange(len(data))])]
        path.write_bytes(spoiled)
        try:
            found = np.stack(StoredClip(str(path), decode_image).get_batch(numbers))
        except ValueError as error:
            refused += 1
            assert str(path) in str(error)
        else:  # names and directory, which are not read
            assert np.array_equal(found, expected)
    assert refused > 400
    store = shutil.copytree(stores["png"], tmp_path / "store")
    spoiled = bytearray(data)
    spoiled[5000] ^= 255
    place = store / "video" / "human" / "videos" / "train_0.mp4.zip"
    place.write_bytes(spoiled)
    with pytest.raises(UnreadableMediaError, match=r"train_0.mp4.zip is damaged"):
        for epoch in range(40):
            built(hac, store=store)[SampleIndex(0, (0, epoch))]
    assert packing.verify(config(hac), store, 1) == 1
    assert packing.verify(config(hac), stores["png"], 1) == 0


# --------------------------------------------------------------------------------
# The tool


def test_a_dry_run_writes_nothing_and_says_how_much(hac, tmp_path, capsys):
    store = tmp_path / "store"
    assert pack_quietly(config(hac), store, "pnm", dry_run=True) == 0
    shown = capsys.readouterr().out
    assert not store.exists()
    assert "12 entries to make, PNM, lossless, about" in shown
    assert pack_quietly(config(hac), store, "pnm") == 0
    size = sum(path.stat().st_size for path in store.rglob("*.zip"))
    said = float(shown.split("about ")[1].split(" kB")[0])
    assert said == pytest.approx(size / 1e3, rel=0.02)  # all were measured
    assert pack_quietly(config(hac), store, "pnm", dry_run=True) == 0
    assert "12 of 12 are there" in capsys.readouterr().out


def test_other_settings_need_another_folder(own, capsys):
    root, store = own
    with pytest.raises(UsageError, match="was made as PNG, lossless.*--overwrite"):
        pack_quietly(config(root), store, "jpeg")
    assert pack_quietly(config(root), store, "jpeg", overwrite=True) == 0
    assert StoreSettings.load(str(store)).codec == "jpeg"
    assert_one = built(root, store=store)[0]["inputs"]["video"]
    assert not torch.equal(assert_one, built(root)[0]["inputs"]["video"])
    (store / "frame_store.json").write_text(
        StoreSettings("jpeg", 50, dict(video=SIDE, flow=SIDE)).text()
    )
    with pytest.raises(UnreadableMediaError, match=r"'jpeg', 92.*'jpeg', 50"):
        built(root, store=store)[0]


def test_too_little_room_is_said_before_and_met_on_the_way(hac, tmp_path, monkeypatch):
    full = shutil._ntuple_diskusage(10, 10, 1000)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: full)
        with pytest.raises(UsageError, match=r"are needed in .*1 kB are free"):
            pack_quietly(config(hac), tmp_path / "store")
    assert not (tmp_path / "store").exists()
    finish, made = packing.finish, []

    def full_disk(archive, facts):
        made.extend([1] * str(archive.filename).startswith(str(tmp_path)))
        if len(made) > 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finish(archive, facts)

    with monkeypatch.context() as patch:
        patch.setattr(packing, "finish", full_disk)
        with pytest.raises(UsageError, match="No space left on device; make room"):
            pack_quietly(config(hac), tmp_path / "store")
    assert not list((tmp_path / "store").rglob("*.part"))
    assert 0 < len(list((tmp_path / "store").rglob("*.zip"))) < 12
    assert pack_quietly(config(hac), tmp_path / "store") == 0
    assert packing.verify(config(hac), tmp_path / "store", 1) == 0


def test_a_clip_that_cannot_be_read_is_named_and_the_others_made(own, capsys):
    root, store = own
    (root / "human" / "videos" / "train_1.mp4").write_bytes(b"no video")
    capsys.readouterr()
    assert pack_quietly(config(root), store) == 1
    shown = capsys.readouterr().out
    assert "train_1.mp4" in shown and "cannot read video" in shown
    assert "To train from it" not in shown


@pytest.mark.long
def test_a_killed_run_goes_on(hac, tmp_path):
    own = tmp_path / "config.py"
    config(hac).dump(str(own))
    store = tmp_path / "store"
    command = [sys.executable, str(TOOL), str(own), "--out", str(store)]
    command += ["--codec", "png", "--workers", "1"]
    first = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    deadline = time.monotonic() + 120
    while not list(store.rglob("*.zip")) and time.monotonic() < deadline:
        time.sleep(0.002)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    made = {path: path.stat().st_mtime_ns for path in store.rglob("*.zip")}
    assert made
    (store / "video" / ".torn.zip.part").write_bytes(b"x")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"To train from it: --frame-store {store}" in done.stdout
    assert all(path.stat().st_mtime_ns == then for path, then in made.items())
    assert_same(items(built(hac)), items(built(hac, store=store)))


def test_files_outside_the_data_set_have_no_place(tmp_path):
    with pytest.raises(FrameStoreError, match="does not lie below data_root"):
        entry_path("store", str(tmp_path / "a"), "video", Clip((str(tmp_path / "b"),)))
    with pytest.raises(FrameStoreError, match="is not a frame store"):
        FrameStore(str(tmp_path), str(tmp_path))
    (tmp_path / "frame_store.json").write_text('{"format": 9, "codec": "jpeg"}')
    with pytest.raises(FrameStoreError, match="has format 9"):
        FrameStore(str(tmp_path), str(tmp_path))
    (tmp_path / "frame_store.json").write_text('{"format": 1, "codec": "webp"}')
    with pytest.raises(FrameStoreError, match="is not a frame store"):
        FrameStore(str(tmp_path), str(tmp_path))
