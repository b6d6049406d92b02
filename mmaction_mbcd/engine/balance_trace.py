"""Whether a modality's own loss and the fused one pull its encoder the same way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from mmaction.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn

from ..models.batch import Batch
from ..models.functional import gradients_of, masked_cross_entropy
from ..models.stages import State
from .checkpoint_checks import module_of


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of the angle of two vectors, ``(P,)``; not-a-number if one is zero."""
    return torch.dot(a, b) / (a.norm() * b.norm())


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within it the model is in eval mode; each part gets its own mode back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def unimodal_and_fused_gradients(
    model: nn.Module, states: Mapping[str, State], batch: Batch
) -> dict[str, tuple[Tensor, Tensor]]:
    r"""Gradients of two losses by the trained parameters of each encoder.

    :math:`\nabla_{\theta_m} L_m` of the cross-entropy of the modality's own head, and
    :math:`\nabla_{\theta_m} L_{fused}` of the fused head's, at theta and in eval mode:
    no dropout, no modality dropped, no inner step, BatchNorm with its running
    statistics. Where the heads only watch (a probe), :math:`L_m` is taken as if its
    gradient reached the encoder. The model's ``.grad`` are left alone.

    Args:
        model: A recognizer with unimodal heads.
        states: Outputs of the stems.
        batch: N clips with labels.

    Returns:
        ``{modality: (unimodal, fused)}``, ``(P,)`` each, means over the N clips (those
        that have the modality, for the unimodal one); none for a modality that no clip
        has.

    Raises:
        ValueError: If the model has no unimodal heads.
    """
    if not model.unimodal_heads:
        raise ValueError(
            "the gradients of unimodal losses need unimodal heads: set "
            "model.unimodal_head (with model.probe=True they only watch)"
        )
    with evaluating(model), torch.enable_grad():
        features, _ = model.encoders.features(
            states, batch, model.norms, lambda m, state: model.encoders[m](state)
        )
        fused, _ = model.neck(features, batch.present)
        fused_loss = masked_cross_entropy(
            model.fused_head(fused), batch.labels, batch.valid
        )
        found = {}
        for m in states:
            own = [p for p in model.encoders[m].parameters() if p.requires_grad]
            loss = masked_cross_entropy(
                model.unimodal_heads[m](features[m]), batch.labels, batch.present[m]
            )
            both = [gradients_of(x, own) for x in (loss, fused_loss)]
            found[m] = tuple(torch.cat([g.flatten() for g in x]) for x in both)
    return found


@HOOKS.register_module()
class BalanceTraceHook(Hook):
    """Logs the cosine of unimodal and fused gradients, ``grad_cos/<modality>``.

    See :func:`unimodal_and_fused_gradients`; on the batch that the step is about to
    take, at the weights before the step. It changes nothing of the training, to the
    bit: it draws no random numbers, leaves BatchNorm's statistics and all gradients
    alone, and calls the unwrapped model. With several processes the log shows the main
    one's part of the batch. A step that is looked at costs about twice its time.

    Add it by ``--cfg-options default_hooks.balance.type=BalanceTraceHook``.

    Args:
        interval: Steps between two looks.

    Raises:
        ValueError: For an interval below 1.
    """

    priority = "LOW"

    def __init__(self, interval: int = 10) -> None:
        if interval < 1:
            raise ValueError(
                f"BalanceTraceHook: interval must be at least 1 step; got {interval}"
            )
        self.interval = interval

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None
    ) -> None:
        """Measures them where the interval says."""
        if runner.iter % self.interval:
            return
        model = module_of(runner)
        ready = model.data_preprocessor(data_batch, False)
        batch = Batch.read(ready["inputs"], ready["data_samples"], model.modalities)
        with evaluating(model):
            states = model.encoders.stems(ready["inputs"], batch)
        gradients = unimodal_and_fused_gradients(model, states, batch)
        for m, pair in gradients.items():
            runner.message_hub.update_scalar(
                f"train/grad_cos/{m}", float(cosine(*pair))
            )
