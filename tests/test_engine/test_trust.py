"""What a run promises of its checkpoints and of its numbers, on toy data."""

import math
import os
import random
import zipfile
from functools import partial

import pytest
import torch
from mmaction.registry import DATASETS, HOOKS, MODELS
from mmengine.hooks import Hook

from mmaction_mbcd.engine import checkpoint_checks as checks
from mmaction_mbcd.errors import CheckpointError, DivergenceError
from mmaction_mbcd.models.objectives import Objective
from tests_support import assert_same_trees
from toy_runner import CHECKPOINT, MBCD, ToyDataset, hook_of, run_toy

TIMED = CHECKPOINT | dict(max_keep_ckpts=2, minutes=0)
GUARD = dict(type="FiniteGuardHook")
TEACHER = dict(type="TeacherEMAHook", beta=0.9)


def saved(folder):
    """Names of the checkpoints from which a run can go on."""
    return {p.name for p in folder.glob("*.pth") if not p.name.startswith("best")}


# ------------------------------------------------------------------ by time


def test_a_checkpoint_by_time_continues_to_the_bit(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = dict(default_hooks__checkpoint=TIMED)
    run_toy(whole, **options)
    stop = [TEACHER, dict(type="Trace", stop_at=9)]
    run_toy(killed, **options, custom_hooks=stop)
    assert saved(killed) == {"timed_iter_8.pth", "timed_iter_9.pth"}
    resumed = run_toy(killed, **options, resume=True)
    assert hook_of(resumed, "Trace").steps[0][0] == 9
    assert saved(killed) == saved(whole) == {"timed_iter_23.pth", "epoch_4.pth"}
    a, b = (torch.load(folder / "epoch_4.pth") for folder in (whole, killed))
    for part in ("state_dict", "ema_state_dict", "optimizer"):
        assert_same_trees(a[part], b[part], part)


def test_time_alone_decides_and_may_be_switched_off(tmp_path):
    for minutes in (None, 10):
        folder = tmp_path / str(minutes)
        run_toy(folder, default_hooks__checkpoint=TIMED | dict(minutes=minutes))
        assert saved(folder) == {"epoch_3.pth", "epoch_4.pth"}


def test_what_a_killed_run_left_is_removed(tmp_path):
    stop = [TEACHER, dict(type="Trace", stop_at=15)]
    run_toy(tmp_path, default_hooks__checkpoint=TIMED, custom_hooks=stop)
    for name in ("epoch_1.pth", "timed_iter_3.pth", "timed_iter_13.pth.part"):
        (tmp_path / name).write_bytes(b"left by a kill")
    (tmp_path / "notes.part").touch()  # not ours
    run_toy(tmp_path, default_hooks__checkpoint=TIMED | dict(minutes=None), resume=True)
    assert saved(tmp_path) == {"epoch_3.pth", "epoch_4.pth"}
    assert (tmp_path / "notes.part").exists()
    assert not list(tmp_path.glob("*.pth.part"))


def test_a_new_run_removes_no_checkpoint_of_an_older_one(tmp_path):
    (tmp_path / "epoch_20.pth").touch()
    (tmp_path / "epoch_0.pth").touch()
    run_toy(tmp_path, default_hooks__checkpoint=TIMED)
    assert {"epoch_20.pth", "epoch_0.pth"} <= saved(tmp_path)


def test_a_run_resumed_from_elsewhere_removes_no_other_run_s(tmp_path):
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    options = dict(default_hooks__checkpoint=TIMED | dict(minutes=None))
    run_toy(elsewhere, **options)
    here.mkdir()
    others = {"epoch_1.pth", "epoch_2.pth", "iter_3.pth", "timed_iter_5.pth"}
    for name in others:
        (here / name).touch()
    start = str(elsewhere / "epoch_3.pth")
    run_toy(here, **options, load_from=start, resume=True)
    assert others <= saved(here)


def test_a_full_disk(tmp_path):
    """/dev/full says what a full disk says."""
    stop = [TEACHER, dict(type="Trace", stop_at=7)]
    run_toy(tmp_path, custom_hooks=stop)
    before = (tmp_path / "epoch_1.pth").read_bytes()
    part = tmp_path / "epoch_2.pth.part"

    @HOOKS.register_module(force=True)
    class Full(Hook):
        def after_train_epoch(self, runner):
            os.symlink("/dev/full", part)

    hooks = [TEACHER, dict(type="Trace"), dict(type="Full")]
    with pytest.raises(CheckpointError, match=r"no room for .*epoch_2\.pth: it takes "):
        run_toy(tmp_path, custom_hooks=hooks, resume=True)
    assert not os.path.lexists(part)
    assert (tmp_path / "epoch_1.pth").read_bytes() == before
    resumed = run_toy(tmp_path, resume=True)
    assert hook_of(resumed, "Trace").steps[0][0] == 6 and resumed.iter == 24


# -------------------------------------------------------------- not a number


@DATASETS.register_module()
class Poisoned(ToyDataset):
    """One sample of one modality is not a number."""

    def __getitem__(self, index):
        item = super().__getitem__(index)
        if int(index) == 5:
            item["inputs"]["audio"][:] = math.nan
        return item


@HOOKS.register_module()
class Watch(Hook):
    """Weights of student and teacher before and after each step."""

    priority = "LOWEST"

    def __init__(self):
        self.after = []

    def after_train_iter(self, runner, *args, **kwargs):
        teacher = hook_of(runner, "TeacherEMAHook").ema_model
        both = dict(student=runner.model.state_dict(), teacher=teacher.state_dict())
        self.after.append(
            {
                f"{who}.{name}": value.clone()
                for who, state in both.items()
                for name, value in state.items()
            }
        )


def test_the_first_loss_that_is_not_finite_stops_the_run(tmp_path):
    hooks = [TEACHER, GUARD, dict(type="Trace"), dict(type="Watch")]
    options = dict(
        custom_hooks=hooks,
        default_hooks__checkpoint=TIMED,
        train_dataloader__dataset=dict(type="Poisoned"),
    )
    with pytest.raises(DivergenceError) as error:
        run_toy(tmp_path, **options)
    text = str(error.value)
    assert "loss_audio (modality audio)" in text and "not finite" in text
    step = int(text.split("iteration ")[1].split()[0])
    assert step > 1 and f"timed_iter_{step - 1}.pth" in text
    assert (
        f"Samples whose data is not finite: {ToyDataset().samples[5].sample_id}" in text
    )
    assert "action=skip" in text
    state = torch.load(tmp_path / f"timed_iter_{step - 1}.pth")
    for part in ("state_dict", "ema_state_dict"):
        assert all(torch.isfinite(v).all() for v in state[part].values())


def test_a_skipped_step_is_as_if_it_had_not_been(tmp_path):
    guard = dict(GUARD, action="skip")
    hooks = [TEACHER, guard, dict(type="Trace"), dict(type="Watch")]
    runner = run_toy(
        tmp_path,
        custom_hooks=hooks,
        train_dataloader__dataset=dict(type="Poisoned"),
    )
    assert hook_of(runner, "FiniteGuardHook").skipped == 4  # once an epoch
    states = hook_of(runner, "Watch").after
    equal = [
        all(torch.equal(a[key], b[key]) for key in a if key != "teacher.steps")
        for a, b in zip(states, states[1:], strict=False)
    ]
    assert equal.count(True) in (3, 4)  # 3 if the very first step was skipped
    assert all(torch.isfinite(v).all() for v in states[-1].values())
    assert int(states[-1]["teacher.steps"]) == 1 + 24 - 4


def test_skipping_has_a_limit(tmp_path):
    guard = dict(GUARD, action="skip", limit=2)
    with pytest.raises(DivergenceError, match="^3 steps were not finite"):
        run_toy(
            tmp_path,
            custom_hooks=[TEACHER, guard, dict(type="Trace")],
            train_dataloader__dataset=dict(type="Poisoned"),
        )


@MODELS.register_module()
class Cornered(Objective):
    """Zero, with a gradient of 0 * infinity."""

    def forward(self, outputs):
        x = outputs.fused_logits.sum() * 0
        return dict(loss_corner=torch.sqrt(x * x))


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path):
    with pytest.raises(DivergenceError, match="1 .*but the gradients are not"):
        run_toy(
            tmp_path,
            model__objectives=[*MBCD, dict(type="Cornered")],
            custom_hooks=[TEACHER, GUARD, dict(type="Trace")],
        )


def test_weights_that_are_not_finite_replace_no_checkpoint(tmp_path):
    @HOOKS.register_module(force=True)
    class Spoil(Hook):
        def after_train_iter(self, runner, *args, **kwargs):
            if runner.iter == 11:
                next(runner.model.parameters()).data[:] = math.inf

    hooks = [TEACHER, dict(type="Trace"), dict(type="Spoil")]
    with pytest.raises(CheckpointError, match=r"not finite.* is .*epoch_1\.pth"):
        run_toy(tmp_path, custom_hooks=hooks)
    assert saved(tmp_path) == {"epoch_1.pth"}
    state = torch.load(tmp_path / "epoch_1.pth")["state_dict"]
    assert all(torch.isfinite(v).all() for v in state.values())
    (best,) = tmp_path.glob("best*.pth")
    assert best.name.endswith("epoch_1.pth")


def test_the_guard_changes_nothing(tmp_path):
    for name, hooks in (("with", [TEACHER, GUARD]), ("without", [TEACHER])):
        hooks = [*hooks, dict(type="Trace")]
        run_toy(tmp_path / name, custom_hooks=hooks, train_cfg__max_epochs=2)
    a, b = (torch.load(tmp_path / n / "epoch_2.pth") for n in ("with", "without"))
    for part in ("state_dict", "ema_state_dict", "optimizer"):
        assert_same_trees(a[part], b[part], part)


# ------------------------------------------------------------- another model


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    run_toy(folder, train_cfg__max_epochs=1)
    return folder / "epoch_1.pth"


def run_test(folder, checkpoint, **options):
    """A runner after loading, for testing."""
    runner = run_toy(folder, train=False, load_from=str(checkpoint), **options)
    runner.test()
    return runner


def changed(checkpoint, folder, change):
    """A copy of a checkpoint whose weights are changed."""
    content = torch.load(checkpoint)
    for part in ("state_dict", "ema_state_dict"):
        content[part] = change(content[part])
    torch.save(content, folder / "changed.pth")
    return folder / "changed.pth"


def without_heads(state):
    return {k: v for k, v in state.items() if "fused_head" not in k}


def wider_heads(state):
    return {
        k: torch.cat([v, v]) if "fused_head" in k and v.dim() else v
        for k, v in state.items()
    }


def renamed(state):
    return {f"other.{k}": v for k, v in state.items()}


def surplus(state):
    return {**state, "extra.weight": torch.zeros(2)}


PLAIN = dict(custom_hooks=[])


def test_a_checkpoint_that_fits_is_tested(tmp_path, trained):
    runner = run_test(tmp_path, trained)
    loaded = hook_of(runner, "ResumableCheckpointHook").loaded
    assert loaded.complete and len(loaded.matched) == len(runner.model.state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_heads, r"missing \(such as \w*fused_head"),
        (wider_heads, r"of another shape \(such as \w*fused_head"),
        (surplus, r"1 unexpected \(such as extra\.weight\)"),
        (renamed, r"no weight fits \(0 of the model's \d+ weights"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, trained, change, message):
    path = changed(trained, tmp_path, change)
    with pytest.raises(CheckpointError, match=message):
        run_test(tmp_path, path, **PLAIN)
    with pytest.raises(CheckpointError):
        run_test(tmp_path, path, custom_hooks=[TEACHER])


def test_a_part_is_tested_by_those_who_mean_it(tmp_path, trained):
    path = changed(trained, tmp_path, without_heads)
    for hooks in ([], [TEACHER]):
        runner = run_test(tmp_path, path, custom_hooks=hooks, allow_partial=True)
        loaded = hook_of(runner, "ResumableCheckpointHook").loaded
        assert loaded.counts["missing"] > 0 and loaded.counts["matched"] > 0
    path = changed(trained, tmp_path, renamed)
    with pytest.raises(CheckpointError, match="no weight fits"):
        run_test(tmp_path, path, **PLAIN, allow_partial=True)


def test_a_training_may_start_from_part_of_the_weights(tmp_path, trained):
    options = dict(train_cfg__max_epochs=1)
    path = changed(trained, tmp_path, without_heads)
    runner = run_toy(tmp_path / "a", load_from=str(path), **options)
    assert runner.iter == 6
    with pytest.raises(CheckpointError, match="missing"):
        run_toy(tmp_path / "b", load_from=str(path), resume=True, **options)
    path = changed(trained, tmp_path, renamed)
    with pytest.raises(CheckpointError, match="no weight fits"):
        run_toy(tmp_path / "c", load_from=str(path), **options)


# -------------------------------------------------------- another experiment


@DATASETS.register_module()
class ToyDomains(ToyDataset):
    def __init__(self, sources=("a", "b"), target=("c",), use="train", **kwargs):
        super().__init__(train=use == "train", **kwargs)
        self.use = use
        self.metainfo |= dict(sources=tuple(sources), target=tuple(target))


def domains(use, **kwargs):
    return dict(type="ToyDomains", use=use, **kwargs)


@pytest.fixture(scope="module")
def two_domains(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    run_toy(
        folder,
        train_cfg__max_epochs=1,
        train_dataloader__dataset=domains("train"),
        method=dict(name="MBCD"),
    )
    return folder / "epoch_1.pth"


def test_a_checkpoint_says_what_it_is_of(two_domains):
    assert torch.load(two_domains)["meta"]["experiment"] == dict(
        method="MBCD",
        dataset="ToyDomains",
        sources=["a", "b"],
        target=["c"],
        modalities=["video", "audio"],
        classes=["c0", "c1", "c2"],
        held_out_classes=[],
    )


@pytest.mark.parametrize(
    ("dataset", "method", "message"),
    [
        (domains("test"), "MBCD", None),
        (domains("test", sources=("a",), target=("d",)), "MBCD", None),
        (domains("in_domain"), "MBCD", None),
        (domains("in_domain", sources=("a",)), "MBCD", None),
        (
            domains("test", sources=("b", "c"), target=("a",)),
            "MBCD",
            r"trained on a, which is tested here as unseen \(its sources: a, b",
        ),
        (
            domains("in_domain", sources=("a", "c")),
            "MBCD",
            "not trained on c, which is evaluated here as a source",
        ),
        (domains("test"), "ERM", "its method: MBCD, here ERM"),
    ],
)
def test_a_test_is_what_it_is_called(tmp_path, two_domains, dataset, method, message):
    options = dict(test_dataloader__dataset=dataset, method=dict(name=method))
    if message is None:
        run_test(tmp_path, two_domains, **options)
    else:
        with pytest.raises(CheckpointError, match=message):
            run_test(tmp_path, two_domains, **options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(method=dict(name="EMA")), "its method: MBCD, here EMA"),
        (
            dict(train_dataloader__dataset=domains("train", sources=("a", "d"))),
            "its sources: a, b, here a, d",
        ),
        (
            dict(train_dataloader__dataset=domains("train", target=("d",))),
            "its target: c, here d",
        ),
    ],
)
def test_another_experiment_is_not_resumed(tmp_path, two_domains, changes, message):
    options = dict(train_dataloader__dataset=domains("train"), method=dict(name="MBCD"))
    with pytest.raises(CheckpointError, match=message):
        run_toy(tmp_path, load_from=str(two_domains), resume=True, **options | changes)


def test_what_a_resumed_run_ignores_is_said(tmp_path, two_domains, monkeypatch):
    said = []
    monkeypatch.setattr(
        "mmaction_mbcd.engine.checkpoint.print_log",
        lambda text, **kw: said.append(text),
    )
    run_toy(
        tmp_path,
        load_from=str(two_domains),
        resume=True,
        train_dataloader__dataset=domains("train"),
        method=dict(name="MBCD"),
        optim_wrapper__optimizer=dict(type="Adam", lr=0.5),
        randomness=dict(seed=4),
    )
    assert any("lr 0.5 is ignored: the run goes on with 0.01" in x for x in said)
    assert any("seed 4 is ignored: the run goes on with its own, 3" in x for x in said)


def test_a_run_in_bfloat16_goes_on_with_a_loss_scale(tmp_path, monkeypatch):
    """bfloat16 trains without one, and its checkpoint has none."""
    amp = "mmengine.optim.optimizer.amp_optimizer_wrapper"
    monkeypatch.setattr(f"{amp}.is_cuda_available", lambda: True)
    monkeypatch.setattr(f"{amp}.GradScaler", partial(torch.amp.GradScaler, "cpu"))
    half = dict(
        optim_wrapper__type="AmpMBCDOptimWrapper", optim_wrapper__dtype="bfloat16"
    )
    run_toy(
        tmp_path, **half, optim_wrapper__loss_scale=dict(enabled=False),
        train_cfg__max_epochs=1,
    )  # fmt: skip
    saved = torch.load(tmp_path / "epoch_1.pth", weights_only=False)
    assert saved["optimizer"]["loss_scaler"] == {}
    scaled = dict(optim_wrapper__loss_scale=dict(init_scale=256.0))
    runner = run_toy(tmp_path, **half, **scaled, resume=True, train_cfg__max_epochs=2)
    assert runner.epoch == 2
    assert runner.optim_wrapper.loss_scaler.get_scale() == 256


def test_not_finite_weights_by_kind():
    nan, inf = torch.tensor(math.nan), torch.tensor(math.inf)
    state = dict(p=inf, mask=-inf, mean=nan, count=torch.tensor(3), q=torch.ones(2))
    assert checks.not_finite(state, {"p", "q"}) == ["p", "mean"]


def test_random_damage_never_passes_for_intact(tmp_path, trained):
    """Any flipped bit of any byte that matters is seen; the others change nothing."""
    from mmaction_mbcd.checkpoint_files import damage

    content = trained.read_bytes()
    expected = torch.load(trained)
    with zipfile.ZipFile(trained) as archive:
        directory = archive.start_dir
    draw = random.Random(0)
    copy = tmp_path / "copy.pth"
    for start in [0, directory] * 60:
        damaged = bytearray(content)
        damaged[draw.randrange(start, len(content))] ^= 1 << draw.randrange(8)
        copy.write_bytes(damaged)
        if not damage(str(copy)):
            found = torch.load(copy)
            assert_same_trees(found["state_dict"], expected["state_dict"])
            assert_same_trees(found["optimizer"], expected["optimizer"])
