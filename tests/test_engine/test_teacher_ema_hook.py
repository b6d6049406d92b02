"""The teacher's life: eq. 7, evaluation, checkpoints."""

import copy
from types import SimpleNamespace

import pytest
import torch
from mmaction.registry import HOOKS, MODELS
from mmengine.hooks import Hook
from mmengine.model import (
    ExponentialMovingAverage,
    MomentumAnnealingEMA,
    StochasticWeightAverage,
)
from torch import nn

from mmaction_mbcd.engine import TeacherEMAHook
from mmaction_mbcd.engine.teacher_ema_hook import average_all
from toy_runner import hook_of, run_toy, toy_run

EMA = "TeacherEMAHook"


@HOOKS.register_module()
class Students(Hook):
    """Keeps the student after every optimizer step, in float64."""

    priority = "VERY_HIGH"

    def before_train(self, runner):
        self.initial = self._state(runner)
        self.states = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.optim_wrapper.should_update():
            self.states.append(self._state(runner))

    def _state(self, runner):
        return {k: v.clone().double() for k, v in runner.model.state_dict().items()}


def recursion(initial, states, beta):
    """Eq. 7 written out, in float64."""
    teacher = dict(initial)
    for student in states:
        teacher = {k: beta * v + (1 - beta) * student[k] for k, v in teacher.items()}
    return teacher


def run(tmp_path, hook=None, train=True, **kwargs):
    hook = dict(type=EMA, beta=0.9) | (hook or {})
    return run_toy(
        tmp_path,
        train,
        custom_hooks=[hook, dict(type="Students"), dict(type="Trace")],
        **kwargs,
    )


@pytest.mark.parametrize("accumulate", [1, 4])
def test_the_teacher_follows_equation_seven_from_the_initial_copy(tmp_path, accumulate):
    runner = run(tmp_path, optim_wrapper__accumulative_counts=accumulate)
    students = hook_of(runner, "Students")
    assert len(students.states) == 24 // accumulate  # once per optimizer step
    expected = recursion(students.initial, students.states, 0.9)
    teacher = hook_of(runner, EMA).ema_model.module.state_dict()
    for name, value in teacher.items():
        if value.dtype.is_floating_point:
            assert torch.allclose(value.double(), expected[name], atol=2e-7), name
    share = runner.message_hub.get_info("ema_initial_share")
    assert share == pytest.approx(0.9 ** (24 // accumulate), rel=1e-5)


def test_buffers_can_be_copied_instead_of_averaged(tmp_path):
    runner = run(tmp_path, dict(update_buffers=False))
    last = hook_of(runner, "Students").states[-1]
    teacher = hook_of(runner, EMA).ema_model.module
    for name, buffer in teacher.named_buffers():
        assert torch.equal(buffer.double(), last[name]), name


def test_a_late_start_copies_until_then(tmp_path):
    runner = run(tmp_path, dict(begin_iter=10))
    states = hook_of(runner, "Students").states
    expected = recursion(states[9], states[10:], 0.9)  # iterations 1..10 copied
    teacher = hook_of(runner, EMA).ema_model.module
    for name, p in teacher.named_parameters():
        assert torch.allclose(p.double(), expected[name], atol=2e-7), name


def test_the_running_mean_starts_half_and_half(tmp_path):
    """CMRF upstream: step 21, the first behind 20, averages with the copy of 20."""
    hook = dict(beta=None, ema_type="StochasticWeightAverage", begin_iter=20)
    runner = run(tmp_path, hook)
    states = hook_of(runner, "Students").states[19:]
    teacher = hook_of(runner, EMA).ema_model.module
    for name, p in teacher.named_parameters():
        mean = sum(s[name] for s in states) / len(states)
        assert torch.allclose(p.double(), mean, atol=2e-7), name


def test_a_step_that_the_scaler_skips_leaves_the_teacher_alone():
    hook = TeacherEMAHook(beta=0.5)
    p = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([p], 0.1)
    optimizer.register_step_post_hook(hook._after_optimizer_step)
    assert not hook._took_step()  # the scaler does not call: no step, no move
    optimizer.step()
    assert hook._took_step() and not hook._took_step()
    # A fused optimizer is called even then, and skips inside its kernel.
    hook._after_optimizer_step(SimpleNamespace(found_inf=torch.tensor(1.0)))
    assert not hook._took_step()
    hook._after_optimizer_step(SimpleNamespace(found_inf=torch.tensor(0.0)))
    assert hook._took_step()


AVERAGES = [
    (ExponentialMovingAverage, dict(momentum=0.001)),
    (ExponentialMovingAverage, dict(momentum=0.7)),
    (MomentumAnnealingEMA, dict(momentum=0.03, gamma=5)),
    (StochasticWeightAverage, dict(interval=2)),
]


@pytest.mark.parametrize(("kind", "kwargs"), AVERAGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_one_pass_over_all_tensors_changes_no_bit(kind, kwargs, dtype):
    average = kind(nn.Linear(1, 1), **kwargs)
    shapes = [(), (1,), (67,), (4, 3, 5, 5), (2, 3, 3, 1, 1)]
    whole = [torch.randn(shape, dtype=dtype) for shape in shapes]
    whole.append(torch.randn(2, 4, 3, 3, dtype=dtype).transpose(1, 2))
    single = [x.clone() for x in whole]
    for steps in range(1, 30):
        average.steps.fill_(steps)
        students = [torch.randn_like(x) for x in whole]
        average_all(average, whole, students, steps)
        for teacher, student in zip(single, students, strict=True):
            average.avg_func(teacher, student, torch.tensor(steps))
        assert all(torch.equal(a, b) for a, b in zip(whole, single, strict=True))


def test_an_average_of_another_kind_is_asked_for_each_tensor():
    class Halfway(ExponentialMovingAverage):
        def avg_func(self, averaged_param, source_param, steps):
            averaged_param.add_(source_param).mul_(0.5)

    teachers = [torch.zeros(2), torch.ones(3)]
    average_all(Halfway(nn.Linear(1, 1), 0.1), teachers, [x + 4 for x in teachers], 1)
    assert torch.equal(teachers[0], torch.full((2,), 2.0))
    assert torch.equal(teachers[1], torch.full((3,), 3.0))


def test_the_teacher_is_nobodys_parameter(tmp_path):
    runner = run(tmp_path, train_cfg__max_epochs=1)
    hook = hook_of(runner, EMA)
    teacher = hook.ema_model.module
    own = {id(p) for p in runner.model.parameters()}
    stem = {
        id(p)
        for n in teacher.stem_modules()
        for p in teacher.get_submodule(n).parameters()
    }
    private = [p for p in teacher.parameters() if id(p) not in own]
    assert stem and stem <= own  # shared, not copied
    assert len(private) + len(stem) == len(list(teacher.parameters()))
    optimized = {
        id(p) for g in runner.optim_wrapper.optimizer.param_groups for p in g["params"]
    }
    assert not optimized & {id(p) for p in private}
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not teacher.training
    assert not any(m is teacher for m in runner.model.modules())

    checkpoint = torch.load(tmp_path / "epoch_1.pth")
    assert set(checkpoint["state_dict"]) == set(runner.model.state_dict())
    averaged = set(checkpoint["ema_state_dict"]) - {"steps"}
    stem_names = tuple(f"{n}." for n in teacher.stem_modules())
    assert averaged == {
        f"module.{n}" for n in runner.model.state_dict() if not n.startswith(stem_names)
    }


def test_a_checkpoint_loads_for_inference_without_the_hooks(tmp_path):
    runner = run(tmp_path)
    cfg = toy_run(tmp_path)["model"]
    model = MODELS.build(cfg)
    state = torch.load(tmp_path / "epoch_4.pth")["state_dict"]
    model.load_state_dict(state, strict=True)
    teacher = hook_of(runner, EMA).ema_model.module
    for name, value in teacher.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


@pytest.mark.parametrize("evaluate", ["teacher", "student"])
def test_the_chosen_model_is_evaluated_and_both_are_restored(tmp_path, evaluate):
    runner = run(tmp_path, dict(evaluate=evaluate))
    trace = hook_of(runner, "Trace")
    final = trace.validations[-1][1]
    student = {k: v.clone() for k, v in runner.model.state_dict().items()}
    states = hook_of(runner, "Students").states
    for name in student:  # training was not disturbed by four swaps
        assert torch.equal(student[name].double(), states[-1][name])
    checkpoint = torch.load(tmp_path / "epoch_4.pth")
    assert checkpoint["meta"]["state_dict_holds"] == evaluate
    teacher = hook_of(runner, EMA).ema_model.module.state_dict()
    held = teacher if evaluate == "teacher" else student
    assert all(torch.equal(checkpoint["state_dict"][k], held[k]) for k in held)

    for weights in ("teacher", "student"):  # both can be tested from one file
        tester = run_toy(
            tmp_path / weights,
            train=False,
            custom_hooks=[dict(type=EMA, beta=0.9, evaluate=weights)],
            load_from=str(tmp_path / "epoch_4.pth"),
        )
        metrics = tester.test()
        if weights == evaluate:
            assert metrics["source/top1"] == pytest.approx(final["source/top1"])
            if evaluate == "teacher":
                assert metrics["student"] == pytest.approx(final["student"])
        elif evaluate == "teacher":
            assert metrics["source/top1"] == pytest.approx(final["student"])
    if evaluate == "teacher":
        assert final["student"] != pytest.approx(final["source/top1"], abs=1e-6)


def test_training_from_loaded_weights_starts_with_what_was_evaluated(tmp_path):
    run(tmp_path)
    held = torch.load(tmp_path / "epoch_4.pth")["state_dict"]
    runner = run(
        tmp_path / "finetune",
        load_from=str(tmp_path / "epoch_4.pth"),
        train_cfg__max_epochs=1,
    )
    initial = hook_of(runner, "Students").initial
    for name, value in held.items():
        assert torch.equal(initial[name], value.double()), name
    # and the teacher from the student's copy, with the whole weight on it
    share = runner.message_hub.get_info("ema_initial_share")
    assert share == pytest.approx(0.9**6, rel=1e-5)


def test_a_checkpoint_without_averaged_weights_can_be_tested(tmp_path):
    run_toy(
        tmp_path,
        custom_hooks=[dict(type="Trace")],
        model__objectives=[dict(type="ClassificationObjective")],
    )
    runner = run(
        tmp_path / "test", train=False, load_from=str(tmp_path / "epoch_4.pth")
    )
    plain = run_toy(
        tmp_path / "plain",
        train=False,
        custom_hooks=[],
        load_from=str(tmp_path / "epoch_4.pth"),
    )
    expected = plain.test()["source/top1"]
    assert runner.test()["source/top1"] == pytest.approx(expected)


def test_training_from_weights_without_a_teacher_reports_both(tmp_path):
    erm = [dict(type="ClassificationObjective")]
    run_toy(tmp_path, custom_hooks=[dict(type="Trace")], model__objectives=erm)
    runner = run(
        tmp_path / "ema",
        load_from=str(tmp_path / "epoch_4.pth"),
        train_cfg__max_epochs=1,
    )
    metrics = hook_of(runner, "Trace").validations[-1][1]
    assert 0 < metrics["student"] < 1


def test_averaged_weights_of_another_model_are_refused(tmp_path):
    run(tmp_path, train_cfg__max_epochs=1)
    other = toy_run(tmp_path)["model"] | dict(
        unimodal_head=dict(type="MLPHead", hidden_channels=9)
    )
    runner = run(
        tmp_path / "other",
        train=False,
        model=other,
        load_from=str(tmp_path / "epoch_1.pth"),
    )
    with pytest.raises(ValueError, match="averaged weights.*are of another model"):
        runner.test()


def test_a_drifting_stem_is_not_shared(tmp_path):
    model = toy_run(tmp_path)["model"]
    model["encoders"] = copy.deepcopy(model["encoders"])
    for encoder in model["encoders"].values():
        encoder["stem_norm_eval"] = False
    runner = run(tmp_path, model=model)
    students = hook_of(runner, "Students")
    expected = recursion(students.initial, students.states, 0.9)
    teacher = hook_of(runner, EMA).ema_model.module.state_dict()
    key = "encoders.video.backbone.conv1.1.running_mean"
    assert torch.allclose(teacher[key].double(), expected[key], atol=1e-6)
    assert not torch.equal(teacher[key].double(), students.states[-1][key])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(beta=1.0), r"beta must lie in \(0, 1\); got 1.0"),
        (dict(beta=0.9, momentum=0.1), "not both"),
        (dict(evaluate="both"), "evaluate must be teacher or student"),
        (dict(ema_type="StochasticWeightAverage"), "running mean: set beta=None"),
        (dict(beta=None), "ExponentialMovingAverage needs a beta"),
        (dict(device="cpu"), "cannot be set"),
    ],
)
def test_wrong_values(kwargs, message):
    with pytest.raises(ValueError, match=message):
        TeacherEMAHook(**kwargs)


def test_a_foreign_model_is_refused(tmp_path):
    model = nn.Linear(2, 2)
    with pytest.raises(TypeError, match="Linear has no bind_teacher"):
        TeacherEMAHook().before_run(SimpleNamespace(model=model))


def test_testing_after_training_in_one_process_keeps_the_teacher(tmp_path):
    runner = run(tmp_path)
    final = hook_of(runner, "Trace").validations[-1][1]
    metrics = runner.test()
    assert metrics["source/top1"] == pytest.approx(final["source/top1"])
    assert metrics["student"] == pytest.approx(final["student"])


def test_a_warm_up_averages_faster_at_first(tmp_path):
    runner = run(tmp_path, dict(ema_type="MomentumAnnealingEMA", gamma=10, beta=0.99))
    students = hook_of(runner, "Students")
    teacher = dict(students.initial)
    for t, student in enumerate(students.states, 1):  # mmengine: gamma / (gamma + t)
        momentum = max(0.01, 10 / (10 + t))
        teacher = {k: v + momentum * (student[k] - v) for k, v in teacher.items()}
    for name, p in hook_of(runner, EMA).ema_model.module.named_parameters():
        assert torch.allclose(p.double(), teacher[name], atol=5e-7), name


def test_averaging_that_would_never_begin_is_refused(tmp_path):
    hooks = [dict(type="TeacherEMAHook", beta=0.9, begin_iter=25), dict(type="Trace")]
    with pytest.raises(ValueError, match="begin_iter=25.*last iteration, 24: lower"):
        run_toy(tmp_path, custom_hooks=hooks)
