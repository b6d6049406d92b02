"""Corruptions within the pipelines of every shipped dataset."""

import copy
import functools
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
from mmaction.registry import DATASETS, MODELS, TRANSFORMS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch.utils.data import DataLoader

from media import (
    pipelines,
    smooth_frames,
    tone,
    write_epic,
    write_hac,
    write_own,
    write_video,
    write_wav,
)
from mmaction_mbcd import cli
from mmaction_mbcd.datasets import (
    HACDataset,
    MultiModalDataset,
    collate_views,
    derive_seed,
)
from mmaction_mbcd.datasets.transforms import (
    CorruptFrames,
    CorruptWaveform,
    GaussianShift,
    insert_corruption,
)
from mmaction_mbcd.datasets.transforms.corruptions import CORRUPTIONS

ROOT = Path(__file__).parents[2] / "configs" / "mbcd"
LEAVES = ["synth_action", "hac", "hac/published", "epic_kitchens", "own_videos"]
LEAVES += ["epic_kitchens/published", "own_videos/small"]
KINDS = MultiModalDataset.MODALITY_TYPES
NAMES = dict(RGB="CorruptFrames", Flow="CorruptFlow", Audio="CorruptWaveform")


@functools.cache
def _read(leaf):
    return Config.fromfile(ROOT / leaf / "erm.py")


def smooth_rgb(count):
    frames = np.array(smooth_frames(count)).astype(np.uint8)
    return list(np.stack([frames, 255 - frames, frames // 2], axis=-1))


def config(leaf):
    return copy.deepcopy(_read(leaf))


def flat(pipeline):
    for step in pipeline:
        yield from flat(step) if isinstance(step, (list, tuple)) else [step]


def corruption(modality_kind, **settings):
    first = next(iter(CORRUPTIONS[modality_kind]))
    return dict(type=NAMES[modality_kind], kind=first, severity=1) | settings


# --- the place -------------------------------------------------------------


@pytest.mark.parametrize("leaf", LEAVES)
@pytest.mark.parametrize("loader", ["train", "val", "test"])
def test_the_neighbours_in_every_config(leaf, loader):
    dataset = config(leaf)[f"{loader}_dataloader"].dataset
    # The synthetic clips have their size, so nothing resizes them before a crop.
    resized = not leaf.startswith("synth")
    epic = leaf.startswith("epic")
    decoders = dict(
        video="DecodeFrames" if epic else "DecodeVideo",
        flow="DecodeFlowFrames" if epic else "DecodeFlowPair",
        audio="TileWaveform",
    )
    assert set(dataset.pipelines) == set(decoders)
    for modality, decoder in decoders.items():
        before = copy.deepcopy(dataset.pipelines[modality])
        steps = list(flat(before))
        added = corruption(KINDS[modality])
        got = insert_corruption(dataset.pipelines[modality], KINDS[modality], added)
        names = [step["type"] for step in got]
        place = names.index(added["type"])
        if modality != "audio" and resized:
            assert names[place - 2 : place] == [decoder, "ResizeClip"]
            assert got[place - 1]["scale"] == (
                (-1, 128) if "small" in leaf else (-1, 256)
            )
        else:
            assert names[place - 1] == decoder
        if modality == "audio":
            assert names[place + 1] == "LogSpectrogram"
        # All others are there, in their order; the config is as it was.
        assert got[:place] + got[place + 1 :] == steps
        assert got[place] == added
        assert dataset.pipelines[modality] == before

        shift = dict(type="GaussianShift", level=1.0)
        got = insert_corruption(dataset.pipelines[modality], KINDS[modality], shift)
        assert got == [*steps, shift]


def test_numbers_in_pixels_of_the_file_come_before_resizing():
    pipeline = config("hac").test_dataloader.dataset.pipelines.video
    added = corruption("RGB", kind="defocus_hac_c")
    names = [step["type"] for step in insert_corruption(pipeline, "RGB", added)]
    place = names.index("CorruptFrames")
    assert names[place - 1 : place + 2] == [
        "DecodeVideo",
        "CorruptFrames",
        "ResizeClip",
    ]


def test_a_resize_to_a_fixed_shape_is_no_size_of_the_picture():
    pipeline = [
        dict(type="DecodeVideo"),
        dict(type="Resize", scale=(56, 56), keep_ratio=False),
    ]
    for steps in (pipeline, [TRANSFORMS.build(step) for step in pipeline]):
        got = insert_corruption(steps, "RGB", corruption("RGB"))
        assert [got[0], got[2]] == steps


def test_without_tiling_behind_the_loader_and_built_transforms_stay():
    built = TRANSFORMS.build(dict(type="LoadWaveform"))
    got = insert_corruption([built, dict(type="LogSpectrogram")], "Audio", SOUND)
    assert got == [built, SOUND, dict(type="LogSpectrogram")]


SOUND = dict(type="CorruptWaveform", kind="clipping", severity=2)


@pytest.mark.parametrize(
    ("kind", "added", "message"),
    [
        ("RGB", dict(type="CorruptFrames", kind="rain", severity=1), "'rain'.*fog, j"),
        (
            "RGB",
            dict(type="CorruptFrames", kind="fog", severity=6),
            r"\[1, 2, 3, 4, 5\]",
        ),
        ("RGB", dict(type="CorruptFrames", kind="fog", severity=0), "got 0"),
        ("RGB", dict(type="CorruptFrames", kind="fog", severity=True), "got True"),
        (
            "Flow",
            dict(type="CorruptFlow", kind="fog", severity=1),
            "gaussian_noise, bl",
        ),
        (
            "Audio",
            dict(type="CorruptWaveform", kind="fog", severity=1),
            "white_noise, w",
        ),
        ("RGB", SOUND, "corrupts 'Audio', not 'RGB'"),
        ("Audio", SOUND, "LoadWaveform, TileWaveform has no place.* has OpenVideo"),
        ("RGB", dict(type="ClipFlip"), "ClipFlip is not a corruption"),
        ("RGB", dict(type="GaussianShift", level=-1.0), "level is a number from 0"),
        ("RGB", dict(type="GaussianShift", level=1, unit=np.inf), "unit is a number"),
    ],
)
def test_what_cannot_work_is_said(kind, added, message):
    with pytest.raises(ValueError, match=message):
        insert_corruption([dict(type="OpenVideo")], kind, added)


# --- through the datasets --------------------------------------------------


@pytest.fixture(scope="module")
def trees(tiny_data, tmp_path_factory):
    own = write_own(tmp_path_factory.mktemp("own"), clips=4)
    for clip in sorted((own / "videos").glob("studio/*.mp4")):
        stem = clip.relative_to(own / "videos").with_suffix("")
        for axis in "xy":
            flow = own / "flow" / f"{stem}_flow_{axis}.mp4"
            write_video(flow, smooth_frames(20, height=48, width=64))
        write_wav(own / "audio" / f"{stem}.wav", tone(2))
    return dict(
        synth_action=tiny_data,
        hac=write_hac(tmp_path_factory.mktemp("hac"), 1, 1, domains=("cartoon",)),
        epic_kitchens=write_epic(tmp_path_factory.mktemp("epic"), segments=[(11, 24)]),
        own_videos=own,
    )


def built(leaf, trees, changes=None):
    """The test data of a config, with ``{modality: corruption}`` inserted."""
    cfg = config(leaf)
    family = leaf.partition("/")[0]
    cli.set_datasets(cfg, data_root=str(trees[family]))
    if family == "own_videos":
        cli.set_domains(cfg, target=["studio"])
    dataset = cfg.test_dataloader.dataset
    for modality, added in (changes or {}).items():
        dataset.pipelines[modality] = insert_corruption(
            dataset.pipelines[modality], KINDS[modality], added
        )
    return DATASETS.build(dataset)


@pytest.mark.parametrize("leaf", [leaf for leaf in LEAVES if "published" not in leaf])
def test_one_modality_is_corrupted_and_the_others_are_as_they_were(leaf, trees):
    clean = built(leaf, trees)[0]["inputs"]
    for modality, kind in KINDS.items():
        # These change even the flat frames of the tests' EPIC clips.
        chosen = dict(RGB="gaussian_noise", Flow="scale", Audio="white_noise")[kind]
        added = corruption(kind, kind=chosen, severity=3)
        inputs = built(leaf, trees, {modality: added})[0]["inputs"]
        for other in clean:
            assert inputs[other].shape == clean[other].shape
            assert inputs[other].dtype == clean[other].dtype
            same = torch.equal(inputs[other], clean[other])
            assert same == (other != modality), (modality, other)


RAW = dict(
    RGB=dict(imgs=smooth_rgb(5)),
    Flow=dict(imgs=[frame[..., :2] for frame in smooth_rgb(5)]),
    Audio=dict(audios=tone(0.5), sample_rate=16000),
)
OPTIONS = dict(RGB={}, Flow=dict(bound=20.0), Audio=dict(rate=16000))


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in RAW for name in CORRUPTIONS[kind]]
)
def test_a_transform_is_its_function_with_the_sample_s_numbers(kind, name):
    (key, clean), *_ = RAW[kind].items()
    results = dict(RAW[kind], sample_id="a/b", modality=kind, others=dict(left=1))
    transform = TRANSFORMS.build(corruption(kind, kind=name, severity=4, seed=7))
    got = transform(dict(results))
    rng = np.random.default_rng(derive_seed(7, "a/b", kind, name))
    expected = CORRUPTIONS[kind][name](clean, 4, rng, **OPTIONS[kind])
    np.testing.assert_array_equal(got.pop(key), expected)
    assert got == {k: v for k, v in results.items() if k != key}


NOISY = dict(
    video=dict(type="CorruptFrames", kind="shot_noise", severity=3),
    audio=dict(type="CorruptWaveform", kind="background", severity=3),
    flow=dict(type="CorruptFlow", kind="block_dropout", severity=3),
)


def as_read(dataset, order, workers):
    loader = DataLoader(
        dataset, batch_size=2, sampler=order, num_workers=workers,
        collate_fn=collate_views,
        multiprocessing_context="fork" if workers else None,
    )  # fmt: skip
    found = {}
    for batch in loader:
        for place, sample in enumerate(batch["data_samples"]):
            inputs = {m: values[place] for m, values in batch["inputs"].items()}
            found[sample.sample_id] = inputs
    return found


def _read_elsewhere(queue, root):
    init_default_scope("mmaction")
    dataset = built("synth_action", dict(synth_action=root), NOISY)
    inputs = dataset[5]["inputs"]
    queue.put({m: value.numpy() for m, value in inputs.items()})


def test_the_same_in_any_order_worker_and_process(trees):
    dataset = built("synth_action", trees, NOISY)
    alone = as_read(dataset, range(6), workers=0)
    assert len(alone) == 6
    others = as_read(dataset, [4, 2, 0, 5, 3, 1], workers=2)
    for sample_id, inputs in alone.items():
        for modality, values in inputs.items():
            assert torch.equal(values, others[sample_id][modality]), modality
    queue = multiprocessing.get_context("fork").Queue()
    arguments = (queue, trees["synth_action"])
    child = multiprocessing.get_context("fork").Process(
        target=_read_elsewhere, args=arguments
    )
    np.random.seed(99)  # the process's own state is of no account
    child.start()
    elsewhere = queue.get(timeout=60)
    child.join()
    sample_id = dataset[5]["data_samples"].sample_id
    for modality, values in elsewhere.items():
        np.testing.assert_array_equal(values, alone[sample_id][modality].numpy())


def test_seed_sample_and_kind_draw_differently_and_severity_does_not():
    frames = [np.full((8, 8, 3), 128, np.uint8)]

    def noise(sample_id="a/b", **settings):
        settings = dict(kind="gaussian_noise", severity=2) | settings
        results = dict(imgs=frames, sample_id=sample_id)
        return CorruptFrames(**settings)(results)["imgs"][0].astype(float) - 128

    def correlation(other):
        return np.corrcoef(noise().ravel(), other.ravel())[0, 1]

    assert correlation(noise(severity=1)) > 0.99
    for other in (noise("a/c"), noise(seed=1)):
        assert abs(correlation(other)) < 5 / np.sqrt(noise().size)
    wave = dict(audios=np.ones(9), sample_rate=16000, sample_id="a/b")
    assert CorruptWaveform("white_noise", 1)(dict(wave))["audios"].std() > 0


def test_the_published_silence_stays_silence(trees):
    """Sound that is not there has no energy that noise could be measured against."""
    results = dict(audios=np.zeros(100, np.float32), sample_rate=16000, sample_id="a")
    got = CorruptWaveform("white_noise", 5)(results)["audios"]
    assert not got.any()


# --- the modality shift ----------------------------------------------------


@pytest.mark.parametrize("level", [0.5, 2.0])
@pytest.mark.parametrize("modality", KINDS)
def test_a_shift_is_in_units_of_the_normalised_input(modality, level, trees):
    """Measured behind the model's own normalisation, in all modalities alike."""
    cfg = config("synth_action")
    normalise = MODELS.build(cfg.model.data_preprocessor)
    shift = dict(type="GaussianShift", level=level)

    def inputs(changes):
        dataset = built("synth_action", trees, changes)
        batch = collate_views([dataset[i] for i in (0, 4)])
        return normalise(batch)["inputs"][modality].double()

    clean, noisy = inputs({}), inputs({modality: shift})
    for a, b in zip(clean, noisy, strict=True):
        noise = b - a
        if modality == "audio":
            assert a.std().item() == pytest.approx(1, abs=1e-3)
        else:  # channels are normalised by slightly different numbers
            scale = torch.tensor(
                cfg.model.data_preprocessor.preprocessors[modality].std
            )
            a, noise = (x * scale.view(1, -1, 1, 1, 1) for x in (a, noise))
            mean = torch.tensor(
                cfg.model.data_preprocessor.preprocessors[modality].mean
            )
            a = a + mean.view(1, -1, 1, 1, 1)
        ratio = noise.std() / a.std()
        assert ratio.item() == pytest.approx(level, rel=5 / np.sqrt(2 * noise.numel()))
        assert abs(noise.mean()) < 5 * noise.std() / np.sqrt(noise.numel())


def test_a_shift_by_hand():
    results = dict(
        imgs=np.array([0, 200], np.uint8), modality="RGB", sample_id="a", other=1
    )
    before = results["imgs"].copy()
    once = GaussianShift(1.0)(dict(results))["imgs"]
    twice = GaussianShift(2.0)(dict(results))["imgs"]
    # The standard deviation of 0 and 200 is 100.
    unit = GaussianShift(1.0, unit=10)(dict(results))["imgs"]
    assert once.dtype == np.float32
    np.testing.assert_allclose(twice - before, 2 * (once - before), rtol=1e-6)
    np.testing.assert_allclose(once - before, 10 * (unit - before), rtol=1e-4)
    np.testing.assert_array_equal(results["imgs"], before)
    np.testing.assert_array_equal(GaussianShift(0.0)(dict(results))["imgs"], before)


def test_an_absent_modality_beside_a_shifted_one(tmp_path):
    """A batch of float and 8-bit tensors; what is absent stays zero."""
    write_hac(tmp_path, train=1, test=2, domains=("human", "animal"))
    for axis in "xy":
        (tmp_path / "human" / "flow" / f"test_0_flow_{axis}.mp4").unlink()
    chain = pipelines(train=False)
    shift = dict(type="GaussianShift", level=1.0)
    chain["flow"] = insert_corruption(chain["flow"], "Flow", shift)
    dataset = HACDataset(
        data_root=str(tmp_path),
        pipelines=chain,
        sources="animal",
        target="human",
        use="test",
        eval_split="test",
        optional_modalities=("flow",),
    )
    items = [dataset[i] for i in range(2)]
    normalise = MODELS.build(config("hac").model.data_preprocessor)
    present = [item["data_samples"].present["flow"] for item in items]
    assert present == [False, True]
    noisy = items[1]["inputs"]["flow"]
    batch = normalise(collate_views(items))["inputs"]["flow"]
    np.testing.assert_allclose(batch[1], (noisy - 128) / 128, rtol=1e-6)
