"""The same seed on the same machine: the same bits, however the work is divided."""

import os

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from mmaction_mbcd import cli
from tests_support import ROOT, assert_same_trees, compare_runs
from toy_runner import hook_of, run_toy, stop_workers

HOOKS = [dict(type="TeacherEMAHook", beta=0.9)]


def train(folder, workers, stop=None, **options):
    """Four epochs; with ``stop`` in two runs, the second with other workers."""
    options = dict(options, model__neck=dict(type="AMDFusion"))

    def run(count, **more):
        return hook_of(
            run_toy(
                folder,
                train_dataloader__num_workers=count,
                train_dataloader__persistent_workers=count > 0,
                **options,
                **more,
            ),
            "Trace",
        ).steps

    if stop is None:
        return run(workers, custom_hooks=[*HOOKS, dict(type="Trace")])
    first = run(workers, custom_hooks=[*HOOKS, dict(type="Trace", stop_at=stop)])
    second = run((workers + 1) % 3, resume=True)
    return first[: second[0][0]] + second


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(folder, 0)


many = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@many
@pytest.mark.parametrize(
    ("workers", "stop"),
    [
        (1, None), (4, None), (2, 15),
        *(pytest.param(*each, marks=pytest.mark.long) for each in (
            (0, None), (2, None), (0, 15), (1, 15), (4, 15)
        )),
    ],
)  # fmt: skip
def test_any_number_of_workers_gives_the_same_bits(tmp_path, whole, workers, stop):
    folder, steps = whole
    assert train(tmp_path, workers, stop) == steps and len(steps) == 24
    compare_runs(folder, tmp_path)


def test_another_seed_gives_others(tmp_path, whole):
    steps = train(tmp_path, 0, randomness=dict(seed=4))
    assert [s[3] for s in steps] != [s[3] for s in whole[1]]


def batches(data, workers):
    """An epoch of training batches, decoded from real files."""
    init_default_scope("mmaction")
    cfg = Config.fromfile(ROOT / "configs/mbcd/synth_action/mbcd.py")
    cli.set_datasets(cfg, data_root=str(data))
    loader = dict(cfg.train_dataloader, batch_size=6, num_workers=workers)
    loader["persistent_workers"] = workers > 0
    loader = Runner.build_dataloader(loader, seed=5)
    try:
        return [
            dict(batch["inputs"], names=[s.sample_id for s in batch["data_samples"]])
            for batch in loader
        ]
    finally:
        stop_workers(loader)


@pytest.fixture(scope="module")
def decoded(tiny_data):
    return batches(tiny_data, 0)


long = pytest.mark.long


@many
@pytest.mark.parametrize(
    "workers", [pytest.param(1, marks=long), 2, pytest.param(4, marks=long)]
)
def test_decoded_batches_do_not_depend_on_the_workers(tiny_data, decoded, workers):
    assert len(decoded) == 4
    assert_same_trees(batches(tiny_data, workers), decoded)


def test_deterministic_sets_what_cublas_needs(tmp_path, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    try:
        run_toy(tmp_path, train_cfg__max_epochs=1)
        assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
        cudnn.benchmark = True
        run_toy(
            tmp_path / "b",
            train_cfg__max_epochs=1,
            randomness=dict(seed=3, deterministic=True),
        )
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        assert torch.are_deterministic_algorithms_enabled()
        assert (cudnn.deterministic, cudnn.benchmark) == (True, False)
    finally:
        torch.use_deterministic_algorithms(False)
        cudnn.deterministic, cudnn.benchmark = before
