"""The hook watches: a training with it equals one without, to the bit."""

import numpy as np
import pytest
import torch

from mmaction_mbcd.engine import BalanceTraceHook
from mmaction_mbcd.engine.balance_trace import cosine, unimodal_and_fused_gradients
from mmaction_mbcd.models.batch import Batch
from tests_support import compare_runs
from toy_runner import hook_of, run_toy

HOOK = dict(type="BalanceTraceHook", interval=2)


@pytest.mark.parametrize(
    "options",
    [
        dict(model__neck=dict(type="AMDFusion")),
        dict(optim_wrapper__accumulative_counts=4),
    ],
    ids=["adaptive", "accumulated"],
)
def test_training_is_the_same_to_the_bit(tmp_path, options):
    """Dropout, BatchNorm, an inner step, AMD and a teacher are all at work."""
    steps, states = [], []
    for name, balance in (("plain", None), ("watched", HOOK)):
        hooks = dict(default_hooks__balance=balance) if balance else {}
        runner = run_toy(tmp_path / name, **options, **hooks)
        steps.append(hook_of(runner, "Trace").steps)
        states.append((torch.get_rng_state(), np.random.get_state()[1]))
    assert steps[0] == steps[1] and len(steps[0]) == 24
    assert torch.equal(states[0][0], states[1][0])
    assert (states[0][1] == states[1][1]).all()
    compare_runs(tmp_path / "plain", tmp_path / "watched")
    scalars = runner.message_hub.log_scalars
    for m in ("video", "audio"):
        values, _ = scalars[f"train/grad_cos/{m}"].data
        assert len(values) == 12 and np.abs(values).max() <= 1 + 1e-6
        assert len(set(values)) == 12  # weights and batches change


def test_what_is_logged(tmp_path):
    runner = run_toy(tmp_path, train=False)
    model, batch = runner.model, next(iter(runner.build_dataloader(
        runner.cfg.val_dataloader)))  # fmt: skip
    BalanceTraceHook(interval=1).before_train_iter(runner, 0, batch)
    ready = model.data_preprocessor(batch, False)
    read = Batch.read(ready["inputs"], ready["data_samples"], model.modalities)
    states = model.eval().encoders.stems(ready["inputs"], read)
    for m, pair in unimodal_and_fused_gradients(model, states, read).items():
        logged = runner.message_hub.get_scalar(f"train/grad_cos/{m}").current()
        assert logged == pytest.approx(float(cosine(*pair)), abs=1e-7)


def test_an_interval_below_one_is_refused():
    with pytest.raises(ValueError, match="at least 1 step; got 0"):
        BalanceTraceHook(interval=0)
