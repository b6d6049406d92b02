import copy
import gc
import operator
import random
import weakref

import numpy as np
import pytest
import torch
from mmaction.models.data_preprocessors import MultiModalDataPreprocessor
from mmaction.registry import DATASETS
from mmengine.dataset import pseudo_collate, worker_init_fn
from mmengine.registry import init_default_scope
from torch.utils.data import DataLoader
from torch.utils.data._utils.pin_memory import pin_memory

from media import pipelines, write_hac, write_wav
from mmaction_mbcd.datasets import (
    HACDataset,
    MultiModalDataset,
    ResumableSampler,
    SampleIndex,
    UnreadableMediaError,
    collate_views,
    multimodal_dataset,
)
from mmaction_mbcd.datasets.transforms import mirror_flow
from tests_support import assert_same_trees
from toy_runner import stop_workers
from toys import build_toy

ALL = ("video", "flow", "audio")


@pytest.fixture(scope="session")
def shared_root(tmp_path_factory):
    """Three domains of 3 train and 2 test clips. Not to be changed."""
    return write_hac(tmp_path_factory.mktemp("hac"))


@pytest.fixture
def root(tmp_path):
    return write_hac(tmp_path, train=1, test=1, domains=("human", "animal"))


@pytest.fixture(autouse=True)
def _scope():
    init_default_scope("mmaction")


def build(root, use="train", target="human", modalities=ALL, **kwargs):
    kwargs.setdefault("pipelines", pipelines(train=use == "train"))
    return HACDataset(
        data_root=str(root), use=use, target=target, modalities=modalities, **kwargs
    )


def ids(dataset):
    return [dataset.get_data_info(i)["sample_id"] for i in range(len(dataset))]


def same(a, b):
    meta = ("sample_id", "domain", "domain_index", "role", "present")
    a_, b_ = a["data_samples"], b["data_samples"]
    return (
        a["inputs"].keys() == b["inputs"].keys()
        and all(torch.equal(a["inputs"][m], b["inputs"][m]) for m in a["inputs"])
        and all(getattr(a_, k) == getattr(b_, k) for k in meta)
        and torch.equal(a_.gt_label, b_.gt_label)
    )


# --- rows ------------------------------------------------------------------


def test_train_rows(shared_root):
    data = build(shared_root)
    assert data.sources == ("animal", "cartoon") and data.targets == ("human",)
    assert ids(data) == [
        f"{d}/train_{i}" for d in ("animal", "cartoon") for i in range(3)
    ]
    assert data.counts == {"animal": 3, "cartoon": 3} and not data.test_mode
    first, last = data.get_data_info(0), data.get_data_info(5)
    assert (first["role"], first["domain_index"], first["label"]) == ("source", 0, 1)
    assert (last["role"], last["domain_index"], last["label"]) == ("source", 1, 4)


def labels(dataset):
    return {dataset.get_data_info(i)["label"] for i in range(len(dataset))}


def test_held_out_classes_are_in_no_other_use(shared_root):
    everything = build(shared_root, "test")
    names = HACDataset.METAINFO["classes"]
    first, *rest = sorted(labels(everything))
    chosen = dict(held_out_classes=[names[first]])
    for use in ("train", "val", "test", "in_domain"):
        whole, part = build(shared_root, use), build(shared_root, use, **chosen)
        expected = [
            each
            for i, each in enumerate(ids(whole))
            if whole.get_data_info(i)["label"] != first
        ]
        assert ids(part) == expected and part.metainfo["classes"] == names
    inside = build(shared_root, "test", **chosen)
    outside = build(shared_root, "held_out", **chosen)
    assert labels(inside) == set(rest) and labels(outside) == {first}
    assert sorted(ids(inside) + ids(outside)) == sorted(ids(everything))
    assert outside.test_mode and outside.metainfo["held_out_classes"] == (names[first],)


@pytest.mark.parametrize(
    ("use", "held_out", "message"),
    [
        ("train", ["flying"], "unknown class 'flying' in held_out_classes"),
        ("held_out", [], "use='held_out' needs held_out_classes"),
        ("train", HACDataset.METAINFO["classes"], "none of the 6 clips is of another"),
    ],
)
def test_held_out_classes_that_cannot_be(shared_root, use, held_out, message):
    with pytest.raises(ValueError, match=message):
        build(shared_root, use, held_out_classes=held_out)


@pytest.mark.parametrize("use", ["val", "in_domain"])
def test_source_test_split(shared_root, use):
    data = build(shared_root, use)
    assert ids(data) == [
        f"{d}/test_{i}" for d in ("animal", "cartoon") for i in range(2)
    ]
    assert data.test_mode


def test_target_rows(shared_root):
    full = build(shared_root, "test")
    assert ids(full) == [f"human/train_{i}" for i in range(3)] + [
        f"human/test_{i}" for i in range(2)
    ]
    info = full.get_data_info(0)
    assert (info["role"], info["domain_index"]) == ("target", -1)
    only = build(shared_root, "test", eval_split="test")
    assert ids(only) == ["human/test_0", "human/test_1"]
    both = build(shared_root, "test", target=["human", "cartoon"], sources="animal")
    assert both.counts == {"human": 5, "cartoon": 5}


def test_watched_target_stands_behind_the_sources(shared_root):
    data = build(shared_root, "val", watch_target=True)
    assert data.counts == {"animal": 2, "cartoon": 2, "human": 5}
    roles = [data.get_data_info(i)["role"] for i in range(9)]
    assert roles == ["source"] * 4 + ["target"] * 5
    data = build(shared_root, "val", watch_target=True, eval_split="test")
    assert data.counts == {"animal": 2, "cartoon": 2, "human": 2}


def test_sources_in_given_order(shared_root):
    data = build(shared_root, sources=["cartoon", "animal"])
    assert [data.get_data_info(i)["domain_index"] for i in (0, 3)] == [0, 1]
    assert data.get_data_info(0)["domain"] == "cartoon"
    alone = build(shared_root, sources="cartoon", target=None)
    assert alone.counts == {"cartoon": 3}


def test_metainfo(shared_root):
    data = build(shared_root)
    info = data.metainfo
    assert info["classes"][1] == "watching TV" and len(info["classes"]) == 7
    assert info["domains"] == ("human", "animal", "cartoon")
    assert info["sources"] == ("animal", "cartoon") and info["target"] == ("human",)
    assert info["use"] == "train" and info["N"] == 6 == len(data)


def test_host_behaviour_is_kept(shared_root):
    lazy = build(shared_root, lazy_init=True)
    assert "N" not in lazy.metainfo and not lazy._fully_initialized
    plain = build(shared_root, serialize_data=False)
    whole = build(shared_root)
    assert len(lazy) == len(plain) == 6
    for other in (lazy, plain):
        assert same(other[SampleIndex(2, (0, 0))], whole[SampleIndex(2, (0, 0))])
    assert ids(whole.get_subset([1, 4])) == ["animal/train_1", "cartoon/train_1"]
    assert ids(build(shared_root, indices=2)) == ["animal/train_0", "animal/train_1"]
    built = DATASETS.build(
        dict(
            type="HACDataset",
            data_root=str(shared_root),
            target="human",
            use="test",
            pipelines=pipelines(train=False),
        )
    )
    assert built.modalities == ALL and built.metainfo["N"] == 5


# --- what arrives ----------------------------------------------------------


def test_sample(shared_root):
    item = build(shared_root)[0]
    inputs, sample = item["inputs"], item["data_samples"]
    assert list(inputs) == list(ALL)
    shapes = {m: (tuple(t.shape), t.dtype) for m, t in inputs.items()}
    assert shapes == {
        "video": ((3, 4, 16, 16), torch.uint8),
        "flow": ((2, 4, 16, 16), torch.uint8),
        "audio": ((1, 33, 249), torch.float32),
    }
    assert sample.gt_label.tolist() == [1]
    assert set(sample.metainfo_keys()) == {
        "sample_id", "domain", "domain_index", "role", "present", "view", "skipped"
    }  # fmt: skip
    assert sample.present == dict(video=True, flow=True, audio=True)


def test_a_sample_is_freed_with_its_last_reference(shared_root):
    """Not when Python looks for circles, which the modalities' results were."""
    dataset = build(shared_root)
    gc.collect()
    gc.disable()
    try:
        item = dataset[0]
        kept = [weakref.ref(x) for x in item["inputs"].values()]
        assert all(each() is not None for each in kept) and len(kept) == 3
        del item
        assert [each() for each in kept] == [None] * 3
    finally:
        gc.enable()


def test_declared_order_and_subsets(shared_root):
    for names in (("audio",), ("flow", "video"), ("video", "audio")):
        item = build(shared_root, "test", modalities=names)[0]
        assert list(item["inputs"]) == list(names)
        assert list(item["data_samples"].present) == list(names)


def test_stock_video_pipeline_works_unmodified(shared_root):
    stock = [
        dict(type="DecordInit"),
        dict(type="SampleFrames", clip_len=4, frame_interval=2, test_mode=True),
        dict(type="DecordDecode"),
        dict(type="Resize", scale=(-1, 20)),
        dict(type="CenterCrop", crop_size=16),
        dict(type="Flip", flip_ratio=0.5),
        dict(type="FormatShape", input_format="NCTHW", collapse=True),
    ]
    ours = copy.deepcopy(stock)
    for place, name in ((0, "OpenVideo"), (1, "SampleClip"), (2, "DecodeVideo")):
        ours[place]["type"] = name
    ours[5]["type"] = "ClipFlip"
    items = [
        build(shared_root, "test", modalities=["video"], pipelines=dict(video=p))[1]
        for p in (stock, ours)
    ]
    assert items[0]["inputs"]["video"].shape == (3, 4, 16, 16)
    assert same(*items)


def test_row_values_reach_the_pipelines(shared_root):
    class Rows(HACDataset):
        MODALITY_TYPES = {**HACDataset.MODALITY_TYPES, "depth": "RGB"}

        def rows(self, domain, split):
            rows = super().rows(domain, split)
            for row in rows:
                row["files"]["depth"] = row["files"]["video"]
                row["start"] = 1.5
                row["extras"] = {"depth": dict(start_index=3, total_frames=8)}
            return rows

    seen = {}

    def spy(results):
        seen[results["modality_key"]] = dict(results)
        results["imgs"] = np.zeros((3, 1))
        return results

    data = Rows(
        data_root=str(shared_root),
        target="human",
        pipelines={"video": [spy], "depth": [spy], "flow": [spy]},
    )
    data[0]
    assert list(seen) == ["video", "depth", "flow"]
    assert [seen[m]["modality"] for m in seen] == ["RGB", "RGB", "Flow"]
    assert [seen[m]["start_index"] for m in seen] == [0, 3, 0]
    assert seen["depth"]["total_frames"] == 8 and "total_frames" not in seen["flow"]
    assert {s["start"] for s in seen.values()} == {1.5}
    assert {s["sample_id"] for s in seen.values()} == {"animal/train_0"}
    assert len(seen["flow"]["filename"]) == 2
    assert not seen["flow"].keys() & {"files", "extras", "role", "domain_index"}


def test_audio_hears_the_span_of_the_sampled_video(shared_root):
    kept = {}

    def spy(results):
        kept[results["modality_key"]] = results
        return results

    chain = pipelines()
    chain["video"].append(spy), chain["audio"].append(spy)
    data = build(shared_root, modalities=["video", "audio"], pipelines=chain)
    spans = set()
    for epoch in range(5):
        data[SampleIndex(0, (0, epoch))]
        inds, span = kept["video"]["frame_inds"], kept["audio"]["audio_span"]
        assert span == pytest.approx((inds[0] / 10, (inds[-1] + 1) / 10))
        spans.add(span)
    assert len(spans) > 1


# --- randomness ------------------------------------------------------------


def test_draws_are_a_function_of_seed_epoch_and_index(shared_root):
    data = build(shared_root)
    first = data[SampleIndex(1, (7, 0))]
    data[0], random.random(), np.random.rand(3), torch.rand(2)
    assert same(data[SampleIndex(1, (7, 0))], first)
    assert same(build(shared_root)[SampleIndex(1, (7, 0))], first)
    for other in ((7, 1), (8, 0)):
        item = data[SampleIndex(1, other)]
        for name in ALL:
            assert not torch.equal(item["inputs"][name], first["inputs"][name])


def test_process_generators_are_not_touched(shared_root):
    data = build(shared_root)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    data[SampleIndex(0, (0, 0))]
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected


def test_stock_sampler_follows_the_process(shared_root):
    data = build(shared_root)
    np.random.seed(3)
    first, second = data[0], data[0]
    assert not torch.equal(first["inputs"]["video"], second["inputs"]["video"])
    np.random.seed(3)
    assert same(data[0], first)


def test_evaluation_does_not_depend_on_the_index_type(shared_root):
    data = build(shared_root, "test")
    assert same(data[1], data[SampleIndex(1, (4, 4))])
    assert same(data[1], data[1])


def epochs(root, workers, persistent=False, starts=(0, 0, 0)):
    data = build(root)
    sampler = ResumableSampler(data, seed=11)
    loader = DataLoader(
        data,
        batch_size=2,
        sampler=sampler,
        num_workers=workers,
        persistent_workers=persistent,
        collate_fn=lambda items: items,
        worker_init_fn=lambda i: worker_init_fn(i, workers, 0, 5),
    )
    items = []
    for epoch, start in enumerate(starts):
        sampler.set_epoch(epoch)
        sampler.set_start(start)
        items.append([item for batch in loader for item in batch])
    stop_workers(loader)
    return items


def test_workers_do_not_change_the_data(shared_root):
    alone = epochs(shared_root, 0)
    for other in (
        epochs(shared_root, 2),
        epochs(shared_root, 2, persistent=True),
    ):
        for one, two in zip(alone, other, strict=True):
            assert len(one) == 6
            assert all(same(a, b) for a, b in zip(one, two, strict=True))
    # The epochs are different: another order, and other draws for the same clip.
    by_id = [{i["data_samples"].sample_id: i for i in items} for items in alone]
    assert list(by_id[0]) != list(by_id[1])
    for name in by_id[0]:
        assert not same(by_id[0][name], by_id[1][name])


def test_started_epoch_continues_the_order(shared_root):
    whole = epochs(shared_root, 0)
    resumed = epochs(shared_root, 2, starts=(6, 4, 0))
    assert resumed[0] == [] and len(resumed[1]) == 2
    assert all(same(a, b) for a, b in zip(resumed[1], whole[1][4:], strict=True))
    assert all(same(a, b) for a, b in zip(resumed[2], whole[2], strict=True))


# The y of the toy's flow shows what its video shows, so crops can be compared.
def agree(item, flipped):
    video, flow = item["inputs"]["video"], item["inputs"]["flow"]
    brightness = video.float().mean(0)
    return (brightness - flow[1].float()).abs().mean().item() < 1.5


def test_joint_augmentation_agrees_in_time_crop_and_flip(shared_root):
    kept = {}

    def spy(results):
        kept[results["modality_key"]] = dict(results)
        return results

    chain = pipelines()
    for name in ("video", "flow"):
        chain[name].insert(-1, spy)
    data = build(shared_root, pipelines=chain, modalities=["video", "flow"])
    flips = set()
    for epoch in range(8):
        for index in (0, 3):
            item = data[SampleIndex(index, (0, epoch))]
            video, flow = kept["video"], kept["flow"]
            for key in ("frame_inds", "crop_bbox", "flip"):
                np.testing.assert_array_equal(video[key], flow[key])
            flips.add(bool(video["flip"]))
            assert agree(item, video["flip"])
    assert flips == {True, False}


def test_joint_augmentation_with_a_stock_sampler(shared_root):
    data = build(shared_root, modalities=["video", "flow"])
    np.random.seed(0)
    assert all(agree(data[i], None) for i in range(6))


def test_independent_augmentation(shared_root):
    data = build(shared_root, joint_augment=False, modalities=["video", "flow"])
    items = [data[SampleIndex(i, (0, e))] for i in range(6) for e in range(3)]
    assert sum(agree(item, None) for item in items) < 6
    assert same(data[SampleIndex(5, (0, 2))], items[-1])
    # What a modality draws does not depend on which others are in use.
    alone = build(shared_root, joint_augment=False, modalities=["flow"])
    flow = alone[SampleIndex(5, (0, 2))]["inputs"]["flow"]
    assert torch.equal(flow, items[-1]["inputs"]["flow"])


def test_flow_flip_inverts_x_only(shared_root):
    def chain(ratio):
        made = pipelines(train=False)
        made["flow"].insert(-1, dict(type="ClipFlip", flip_ratio=ratio))
        return made

    kept, flipped = (
        build(shared_root, "test", pipelines=chain(p), modalities=["flow"])[0]
        for p in (0.0, 1.0)
    )
    frames = kept["inputs"]["flow"].permute(1, 2, 3, 0).numpy()
    expected = np.stack([mirror_flow(f) for f in frames])
    got = flipped["inputs"]["flow"].permute(1, 2, 3, 0).numpy()
    np.testing.assert_array_equal(got, expected)


# --- absence and damage ----------------------------------------------------


def one(root, **kwargs):
    """A single clip, which may lack anything: what its file says is looked at."""
    data = build(root, "test", eval_split="test", lazy_init=True, **kwargs)
    data.full_init()
    return data


@pytest.mark.parametrize("how", ["no file", "no samples", "silent"])
def test_missing_sound(root, how):
    path = root / "human" / "audio" / "test_0.wav"
    path.unlink()
    if how != "no file":
        write_wav(path, np.zeros(0 if how == "no samples" else 40000))
    item = one(root)[0]
    assert item["data_samples"].present == dict(video=True, flow=True, audio=False)
    audio = item["inputs"]["audio"]
    assert audio.shape == (1, 1, 1) and audio.dtype == torch.float32
    assert not audio.any()


def test_placeholders_are_padded_to_their_batch(root):
    (root / "human" / "audio" / "train_0.wav").unlink()
    (root / "human" / "videos" / "test_0.mp4").unlink()
    for axis in "xy":
        (root / "human" / "flow" / f"train_0_flow_{axis}.mp4").unlink()
    data = build(root, "test", absent_ok=ALL)
    batch = pseudo_collate([data[0], data[1]])
    present = [s.present for s in batch["data_samples"]]
    assert present == [
        dict(video=True, flow=False, audio=False),
        dict(video=False, flow=True, audio=True),
    ]
    plain = dict(type="ActionDataPreprocessor", format_shape="NCTHW")
    preprocessor = MultiModalDataPreprocessor(
        dict(video=plain, flow=plain, audio=dict(type="ActionDataPreprocessor"))
    )
    inputs = preprocessor(batch)["inputs"]
    assert {m: tuple(t.shape) for m, t in inputs.items()} == {
        "video": (2, 3, 4, 16, 16),
        "flow": (2, 2, 4, 16, 16),
        "audio": (2, 1, 33, 249),
    }
    for name, tensor in inputs.items():
        for row, there in zip(tensor, present, strict=True):
            assert row.any().item() == there[name]


def test_missing_video_is_an_error_unless_admitted(root):
    path = root / "human" / "videos" / "test_0.mp4"
    path.unlink()
    with pytest.raises(FileNotFoundError) as error:
        one(root)[0]
    text = str(error.value)
    assert f"'human/test_0' has no video: {path} does not exist" in text
    assert "optional_modalities=['audio', 'video']" in text


def test_half_a_flow_pair_is_missing(root):
    path = root / "human" / "flow" / "test_0_flow_y.mp4"
    path.unlink()
    with pytest.raises(FileNotFoundError, match="has no flow: .*test_0_flow_y.mp4"):
        one(root)[0]


def test_nothing_is_there(root):
    (root / "human" / "audio" / "test_0.wav").unlink()
    with pytest.raises(ValueError) as error:
        one(root, modalities=["audio"])[0]
    text = str(error.value)
    assert "'human/test_0' has none of the modalities ['audio']" in text
    assert "test_0.wav does not exist" in text and "Leave it out" in text


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_file_stops_the_loader_and_is_named(root, workers):
    path = root / "animal" / "videos" / "train_0.mp4"
    path.write_bytes(path.read_bytes()[:2000])
    data = build(root, sources="animal")
    loader = DataLoader(data, num_workers=workers, collate_fn=pseudo_collate)
    with pytest.raises(UnreadableMediaError) as error:
        list(loader)
    assert "cannot read video of sample 'animal/train_0' from" in str(error.value)
    assert str(path) in str(error.value)


def test_pipeline_that_returns_nothing(shared_root):
    chain = dict(video=[lambda results: None])
    data = build(shared_root, pipelines=chain, modalities=None)
    with pytest.raises(ValueError, match="'video' returned nothing.*'animal/train_0'"):
        data[0]


def test_pipeline_without_an_end(shared_root):
    chain = dict(video=pipelines()["video"][:-1])
    data = build(shared_root, pipelines=chain, modalities=None)
    with pytest.raises(ValueError, match="'video' left neither.*FormatClip"):
        data[0]


# --- skipping --------------------------------------------------------------


@pytest.fixture
def said(monkeypatch):
    """What the dataset logs."""
    texts = []
    monkeypatch.setattr(
        multimodal_dataset, "print_log", lambda text, **_: texts.append(text)
    )
    return texts


def harm(root, how):
    """Damages human/test_0; returns words of the reason."""
    video = root / "human" / "videos" / "test_0.mp4"
    if how == "zero bytes":
        video.write_bytes(b"")
        return "(0 bytes)"
    if how == "truncated":
        video.write_bytes(video.read_bytes()[:-500])
        return "cut off"
    if how == "missing flow":
        (root / "human" / "flow" / "test_0_flow_x.mp4").unlink()
        return "has no flow"
    video.unlink()
    return "test_0.mp4 does not exist"


@pytest.mark.parametrize("how", ["zero bytes", "truncated", "missing flow", "missing"])
def test_skip_marks_the_sample_and_warns_once(root, how, said):
    reason = harm(root, how)
    data = build(root, "test", on_error="skip", lazy_init=True)
    data.full_init()
    items = [data[0], data[1], data[1], data[1]]
    assert len(said) == 1
    assert "'human/test_0' is skipped" in said[0] and reason in said[0]
    fine, lost = (item["data_samples"] for item in items[:2])
    assert (fine.sample_id, lost.sample_id) == ("human/train_0", "human/test_0")
    assert fine.skipped == "" and all(fine.present.values())
    assert reason in lost.skipped and not any(lost.present.values())
    assert not any(x.any() for x in items[1]["inputs"].values())
    assert int(lost.gt_label) == data.get_data_info(1)["label"] and len(data) == 2
    with pytest.raises((UnreadableMediaError, FileNotFoundError)) as error:
        one(root)[0]
    assert str(error.value) == lost.skipped
    assert lost.fault == ("missing" if "missing" in how else "damaged")


def test_skip_does_not_hide_a_bad_annotation_file(root):
    split = root / "HAC_Splits" / "HAC_train_only_human.csv"
    split.write_bytes(b"train_0.mp4,nan\r\n")
    with pytest.raises(ValueError, match="line 1: label 'nan' is none of the 7"):
        build(root, "test", on_error="skip")


# --- both splits, views, shared pieces -----------------------------------------


def shared_clip(root):
    """human/test_0 also stands in the train split."""
    split = root / "HAC_Splits" / "HAC_train_only_human.csv"
    split.write_bytes(split.read_bytes() + b"test_0.mp4,0\r\n")


def test_overlap(root):
    shared_clip(root)
    human = dict(sources="human", target="animal")
    kept, dropped = build(root, **human), build(root, **human, overlap="drop")
    assert ids(kept) == ["human/train_0", "human/test_0"]
    assert ids(dropped) == ["human/train_0"]
    target = build(root, "test")
    assert ids(target) == ["human/train_0", "human/test_0", "human/test_0"]
    assert (target.metainfo["N"], target.metainfo["clips"]) == (3, 2)
    assert ids(build(root, "test", overlap="drop")) == ["human/train_0", "human/test_0"]


def test_overlap_is_reported(root, said):
    build(root, sources="human", target="animal")
    said.clear()
    shared_clip(root)
    build(root, sources="human", target="animal")
    (text,) = (text for text in said if "target has classes" not in text)
    assert "1 of the 2 train clips of 'human' stand in its test split too" in text


def test_views_are_independent_draws(shared_root):
    two, one_view = build(shared_root, views=2), build(shared_root)
    index = SampleIndex(4, (7, 1))
    first, second = two[index]
    assert same(first, one_view[index])
    assert [v["data_samples"].view for v in (first, second)] == [0, 1]
    assert first["data_samples"].sample_id == second["data_samples"].sample_id
    assert not torch.equal(first["inputs"]["video"], second["inputs"]["video"])
    again = two[index]
    assert same(first, again[0]) and same(second, again[1])


def test_batches_go_to_the_device_while_the_cpu_goes_on(shared_root, monkeypatch):
    """From page-locked memory, which torch's loader makes of every batch."""
    data = build(shared_root)
    batch = collate_views([data[0], data[1]])
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x, *_: x.clone())
    pinned = pin_memory(batch)
    assert_same_trees(pinned["inputs"], batch["inputs"])
    assert all(map(operator.is_, pinned["data_samples"], batch["data_samples"]))

    waits, to = [], torch.Tensor.to

    def watched(tensor, *args, non_blocking=False, **kwargs):
        waits.append(not non_blocking)
        return to(tensor, *args, non_blocking=non_blocking, **kwargs)

    model = build_toy()
    monkeypatch.setattr(torch.Tensor, "to", watched)
    model.data_preprocessor.cast_data(pinned)
    assert len(waits) >= 2 * len(batch["inputs"]) and not any(waits)


def test_views_are_collated_behind_each_other(shared_root):
    data = build(shared_root, views=2)
    batch = collate_views([data[SampleIndex(i, (0, 0))] for i in (2, 0)])
    rows = [(s.sample_id, s.view) for s in batch["data_samples"]]
    names = [ids(data)[i] for i in (2, 0)]
    assert rows == [(names[0], 0), (names[1], 0), (names[0], 1), (names[1], 1)]
    assert len(batch["inputs"]["video"]) == 4
    single = build(shared_root)
    plain = [single[SampleIndex(i, (0, 0))] for i in (2, 0)]
    assert [s.sample_id for s in collate_views(plain)["data_samples"]] == names


def test_a_list_within_a_pipeline_is_spliced(shared_root):
    flat = pipelines(train=False)
    nested = {m: [own[:1], [own[1:3], *own[3:]]] for m, own in flat.items()}
    a, b = (build(shared_root, "test", pipelines=p)[0] for p in (flat, nested))
    assert same(a, b)


# --- configuration ---------------------------------------------------------


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(modalities=["smell"]), r"unknown modality 'smell'; known are \['video'"),
        (dict(pipelines=dict(smell=[])), "unknown modality 'smell'; known are"),
        (
            dict(pipelines=dict(video=[]), modalities=["flow"]),
            r"modality 'flow' has no pipeline; pipelines has \['video'\]",
        ),
        (dict(modalities=[]), "no modality in use"),
        (dict(modalities=["flow", "flow"]), "'flow' stands 2 times in modalities"),
        (dict(target="sketch"), r"unknown domain 'sketch' in targets.*'human', 'anim"),
        (dict(sources=["x"]), "unknown domain 'x' in sources"),
        (dict(sources=["animal", "human"]), "target 'human' is among the sources"),
        (dict(target=None), "neither `target` nor `sources` is given"),
        (dict(target=None, sources="human", use="test"), "need a target; choose among"),
        (dict(target=["human", "animal", "cartoon"]), "needs at least one source"),
        (dict(use="eval"), r"use must be one of \['train', 'val', 'test', 'in_domain'"),
        (dict(eval_split="all"), r"eval_split must be one of \['full', 'test'\]"),
        (dict(watch_target=True), "watch_target belongs to use='val', got use='train'"),
        (dict(on_error="pass"), r"on_error must be one of \['raise', 'skip'\]"),
        (dict(overlap=True), r"overlap must be one of \['keep', 'drop'\], got True"),
        (dict(views=3), "views must be one of \\[1, 2\\], got 3"),
        (dict(views=2, use="val"), "views=2 belongs to use='train'"),
        (dict(test_mode=True), "test_mode=True contradicts use='train'"),
    ],
)
def test_configuration_errors(shared_root, kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(shared_root, **kwargs)


def test_configuration_errors_come_together(shared_root):
    with pytest.raises(ValueError) as error:
        build(shared_root, "eval", target="sketch", modalities=["smell"])
    lines = str(error.value).splitlines()
    assert lines[0] == "HACDataset cannot be built:" and len(lines) == 4


def test_sound_before_the_frames_that_it_needs(shared_root):
    with pytest.raises(ValueError, match="put 'video' before 'audio' in modalities"):
        build(shared_root, modalities=["audio", "video"])
    # One of the two that may give the frames is enough.
    build(shared_root, modalities=["flow", "audio", "video"])


def test_a_dataset_must_say_its_rows(tmp_path):
    class Nothing(MultiModalDataset):
        METAINFO = dict(classes=("a",), domains=("x", "y"))

    with pytest.raises(NotImplementedError, match="Nothing must say its rows"):
        Nothing(str(tmp_path), dict(video=[]), target="x")
