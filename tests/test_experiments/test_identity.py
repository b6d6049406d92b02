"""What makes two runs the same, and what makes them different ones."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from copy import deepcopy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import Config, ConfigDict

from media import write_epic, write_own, write_split
from mmaction_mbcd.cli import set_resume
from mmaction_mbcd.datasets.frame_store import StoreSettings
from mmaction_mbcd.errors import UsageError
from mmaction_mbcd.experiments.grid import Grid
from mmaction_mbcd.experiments.identity import (
    Identity,
    _rows,
    _stable,
    data_identity,
    environment,
    identity,
    resolve,
    revision,
)
from mmaction_mbcd.experiments.job import checked_settings
from tests_support import ROOT

CONFIGS = ROOT / "configs" / "mbcd"


@pytest.fixture(autouse=True)
def _read_again():
    _rows.cache_clear()


@pytest.fixture(scope="module")
def hac(tmp_path_factory):
    """The annotations of HAC; what they describe is not asked for."""
    root = tmp_path_factory.mktemp("hac")
    for domain in ("human", "animal", "cartoon"):
        for split, count in (("train", 4), ("test", 2)):
            write_split(
                root, domain, split, [(f"{split}_{i}.mp4", i % 7) for i in range(count)]
            )
    return root


def spec_of(root, **keys):
    """The one run of a grid on HAC."""
    targets = {} if {"pairs", "single_source"} & keys.keys() else {"targets": ["human"]}
    base = dict(datasets=["hac"], methods=["mbcd"], data_root=str(root))
    (spec,) = Grid.of(base | targets | keys).specs(CONFIGS)
    return spec


def digest(root, settings=(), **keys):
    spec = spec_of(root, **keys)
    return identity(resolve(spec, settings), spec.seed).digest


# --- the config and the options

SAME = dict(
    workers={f"{s}_dataloader.num_workers": 0 for s in ("train", "val", "test")},
    persistent={"train_dataloader.persistent_workers": False},
    pinned={"train_dataloader.pin_memory": True},
    folder={"work_dir": "elsewhere"},
    log_interval={"default_hooks.logger.interval": 1},
    log_level={"log_level": "ERROR"},
    log_window={"log_processor.window_size": 3},
    checkpoints={"default_hooks.checkpoint.max_keep_ckpts": -1},
    best={"default_hooks.checkpoint.save_best": ["source/top1", "target/top1"]},
    minutes={"default_hooks.checkpoint.minutes": 1},
    curves={"val_dataloader.dataset.watch_target": True},
    report={"default_hooks.report.interval": 5.0},
)
DIFFERENT = dict(
    learning_rate={"optim_wrapper.optimizer.lr": 0.5},
    weight_decay={"optim_wrapper.optimizer.weight_decay": 0.25},
    epochs={"train_cfg.max_epochs": 3},
    validations={"train_cfg.val_interval": 2},
    batch={"train_dataloader.batch_size": 3},
    test_batch={"test_dataloader.batch_size": 3},
    accumulation={"optim_wrapper.accumulative_counts": 2},
    beta={"custom_hooks.0.beta": 0.5},
    weights={"load_from": "some.pth"},
    scaled={"auto_scale_lr.enable": True, "auto_scale_lr.base_batch_size": 4},
    no_pretraining={"model.encoders.video.pretrained": None},
    views={"val_dataloader.dataset.eval_split": "test"},
    errors={"train_dataloader.dataset.on_error": "skip"},
)  # fmt: skip


@pytest.fixture(scope="module")
def base(hac):
    return digest(hac)


def test_frames_from_a_store(hac, base, tmp_path):
    """A store that loses nothing gives the same run, one that does another."""
    found = {}
    for codec, quality in (("png", 92), ("pnm", 92), ("jpeg", 92), ("jpeg", 80)):
        root = tmp_path / f"{codec}{quality}"
        root.mkdir()
        sizes = dict(video=256, flow=256)
        text = StoreSettings(codec, quality, sizes).text()
        (root / "frame_store.json").write_text(text)
        arguments = ["--frame-store", str(root)]
        found[codec, quality] = digest(hac, arguments=arguments)
    assert found["png", 92] == found["pnm", 92] == base
    assert len({base, found["jpeg", 92], found["jpeg", 80]}) == 3
    # Spectrograms are stored without loss.
    root = tmp_path / "jpeg92"
    text = StoreSettings("jpeg", 92, sizes, dict(audio=["any"])).text()
    (root / "frame_store.json").write_text(text)
    assert digest(hac, arguments=["--frame-store", str(root)]) == found["jpeg", 92]


@pytest.fixture(scope="module")
def config(hac):
    return resolve(spec_of(hac))


def test_what_leaves_the_result_alone(hac, base, config):
    """All of it at once, and what the config says anyway."""
    options = {key: value for each in SAME.values() for key, value in each.items()}
    options["train_cfg.max_epochs"] = config.train_cfg.max_epochs
    assert digest(hac, options=options) == base


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_changes_the_result(hac, base, name):
    assert digest(hac, options=DIFFERENT[name]) != base


RUNS = dict(
    seed=dict(seeds=[1]),
    target=dict(targets=["animal"]),
    single=dict(single_source=True, targets=["human"]),
    pair=dict(pairs=[["animal", "human"]]),
    modalities=dict(modalities=[["video", "audio"]]),
    order=dict(modalities=[["video", "flow", "audio"]]),
    method=dict(methods=["ema"]),
    sampling=dict(arguments=["--sampling", "repaired"]),
    variant=dict(variants={"v": {"train_cfg.max_epochs": 2}}),
)


def test_runs_differ_from_each_other(hac, base):
    found = {name: digest(hac, **keys) for name, keys in RUNS.items()}
    assert len({base, *found.values()}) == 1 + len(RUNS), found


def test_options_are_the_same_wherever_they_are_said(hac):
    option = {"train_cfg.max_epochs": 2}
    digests = {
        digest(hac, options=option),
        digest(hac, variants={"fast": option}),
        digest(hac, options={"train_cfg": {"max_epochs": 2}}),
        digest(hac, settings=["train_cfg.max_epochs=2"]),
    }
    assert len(digests) == 1


def test_rules_that_are_asked_for_later_leave_a_run_the_same(hac, base):
    every = ["source", "last", "oracle", "leave_one_source_out"]
    settings = checked_settings(spec_of(hac), every)
    assert "val_dataloader.dataset.watch_target=True" in settings
    watched = resolve(spec_of(hac), settings)
    assert watched.val_dataloader.dataset.watch_target is True
    assert identity(watched, 0).digest == base


def test_wrong_arguments_are_errors_not_ignored(hac):
    spec = spec_of(hac)
    for arguments, message in (
        (("--amp",), "unrecognized arguments: --amp"),
        (("--sampling", "x"), "invalid choice: 'x'"),
    ):
        wrong = type(spec)(**(spec.__dict__ | dict(arguments=arguments)))
        with pytest.raises(UsageError, match=message):
            resolve(wrong)


# --- the data


@pytest.fixture
def copy(hac, tmp_path):
    """Another folder with the same annotations."""
    root = tmp_path / "a"
    shutil.copytree(hac, root)
    return root


def split_file(root, domain="animal", split="train"):
    return root / "HAC_Splits" / f"HAC_{split}_only_{domain}.csv"


def test_a_copied_dataset_is_the_same(copy, base, monkeypatch):
    assert digest(copy) == base
    # A folder whose name is a letter that stands in every row.
    monkeypatch.chdir(copy.parent)
    assert digest("a") == base
    monkeypatch.chdir(copy)
    assert digest(".") == base


@pytest.mark.parametrize(("domain", "split"), [("human", "test"), ("animal", "train")])
def test_a_changed_label_or_a_clip_more(copy, base, domain, split):
    path = split_file(copy, domain, split)
    before = path.read_text()
    path.write_text(before.replace(f"{split}_1.mp4,1", f"{split}_1.mp4,2"))
    changed = digest(copy)
    _rows.cache_clear()
    path.write_text(before.rstrip("\n") + "\nanother.mp4,0\n")
    longer = digest(copy)
    _rows.cache_clear()
    path.write_text(before)
    assert len({base, changed, longer}) == 3 and digest(copy) == base


def test_counts_by_hand(hac):
    """Human is unseen: four and two clips of two sources; the six of the target."""
    found = data_identity(resolve(spec_of(hac)))
    assert {use: data["N"] for use, data in found.items()} == dict(
        train=8, val=4, test=6
    )
    watched = ["val_dataloader.dataset.watch_target=True"]
    assert data_identity(resolve(spec_of(hac), watched)) == found


def test_the_order_of_clips_counts(copy, base):
    path = split_file(copy)
    head, *rest = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*rest, head]))
    assert digest(copy) != base  # indices of samples seed their crops


def test_media_are_not_looked_at(copy, base):
    (copy / "animal" / "videos").mkdir(parents=True)
    (copy / "animal" / "videos" / "train_0.mp4").write_bytes(b"no video")
    assert digest(copy) == base


def test_annotations_that_are_missing(tmp_path):
    with pytest.raises((ValueError, OSError), match="HAC_train_only"):
        digest(tmp_path)


@pytest.fixture(scope="module")
def roots(hac, tiny_data, tmp_path_factory):
    epic = tmp_path_factory.mktemp("epic")
    write_epic(epic)
    own = tmp_path_factory.mktemp("own")
    write_own(own)
    return dict(hac=hac, epic_kitchens=epic, own_videos=own, synth_action=tiny_data)


@pytest.mark.parametrize("name", ["hac", "epic_kitchens", "own_videos", "synth_action"])
def test_every_dataset_has_one(name, roots, tmp_path):
    """Also if it lies elsewhere; and another one if a clip is gone."""

    def found(root):
        grid = Grid.of(
            dict(datasets=[name], methods=["erm", "mbcd"], data_root=str(root))
        )
        specs = grid.specs(CONFIGS)[:2]
        return [identity(resolve(spec), 0) for spec in specs]

    erm, mbcd = found(roots[name])
    assert erm.data == mbcd.data and erm.digest != mbcd.digest
    assert set(erm.data) == {"train", "val", "test"}
    assert all(data["N"] > 0 for data in erm.data.values())
    shutil.copytree(roots[name], tmp_path / "e")
    assert [each.digest for each in found(tmp_path / "e")] == [erm.digest, mbcd.digest]
    assert json.loads(json.dumps(erm.config)) == erm.config  # run.json holds it


# --- the digest itself


def test_the_digest_by_hand():
    text = '{"config": {"a": [1, 2]}, "data": {"test": {"N": 3}}, "seed": 4}'
    found = Identity({"a": [1, 2]}, 4, {"test": {"N": 3}}).digest
    assert found == hashlib.sha256(text.encode()).hexdigest()


def test_processes_that_train_together_have_larger_batches(config):
    one, two = identity(config, 0), identity(config, 0, 2)
    assert identity(config, 0, 1).digest == one.digest != two.digest


KEYS = st.text("abcdef", min_size=1, max_size=3)
TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4)
    ),
    max_leaves=8,
)


def shuffled(tree):
    if isinstance(tree, dict):
        return {k: shuffled(tree[k]) for k in reversed(tree)}
    return [shuffled(each) for each in tree] if isinstance(tree, list) else tree


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(KEYS, TREES), st.dictionaries(KEYS, TREES))
def test_order_of_keys_does_not_matter_and_values_do(one, other):
    def made(tree):
        return Identity(_stable(tree), 0, {}).digest

    assert made(one) == made(shuffled(one)) == made(ConfigDict(one))
    text = [json.dumps(tree, sort_keys=True) for tree in (one, other)]
    assert (made(one) == made(other)) == (text[0] == text[1])


def test_indifferent_keys_are_dropped_in_every_depth():
    inner = dict(type="A", num_workers=3, data_root="/x", kept=1)
    tree = dict(a=[dict(b=inner)], work_dir="/y", default_hooks=dict(timer=1, other=2))
    assert _stable(tree) == dict(
        a=[dict(b=dict(type="A", kept=1))], default_hooks=dict(other=2)
    )
    assert _stable(dict(timer=1)) == dict(timer=1)  # no hook
    assert _stable({1: "a", "b": 2}) == {"1": "a", "b": 2}


def test_runs_from_before_a_hook_was_replaced_are_the_same(config):
    """MMEngine's own logs the same values."""
    older = deepcopy(config)
    older.default_hooks.runtime_info.type = "RuntimeInfoHook"
    assert config.default_hooks.runtime_info.type == "StepInfoHook"
    assert identity(older, 0).digest == identity(config, 0).digest


def test_runs_from_before_a_transform_was_replaced_are_the_same():
    """To a fixed size both resize alike; with the ratio kept, it always was ours."""
    ours = dict(type="ResizeClip", scale=(224, 224), keep_ratio=False)
    assert _stable(ours) == _stable(dict(ours, type="Resize"))
    short = dict(type="ResizeClip", scale=(-1, 256))
    assert _stable(short) != _stable(dict(short, type="Resize"))


def test_values_that_print_differently_in_another_process():
    """Sets have another order there, and functions another address."""
    tree = dict(names={"b", "a"}, kind=dict, call=resolve, none=None)
    assert _stable(tree) == dict(
        names=["a", "b"],
        kind="builtins.dict",
        call="mmaction_mbcd.experiments.identity.resolve",
        none=None,
    )


@pytest.mark.long
def test_another_process_makes_the_same(hac, base):
    code = (
        "import sys, mmaction_mbcd\n"
        "from mmaction_mbcd.experiments.identity import *\n"
        "from mmaction_mbcd.experiments.grid import RunSpec\n"
        "spec = RunSpec.read(json.loads(sys.argv[1]))\n"
        "print(identity(resolve(spec), spec.seed).digest)"
    )
    spec = json.dumps(spec_of(hac).describe())
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code, spec],
            cwd=ROOT, capture_output=True, text=True,
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-500:]
        assert done.stdout.split()[-1] == base


# --- what is recorded beside


def test_environment_and_revision(tmp_path, monkeypatch):
    found = environment(ROOT)
    assert found["versions"]["torch"].startswith("2.") and found["cores"] > 0
    assert json.loads(json.dumps(found)) == found
    assert revision(tmp_path) == ""

    def git(*command):
        name = ["-c", "user.name=n", "-c", "user.email=e"]
        subprocess.run(["git", *name, *command], cwd=tmp_path / "r", check=True)

    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "file").write_text("1")
    for command in (["init", "-q"], ["add", "file"], ["commit", "-qm", "x"]):
        git(*command)
    revision.cache_clear()
    clean = revision(tmp_path / "r")
    assert len(clean) == 12
    (tmp_path / "r" / "file").write_text("2")
    revision.cache_clear()
    assert revision(tmp_path / "r") == clean + "+"
    monkeypatch.setenv("PATH", "")
    revision.cache_clear()
    assert revision(ROOT) == ""


def test_resuming_begins_with_the_weights_that_were_asked_for(tmp_path):
    """An option that the identity has must not be lost on the way to the training."""
    cfg = Config(dict(load_from="w.pth", work_dir=str(tmp_path), resume=False))
    set_resume(cfg, "auto")
    assert cfg.load_from == "w.pth" and cfg.resume is False
    (tmp_path / "epoch_1.pth").touch()
    set_resume(cfg, "auto")
    assert cfg.load_from is None and cfg.resume is True
    bare = Config(dict(load_from=None, work_dir=str(tmp_path / "new")))
    set_resume(bare, "auto")
    assert bare.load_from is None and bare.resume is True
