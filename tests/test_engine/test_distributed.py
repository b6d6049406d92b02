"""Two gloo processes equal one process with the whole batch."""

import copy

import pytest
import torch

from ddp_worker import absent_worker, model_and_teacher, train, worker
from tests_support import start_two


def run_two(tmp_path, order, sync, accumulate=1):
    start_two(worker, order, sync, str(tmp_path), accumulate)
    return [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize(
    ("order", "accumulate"), [(1, 1), (2, 1), (1, 2)], ids=["order1", "order2", "accum"]
)
def test_two_processes_equal_the_whole_batch(tmp_path, order, accumulate):
    model, _ = model_and_teacher()
    start = copy.deepcopy(model.state_dict())
    train(model, model, 0, 1, order, True, accumulate)
    (first, synced), (second, _) = run_two(tmp_path, order, True, accumulate)
    moved = max((model.state_dict()[k] - start[k]).abs().max() for k in start)
    assert moved > 1e-2
    for key, value in model.state_dict().items():
        assert torch.equal(first[key], second[key]), key
        assert torch.allclose(first[key], value, rtol=0, atol=1e-12), key
    sums, counts, here = synced
    assert sums.tolist() == [3.0, 4.0]
    assert counts.tolist() == [8.0, 4.0] and here == [True, True]


def test_without_sync_each_process_takes_its_own_inner_step(tmp_path):
    model, _ = model_and_teacher()
    train(model, model, 0, 1, 1, True)
    (first, synced), (second, _) = run_two(tmp_path, 1, False)
    keys = [k for k in first if "layer" in k]
    assert all(torch.equal(first[k], second[k]) for k in first)  # outer is averaged
    assert max((first[k] - model.state_dict()[k]).abs().max() for k in keys) > 1e-6
    assert synced[0].tolist() == [1.0, 2.0] and synced[2] == [True, False]


def test_a_modality_that_one_process_lacks_neither_hangs_nor_diverges(tmp_path):
    start_two(absent_worker, str(tmp_path))
    (first, logs, own), (second, other_logs, other) = (
        torch.load(tmp_path / f"{rank}.pt") for rank in range(2)
    )
    for key, value in first.items():
        if value.dtype.is_floating_point:  # weights and BatchNorm's statistics
            assert torch.equal(value, second[key]), key
            assert torch.isfinite(value).all(), key
    key = "encoders.video.backbone.layer1.1.running_mean"
    assert not torch.equal(own, other)
    assert torch.allclose(first[key], (own + other) / 2, atol=1e-12)
    for step, log in enumerate(logs):
        # Confidences are compared over both processes.
        assert log["r/video"] == pytest.approx(other_logs[step]["r/video"], rel=1e-6)
        assert other_logs[step]["loss_audio"] == 0
