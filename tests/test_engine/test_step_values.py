"""Values of steps that arrive while the next step runs, as from a GPU."""

import math

import pytest
import torch
from mmaction.registry import DATASETS, HOOKS, MODELS
from mmengine.hooks import Hook

from mmaction_mbcd.engine import step_values
from mmaction_mbcd.errors import DivergenceError
from mmaction_mbcd.models.objectives import Objective
from tests_support import assert_same_trees
from toy_runner import CHECKPOINT, MBCD, ToyDataset, hook_of, run_toy

TEACHER = dict(type="TeacherEMAHook", beta=0.9)
GUARD = dict(type="FiniteGuardHook")
TIMED = CHECKPOINT | dict(max_keep_ckpts=2, minutes=0)
LOGGED = ("loss", "loss_audio", "acc/fused", "lr", "ema_initial_share")


class Slow:
    """The arrival of a copy that is under way until somebody waits for it."""

    def __init__(self, device):
        self.done = False

    def synchronize(self):
        self.done = True


@pytest.fixture
def slow(monkeypatch):
    monkeypatch.setattr(step_values, "arrival_of", Slow)


@DATASETS.register_module()
class OneBad(ToyDataset):
    """One sample is not a number."""

    def __getitem__(self, index):
        item = super().__getitem__(index)
        if int(index) == 5:
            item["inputs"]["audio"][:] = math.nan
        return item


def run(folder, hooks=(), **options):
    hooks = [TEACHER, *hooks, dict(type="Follow")]
    return run_toy(folder, custom_hooks=hooks, train_cfg__max_epochs=2, **options)


def histories(runner):
    scalars = runner.message_hub.log_scalars
    return {name: scalars[f"train/{name}"].data[0].tolist() for name in LOGGED}


def test_late_values_change_no_bit_and_lose_none(tmp_path, monkeypatch):
    at_once = run(tmp_path / "a", hooks=[GUARD])
    monkeypatch.setattr(step_values, "arrival_of", Slow)
    late = run(tmp_path / "b", hooks=[GUARD])
    assert histories(late) == histories(at_once)
    assert [len(history) for history in histories(late).values()] == [12] * len(LOGGED)
    a, b = (torch.load(tmp_path / name / "epoch_2.pth") for name in "ab")
    for part in ("state_dict", "ema_state_dict", "optimizer"):
        assert_same_trees(a[part], b[part], part)


def test_values_are_one_step_late_but_at_the_end_of_an_epoch(tmp_path, slow):
    runner = run(tmp_path)
    assert hook_of(runner, "Follow").known == [0, 1, 2, 3, 4, 6, 6, 7, 8, 9, 10, 12]


def test_on_a_cpu_they_are_there(tmp_path):
    assert hook_of(run(tmp_path), "Follow").known == [*range(1, 13)]


def test_where_the_log_is_written_all_are_there(tmp_path, slow):
    logger = dict(type="LoggerHook", interval=2)
    runner = run(tmp_path, default_hooks__logger=logger)
    assert hook_of(runner, "Follow").known == [0, 2, 2, 4, 4, 6, 6, 8, 8, 10, 10, 12]


def test_a_checkpoint_holds_the_values_of_its_step(tmp_path, slow):
    """Written after each step but an epoch's last; resumed from the middle."""
    options = dict(default_hooks__checkpoint=TIMED)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(whole, **options)
    stop = [TEACHER, dict(type="Trace", stop_at=9)]
    run_toy(killed, custom_hooks=stop, train_cfg__max_epochs=2, **options)
    state = torch.load(killed / "timed_iter_9.pth", weights_only=False)
    assert len(state["message_hub"]["log_scalars"]["train/loss"].data[0]) == 9
    resumed = run(killed, resume=True, **options)
    assert len(histories(resumed)["loss"]) == 12
    a, b = (torch.load(folder / "epoch_2.pth") for folder in (whole, killed))
    for part in ("state_dict", "ema_state_dict", "optimizer"):
        assert_same_trees(a[part], b[part], part)


@pytest.mark.parametrize("minutes", [0, None])
def test_a_step_that_is_not_finite_ends_the_run_before_anything_is_saved(
    tmp_path, slow, minutes
):
    with pytest.raises(DivergenceError) as error:
        run(
            tmp_path,
            hooks=[GUARD],
            default_hooks__checkpoint=TIMED | dict(minutes=minutes),
            train_dataloader__dataset=dict(type="OneBad"),
        )
    text = str(error.value)
    step = int(text.split("iteration ")[1].split()[0])
    assert 1 < step <= 6 and "(epoch 1)" in text and "loss_audio" in text
    assert ToyDataset().samples[5].sample_id in text  # the batch of its own step
    names = {path.name for path in tmp_path.glob("*.pth")}
    expected = {f"timed_iter_{n}.pth" for n in (step - 2, step - 1) if n > 0}
    assert names == (expected if minutes == 0 else set())


@MODELS.register_module()
class Refuses(Objective):
    """Raises where what it sees is not a number, as a decomposition may."""

    def forward(self, outputs):
        if not torch.isfinite(outputs.features["video"]).all():
            raise RuntimeError("cannot be decomposed")
        return {}


def test_an_error_behind_such_a_step_does_not_hide_it(tmp_path, slow):
    with pytest.raises(DivergenceError, match="loss_audio .* Samples") as error:
        run(
            tmp_path,
            hooks=[GUARD],
            model__objectives=[*MBCD, dict(type="Refuses")],
            train_dataloader__dataset=dict(type="OneBad"),
        )
    assert "cannot be decomposed" in str(error.value.__context__)


def test_a_step_that_may_be_undone_waits(tmp_path, slow):
    runner = run(
        tmp_path,
        hooks=[dict(GUARD, action="skip")],
        train_dataloader__dataset=dict(type="OneBad"),
    )
    assert hook_of(runner, "FiniteGuardHook").skipped == 2  # once an epoch
    assert hook_of(runner, "Follow").known == [*range(1, 13)]
    teacher = hook_of(runner, "TeacherEMAHook").ema_model
    assert all(torch.isfinite(p).all() for p in teacher.parameters())
    assert int(teacher.steps) == 1 + 12 - 2


@pytest.mark.parametrize(
    "hook",
    [dict(runtime_info=dict(type="RuntimeInfoHook")),
     dict(checkpoint=dict(type="CheckpointHook", interval=1))],
    ids=["runtime_info", "checkpoint"],
)  # fmt: skip
def test_with_mmengines_own_hooks_every_step_waits(tmp_path, slow, hook):
    ((name, value),) = hook.items()
    runner = run(tmp_path, **{f"default_hooks__{name}": value})
    assert hook_of(runner, "Follow").known == [*range(1, 13)]


def test_below_mmengines_own_loop(tmp_path):
    loop = dict(type="EpochBasedTrainLoop", max_epochs=2)
    sampler = dict(type="DefaultSampler", shuffle=False)
    options = dict(train_cfg=loop, train_dataloader__sampler=sampler)
    data = dict(type="ToyDataset", train=False)
    hooks = [TEACHER, GUARD, dict(type="Follow")]
    runner = run_toy(
        tmp_path, custom_hooks=hooks, train_dataloader__dataset=data, **options
    )
    assert hook_of(runner, "Follow").known == [*range(1, 13)]
    assert int(hook_of(runner, "TeacherEMAHook").ema_model.steps) == 13
    data = dict(type="OneBad", train=False)
    with pytest.raises(DivergenceError, match="iteration 2 "):
        run_toy(tmp_path, custom_hooks=hooks, train_dataloader__dataset=data, **options)


@pytest.mark.parametrize("found", [0.0, 1.0])
def test_a_teacher_that_must_ask_the_device_waits(tmp_path, slow, found):
    @HOOKS.register_module(force=True)
    class Overflows(Hook):
        priority = "VERY_LOW"

        def before_train_iter(self, runner, *args, **kwargs):
            runner.optim_wrapper.optimizer.found_inf = torch.tensor(found)

    adam = dict(type="Adam", lr=0.01, fused=True)
    runner = run(
        tmp_path,
        hooks=[dict(type="Overflows")],
        optim_wrapper__optimizer=adam,
    )
    assert hook_of(runner, "Follow").known == [*range(1, 13)]
    steps = int(hook_of(runner, "TeacherEMAHook").ema_model.steps)
    assert steps == (13 if found == 0 else 1)
