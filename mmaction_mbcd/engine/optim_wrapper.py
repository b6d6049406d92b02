"""Optimizer wrappers that perform the inner step of eq. 5.

MMEngine's ``train_step`` enters ``optim_context``, runs one forward and calls
``update_params`` once. The wrapper lends itself to the model for the length of that
context; the model asks it for theta' in the middle of its forward. One backward
follows, so DDP, gradient accumulation, clipping and resume work as for any model.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed.nn.functional as differentiable
from mmaction.registry import OPTIM_WRAPPERS
from mmengine import dist
from mmengine.model import is_model_wrapper
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from torch import Tensor, nn

from ..models.functional import gradients_of


class InnerStepMixin:
    """Adds the inner step to an optimizer wrapper of MMEngine.

    Args:
        inner_lr: alpha of eq. 5; 1e-4 in the paper's implementation details.
        order: 1 treats the inner gradient as a constant (published code); 2 keeps
            its dependence on theta, which eq. 6's alignment term needs in full.
        sync_inner: Average the inner gradient and sum the confidences of eq. 2
            over processes. Then N processes equal one process with the whole
            batch, given BatchNorm in eval mode (or none), no other random draws
            and equal numbers of present samples. Off, each process takes its own
            inner step, as SAM does.
        kwargs: The base wrapper's.

    Raises:
        ValueError: For an order other than 1 or 2 or a negative rate.
    """

    def __init__(
        self,
        *args,
        inner_lr: float = 1e-4,
        order: int = 1,
        sync_inner: bool = False,
        **kwargs,
    ) -> None:
        problems = []
        if inner_lr < 0:
            problems.append(f"inner_lr must not be negative; got {inner_lr}")
        if order not in (1, 2):
            problems.append(f"order must be 1 or 2; got {order!r}")
        if problems:
            raise ValueError(f"{type(self).__name__}: " + "; ".join(problems))
        super().__init__(*args, **kwargs)
        self.inner_lr, self.order, self.sync_inner = inner_lr, order, sync_inner

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """The base wrapper's context, with the inner step lent to the model."""
        module = model.module if is_model_wrapper(model) else model
        if not hasattr(module, "bind_optimizer"):
            raise TypeError(
                f"{type(self).__name__} lends an inner step to the model, and "
                f"{type(module).__name__} has no bind_optimizer to take it: use "
                "OptimWrapper, or MultiModalRecognizer"
            )
        self._check_model(module)
        with super().optim_context(model):
            module.bind_optimizer(self)
            try:
                yield
            finally:
                module.bind_optimizer(None)

    def _inner_scale(self, loss: Tensor) -> Tensor | None:
        """What the inner loss is multiplied by against underflow."""
        return None

    def _check_model(self, model: nn.Module) -> None:
        """Refuses models that this wrapper cannot step; called once per step."""

    def gradient(self, loss: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
        """Gradients as constants, for objectives that modulate them.

        Args:
            loss: Scalar.
            parameters: What to differentiate by; zero where the loss does not depend
                on one.
        """
        return self._gradients(loss, parameters, create_graph=False)

    def _gradients(
        self, loss: Tensor, parameters: Sequence[Tensor], create_graph: bool
    ) -> list[Tensor]:
        return gradients_of(loss, parameters, self._inner_scale(loss), create_graph)

    def inner_update(
        self, loss: Tensor, params: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        r"""One step of plain gradient descent that autograd can see through.

        .. math:: \theta' = \theta - \alpha \nabla_\theta L(\theta)

        Not scaled by gradient accumulation: each micro-batch takes its own step.

        Args:
            loss: Scalar that depends on the parameters.
            params: ``{name: theta}``.

        Returns:
            ``{name: theta'}``. The gradient of a function of theta' reaches theta
            through the identity and, with order 2, through the inner gradient.
        """
        gradients = self._gradients(
            loss, list(params.values()), create_graph=self.order == 2
        )
        if self.sync_inner and dist.get_world_size() > 1:
            gradients = self._averaged(gradients)
        return {
            name: p - self.inner_lr * g
            for (name, p), g in zip(params.items(), gradients, strict=True)
        }

    def _averaged(self, gradients: list[Tensor]) -> list[Tensor]:
        """Mean over processes, in one collective; differentiable for order 2."""
        flat = torch.cat([g.flatten() for g in gradients])
        if self.order == 2:
            flat = differentiable.all_reduce(flat) / dist.get_world_size()
        else:
            dist.all_reduce(flat, op="mean")
        parts = flat.split([g.numel() for g in gradients])
        return [part.view_as(g) for part, g in zip(parts, gradients, strict=True)]

    def sync_confidences(
        self, sums: Tensor, counts: Tensor, present: list[bool]
    ) -> tuple[Tensor, Tensor, list[bool]]:
        """Sums confidences and sample counts over processes if ``sync_inner``.

        Args:
            sums: ``(M,)``, eq. 2 of each modality on this process.
            counts: ``(M,)``, its number of present samples.
            present: Which modalities this process has at all.
        """
        if not self.sync_inner or dist.get_world_size() == 1:
            return sums, counts, present
        both = torch.stack([sums, counts.to(sums)])
        dist.all_reduce(both)
        return both[0], both[1], (both[1] > 0).tolist()


@OPTIM_WRAPPERS.register_module()
class MBCDOptimWrapper(InnerStepMixin, OptimWrapper):
    """MMEngine's ``OptimWrapper`` with the inner step, see :class:`InnerStepMixin`."""


@OPTIM_WRAPPERS.register_module()
class AmpMBCDOptimWrapper(InnerStepMixin, AmpOptimWrapper):
    """MMEngine's ``AmpOptimWrapper`` with the inner step.

    With float16 the inner loss is multiplied by the loss scale and the gradient
    divided by it: without, the small inner gradients underflow. An overflow makes
    theta' non-finite, the outer gradient with it, and the scaler skips the step.

    Raises:
        ValueError: For float16 with order 2, whose second-order term would pass
            through half precision unscaled and vanish (measured: off by 92 % where
            the outer gradient is 0.01), and for float16 with
            ``bn_second_pass='shared'``, where the overflow that a scaler expects now
            and then would stay in BatchNorm's statistics for ever. Both work with
            ``dtype='bfloat16'``.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if self.order == 2 and self._half:
            raise ValueError(
                "AmpMBCDOptimWrapper: order=2 loses its second-order term in float16; "
                "set dtype='bfloat16', or order=1"
            )

    @property
    def _half(self) -> bool:
        """Whether autocast computes in float16, its default on a GPU."""
        return self.cast_dtype in (None, torch.float16)

    def _check_model(self, model: nn.Module) -> None:
        inner_step = getattr(model, "inner_step", None)
        if self._half and getattr(inner_step, "bn_second_pass", "") == "shared":
            raise ValueError(
                "model.inner_step.bn_second_pass='shared' lets an overflow of float16 "
                "into BatchNorm's statistics; set optim_wrapper.dtype='bfloat16', or "
                "bn_second_pass='discard'"
            )

    def _inner_scale(self, loss: Tensor) -> Tensor:
        # get_scale() would wait for the device.
        return self.loss_scaler.scale(torch.ones_like(loss, dtype=torch.float32))
