"""Builds, moves, evaluates and saves the averaged teacher."""

import copy
import logging
from collections.abc import Sequence

import torch
from mmaction.registry import HOOKS
from mmengine.hooks import EMAHook
from mmengine.logging import print_log
from mmengine.model import (
    BaseAveragedModel,
    ExponentialMovingAverage,
    MomentumAnnealingEMA,
    StochasticWeightAverage,
    is_model_wrapper,
)
from mmengine.runner import BaseLoop, Runner
from torch import Tensor

from ..errors import CheckpointError
from .step_values import StepValues, TakesValues

_HOLDS = "state_dict_holds"


def average_all(
    average: BaseAveragedModel,
    teachers: Sequence[Tensor],
    students: Sequence[Tensor],
    steps: int,
) -> None:
    r"""``average.avg_func`` of all tensors, in one pass where its formula is known.

    .. math:: \Theta^{EMA} \leftarrow \Theta^{EMA} + w (\Theta - \Theta^{EMA})

    ``w`` is the momentum, for ``MomentumAnnealingEMA`` ``max(momentum, gamma / (gamma +
    steps))``, for ``StochasticWeightAverage`` ``1 / (steps // interval + 1)``. The same
    operations as theirs, to the bit, but a few kernels instead of one or two for each
    tensor.

    Args:
        average: An averaged model of MMEngine.
        teachers: Changed in place.
        students: Of the same shapes.
        steps: Averaging steps so far.
    """
    kind = type(average)
    if kind is StochasticWeightAverage:
        distances = torch._foreach_sub(students, teachers)
        weight = 1 / float(steps // average.interval + 1)
        torch._foreach_add_(teachers, distances, alpha=weight)
    elif kind is ExponentialMovingAverage:
        torch._foreach_lerp_(teachers, students, average.momentum)
    elif kind is MomentumAnnealingEMA:
        weight = max(average.momentum, average.gamma / (average.gamma + steps))
        torch._foreach_lerp_(teachers, students, weight)
    else:
        for teacher, student in zip(teachers, students, strict=True):
            average.avg_func(teacher, student, steps)


@HOOKS.register_module()
class TeacherEMAHook(TakesValues, EMAHook):
    r"""Averages the student into a teacher that the student can learn from, eq. 7.

    .. math:: \Theta^{EMA}_t = \beta \Theta^{EMA}_{t-1} + (1 - \beta) \Theta_t

    Compared with MMEngine's :class:`EMAHook`:

    - the teacher starts as a copy of the student *before* its first step (and after
      weights are loaded), not after it;
    - it moves once per optimizer step, not per iteration: not while gradients are
      accumulated, and not when the loss scaler skipped the step;
    - it is in eval mode and is lent to the model (``bind_teacher``), unregistered;
    - it shares the frozen stem with the student instead of copying and averaging it;
    - in evaluation the other of the two models is evaluated too, from the same stem
      outputs, and reported beside it;
    - a checkpoint says which of the two its ``state_dict`` holds.

    MMEngine's word ``momentum`` is ``1 - beta``.

    Args:
        beta: Decay in (0, 1), 0.999 in the paper. None for an average without one,
            such as ``StochasticWeightAverage``.
        ema_type: Any averaged model of MMEngine. ``MomentumAnnealingEMA`` (with
            ``gamma``) is the warm-up, which the paper does not have.
        begin_iter: The teacher copies the student in this many iterations and averages
            from the next one on; only then is it ``started`` for the objectives. That
            is CMRF's rule (upstream: ``step > start``, counted from 1). MMEngine's
            hook begins one iteration earlier.
        evaluate: ``'teacher'`` or ``'student'``: which model is validated, tested
            and saved as ``state_dict``; the other lies under ``ema_state_dict``.
        update_buffers: Average floating BatchNorm statistics too; False copies the
            student's.
        kwargs: Further arguments of :class:`EMAHook` and of ``ema_type``.

    Raises:
        ValueError: For a beta outside (0, 1) or an unknown ``evaluate``.
    """

    def __init__(
        self,
        beta: float | None = 0.999,
        ema_type: str = "ExponentialMovingAverage",
        begin_iter: int = 0,
        evaluate: str = "teacher",
        update_buffers: bool = True,
        **kwargs,
    ) -> None:
        problems = []
        if beta is not None:
            if not 0 < beta < 1:
                problems.append(
                    f"beta must lie in (0, 1); got {beta} (MMEngine's momentum is "
                    "1 - beta; without averaging leave the hook out)"
                )
            if "momentum" in kwargs:
                problems.append("give beta or momentum = 1 - beta, not both")
            if ema_type == "StochasticWeightAverage":
                problems.append(f"{ema_type} is a running mean: set beta=None")
            kwargs["momentum"] = 1 - beta
        elif ema_type in ("ExponentialMovingAverage", "MomentumAnnealingEMA"):
            problems.append(f"{ema_type} needs a beta; got None")
        if ignored := {"strict_load", "device"} & kwargs.keys():
            problems.append(
                f"{sorted(ignored)} cannot be set: averaged weights must fit, and the "
                "teacher lives where the student does"
            )
        if evaluate not in ("teacher", "student"):
            problems.append(f"evaluate must be teacher or student; got {evaluate!r}")
        if problems:
            raise ValueError("TeacherEMAHook: " + "; ".join(problems))
        super().__init__(
            ema_type, begin_iter=begin_iter, update_buffers=update_buffers, **kwargs
        )
        self.beta, self.evaluate = beta, evaluate
        self._stepped = False
        self.to_fetch: Tensor | None = None  # infinities that a fused optimizer found
        self._has_both = True
        self._resumed = False
        self._handle = None

    # --------------------------------------------------- building and averaging it

    def before_run(self, runner: Runner) -> None:
        """Builds the teacher and shares the stem with it."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if not hasattr(model, "bind_teacher"):
            raise TypeError(
                "TeacherEMAHook lends the teacher to the model, and "
                f"{type(model).__name__} has no bind_teacher: use EMAHook, "
                "or MultiModalRecognizer"
            )
        if getattr(self, "src_model", None) is model:
            return  # runner.test() after runner.train(): the teacher is there
        super().before_run(runner)
        teacher = self.ema_model.module
        shared = self.src_model.stem_modules()
        for name in shared:
            parent, _, child = name.rpartition(".")
            setattr(
                teacher.get_submodule(parent), child, self.src_model.get_submodule(name)
            )
        self.ema_model.eval()
        prefixes = tuple(f"{name}." for name in shared)
        # MMEngine captured the private stem at construction: without this its
        # copy would stay alive and be averaged.
        self.ema_model.avg_parameters = {
            name: value
            for name, value in self.ema_model.avg_parameters.items()
            if not name.startswith(prefixes)
        }
        self._share = torch.ones(())
        self.src_model.bind_teacher(teacher)

    def before_train(self, runner: Runner) -> None:
        """Starts from the student's loaded weights, unless resumed.

        Raises:
            ValueError: If averaging would begin after the run's end.
        """
        if self.begin_iter >= runner.max_iters:
            raise ValueError(
                f"TeacherEMAHook(begin_iter={self.begin_iter}) would begin to average "
                f"after the run's last iteration, {runner.max_iters}: lower begin_iter "
                "(--cfg-options custom_hooks.0.begin_iter=N), or train longer"
            )
        super().before_train(runner)
        optimizer = getattr(runner.optim_wrapper, "optimizer", None)
        if optimizer is None:
            raise TypeError(
                "TeacherEMAHook follows one optimizer; "
                f"{type(runner.optim_wrapper).__name__} has none of its own"
            )
        if self._resumed:
            share = runner.message_hub.get_info("ema_initial_share", 1.0)
            self._share.fill_(share)
        else:
            self._copy_student()
        floating = [p for p in self._pairs() if p[0].dtype.is_floating_point]
        self._moving = [list(side) for side in zip(*floating, strict=True)]
        if self._handle is not None:
            self._handle.remove()
        self._handle = optimizer.register_step_post_hook(self._after_optimizer_step)

    def after_train(self, runner: Runner) -> None:
        """Stops watching the optimizer."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def before_train_iter(self, runner: Runner, *args, **kwargs) -> None:
        """Tells the model whether the teacher averages by now."""
        self.src_model.bind_teacher(
            self.ema_model.module, started=self._ema_started(runner)
        )

    def _ema_started(self, runner: Runner) -> bool:
        """Whether the current iteration or epoch lies behind the beginning."""
        if self.enabled_by_epoch:
            return runner.epoch >= self.begin_epoch
        return runner.iter >= self.begin_iter

    def _after_optimizer_step(self, optimizer: torch.optim.Optimizer, *_) -> None:
        # A fused optimizer is called even when the scaler found infinities, and skips
        # inside its kernel. Asking it here would wait for the device.
        self._stepped = True
        self.to_fetch = getattr(optimizer, "found_inf", None)

    @property
    def needs_values(self) -> bool:
        """Whether the device alone knows if the student moved."""
        return self.to_fetch is not None

    def after_values(self, runner: Runner, values: StepValues) -> None:
        """Gets back what it asked for, on the CPU."""
        self.to_fetch = values.fetched.get(self)

    def _took_step(self) -> bool:
        """Whether the student moved in this iteration; asked once."""
        stepped, found_inf = self._stepped, self.to_fetch
        self._stepped, self.to_fetch = False, None
        return stepped and (found_inf is None or not bool(found_inf))

    def after_train_iter(self, runner: Runner, *args, **kwargs) -> None:
        """Moves the teacher if the optimizer moved the student."""
        super().after_train_iter(runner, *args, **kwargs)
        if not self._took_step():
            self._copy_buffers()
            return
        if self._ema_started(runner):
            self._average()
        else:
            self._copy_student()
        # Kept with the run's information, so that it is saved and resumed.
        runner.message_hub.update_info("ema_initial_share", float(self._share))
        runner.message_hub.update_scalar("train/ema_initial_share", float(self._share))

    def after_train_epoch(self, runner: Runner) -> None:
        """Says how much of the initial weights the teacher still holds."""
        print_log(
            f"TeacherEMAHook: after {int(self.ema_model.steps) - 1} optimizer steps of "
            f"averaging the teacher holds {100 * float(self._share):.3g} % of the "
            "initial weights"
            + (f" (those of iteration {self.begin_iter})" if self.begin_iter else ""),
            logger="current",
        )

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Teacher's and student's tensor of every averaged name."""
        student = self.src_model.state_dict(keep_vars=True)
        return [
            (teacher.data, student[name].data)
            for name, teacher in self.ema_model.avg_parameters.items()
        ]

    def _copy_student(self) -> None:
        for teacher, student in self._pairs():
            teacher.copy_(student)
        self._copy_buffers()
        # 1, not 0: MMEngine's average takes step 0 as "copy the student".
        self.ema_model.steps.fill_(1)
        self._share.fill_(1.0)

    def _average(self) -> None:
        steps = int(self.ema_model.steps)
        if steps % self.ema_model.interval == 0:
            average_all(self.ema_model, *self._moving, steps)
            # The initial weights' share follows the same rule from 1 towards 0.
            self.ema_model.avg_func(self._share, torch.zeros(()), steps)
        self._copy_buffers()
        self.ema_model.steps += 1

    def _copy_buffers(self) -> None:
        if self.ema_model.update_buffers:
            return
        own = dict(self.src_model.named_buffers())
        for name, buffer in self.ema_model.module.named_buffers():
            buffer.data.copy_(own[name].data)

    # ---------------------------------------------------------------- evaluation

    def _before_evaluation(self) -> None:
        other = {"teacher": "student", "student": "teacher"}[self.evaluate]
        self.src_model.bind_teacher(
            self.ema_model.module, beside=other if self._has_both else None
        )
        if self.evaluate == "teacher":
            self._swap_ema_parameters()

    def _after_evaluation(self) -> None:
        if self.evaluate == "teacher":
            self._swap_ema_parameters()
        self.src_model.bind_teacher(self.ema_model.module)

    def before_val_epoch(self, runner: Runner) -> None:
        """Puts the evaluated model in place."""
        self._before_evaluation()

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Puts the student back."""
        self._after_evaluation()

    def before_test_epoch(self, runner: Runner) -> None:
        """Puts the evaluated model in place."""
        self._before_evaluation()

    def after_test_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Puts the student back."""
        self._after_evaluation()

    def _swap_ema_parameters(self) -> None:
        for teacher, student in self._pairs():
            kept = teacher.clone()
            teacher.copy_(student)
            student.copy_(kept)

    # --------------------------------------------------------------- checkpoints

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Adds the averaged weights; ``state_dict`` holds the evaluated model."""
        checkpoint["ema_state_dict"] = {"steps": self.ema_model.steps.clone()} | {
            f"module.{name}": value.detach().cpu()
            for name, value in self.ema_model.module.state_dict().items()
            if name in self.ema_model.avg_parameters or self._is_private_buffer(name)
        }
        if self.evaluate == "teacher":
            self._swap_ema_state_dict(checkpoint)
        checkpoint["meta"][_HOLDS] = self.evaluate

    def _is_private_buffer(self, name: str) -> bool:
        """Buffers that are copied instead of averaged are saved as well."""
        shared = tuple(f"{stem}." for stem in self.src_model.stem_modules())
        return not self.ema_model.update_buffers and not name.startswith(shared)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Sorts out which weights are whose.

        Training that only loads weights starts from what the checkpoint's own run
        evaluated; resuming and testing restore both models.

        Raises:
            CheckpointError: If the averaged weights do not fit the model.
        """
        training = isinstance(runner._train_loop, BaseLoop)
        partial = bool(runner.cfg.get("allow_partial"))
        averaged = checkpoint.get("ema_state_dict")
        self._has_both = training or averaged is not None
        # A file of bare weights is a state dict itself.
        weights = checkpoint.get("state_dict", checkpoint)
        if averaged is None:
            print_log(
                "the checkpoint has no averaged weights (ema_state_dict): teacher "
                "and student both start from its state_dict",
                logger="current",
                level=logging.WARNING,
            )
            if not training:
                own = {f"module.{k}": v for k, v in weights.items()}
                self._load_teacher(own, "weights", partial)
            return
        if training and not runner._resume:
            return
        checkpoint["ema_state_dict"] = averaged = copy.copy(averaged)
        checkpoint["state_dict"] = copy.copy(weights)
        if checkpoint.get("meta", {}).get(_HOLDS, "teacher") == "teacher":
            self._swap_ema_state_dict(checkpoint)
        what = "averaged weights (ema_state_dict)"
        self._load_teacher(averaged, what, partial and not training)
        self._resumed = training

    def _load_teacher(self, state: dict[str, Tensor], what: str, partial: bool) -> None:
        own = self.ema_model.state_dict()
        wanted = {f"module.{name}" for name in self.ema_model.avg_parameters}
        missing = sorted(wanted - state.keys())
        wrong = sorted(
            key for key in wanted & state.keys() if own[key].shape != state[key].shape
        )
        if (missing or wrong) and not partial:
            raise CheckpointError(
                f"the checkpoint's {what} are of another "
                f"model: {len(missing)} missing, e.g. {missing[:3]}; {len(wrong)} of "
                f"another shape, e.g. {wrong[:3]}. Use the config it was trained with; "
                "for part of the weights, tools/test.py --allow-partial"
            )
        fits = {k: v for k, v in state.items() if k in own and k not in wrong}
        self.ema_model.load_state_dict(fits, strict=False)
