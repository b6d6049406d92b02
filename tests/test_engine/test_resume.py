"""Train 2N steps = train N, stop anywhere, resume, N more; bit for bit."""

import shutil

import pytest
import torch
from mmaction.registry import HOOKS
from mmengine.hooks import Hook

from tests_support import assert_same_trees, compare_runs
from toy_runner import ToyDataset, hook_of, run_toy

BY_STEP = dict(
    type="ResumableCheckpointHook",
    by_epoch=False,
    interval=4,
    max_keep_ckpts=2,
    save_best="source/top1",
    rule="greater",
)


@pytest.mark.parametrize(
    ("stop", "checkpoint", "workers"),
    [
        (dict(stop_at=12), None, 0),  # at the end of an epoch
        (dict(stop_at=15), None, 2),  # inside one: back to its start, with workers
        (dict(stop_in_val=2), None, 0),  # during a validation
        (dict(stop_at=9), BY_STEP, 2),  # checkpoint 8 lies inside epoch 2
        (dict(stop_in_val=2), BY_STEP, 0),
        (dict(stop_at=14), BY_STEP, 0),  # checkpoint 12 is the epoch's very end
    ],
)
def test_a_stopped_run_continues_to_the_bit(tmp_path, stop, checkpoint, workers):
    options = dict(
        train_dataloader__num_workers=workers,
        train_dataloader__persistent_workers=workers > 0,
        custom_hooks=[dict(type="TeacherEMAHook", beta=0.9), dict(type="Trace")],
    )
    if checkpoint:
        options["default_hooks__checkpoint"] = checkpoint
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    trace = hook_of(run_toy(whole, **options), "Trace")
    stopping = [options["custom_hooks"][0], dict(type="Trace", **stop)]
    first = hook_of(run_toy(resumed, **options | dict(custom_hooks=stopping)), "Trace")
    assert len(first.steps) < 24
    second = hook_of(run_toy(resumed, **options, resume=True), "Trace")
    start = second.steps[0][0] if second.steps else 24
    assert 0 < start <= len(first.steps)
    # Same batches, same losses (augmentation, dropout, masks), same validations.
    assert second.steps == trace.steps[start:]
    assert first.steps[:start] == trace.steps[:start]
    done = dict(first.validations) | dict(second.validations)
    expected = dict(trace.validations)
    assert done == expected and sorted(done) == [1, 2, 3, 4]
    if checkpoint:
        for folder in (whole, resumed):
            (folder / "iter_24.pth").rename(folder / "epoch_4.pth")
    compare_runs(whole, resumed)


def test_a_stop_within_an_accumulation_keeps_its_gradients(tmp_path):
    options = dict(
        optim_wrapper__accumulative_counts=4,
        default_hooks__checkpoint=dict(BY_STEP, interval=5),
    )
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    run_toy(whole, **options)
    hooks = [dict(type="TeacherEMAHook", beta=0.9), dict(type="Trace", stop_at=11)]
    run_toy(resumed, **options | dict(custom_hooks=hooks))
    assert "pending_gradients" in torch.load(resumed / "iter_10.pth")
    run_toy(resumed, **options, resume=True)
    for folder in (whole, resumed):
        (folder / "iter_24.pth").rename(folder / "epoch_4.pth")
    compare_runs(whole, resumed)


def test_a_run_without_a_seed_resumes_with_the_one_it_drew(tmp_path):
    runner = run_toy(
        tmp_path,
        randomness=dict(seed=None),
        custom_hooks=[dict(type="TeacherEMAHook"), dict(type="Trace", stop_at=8)],
    )
    resumed = run_toy(tmp_path, randomness=dict(seed=None), resume=True)
    assert resumed.seed == runner.seed
    assert resumed.train_dataloader.sampler.seed == runner.seed
    steps = hook_of(runner, "Trace").steps
    assert hook_of(resumed, "Trace").steps[0] == steps[6]


def test_every_epoch_sees_every_sample_in_another_order(tmp_path):
    trace = hook_of(run_toy(tmp_path), "Trace")
    orders = [[ids for _, _, ids, _ in trace.steps[i : i + 6]] for i in (0, 6)]
    assert orders[0] != orders[1]
    assert sorted(sum(orders[0], [])) == sorted(sum(orders[1], []))


def test_another_batch_size_is_refused(tmp_path):
    stop = [dict(type="TeacherEMAHook"), dict(type="Trace", stop_at=8)]
    run_toy(tmp_path, custom_hooks=stop)
    with pytest.raises(ValueError, match="6 batches per epoch, this run has 3"):
        run_toy(tmp_path, train_dataloader__batch_size=8, resume=True)


def test_a_stock_sampler_is_skipped_through(tmp_path):
    """Slower, but it ends where the epoch ends."""
    stock = dict(type="DefaultSampler", shuffle=False)
    data = dict(type="ToyDataset", train=False)
    options = dict(
        train_dataloader__sampler=stock,
        train_dataloader__dataset=data,
        default_hooks__checkpoint=BY_STEP,
    )
    whole = hook_of(run_toy(tmp_path / "a", **options), "Trace")
    stop = [dict(type="TeacherEMAHook", beta=0.9), dict(type="Trace", stop_at=9)]
    run_toy(tmp_path / "b", **options | dict(custom_hooks=stop))
    second = hook_of(run_toy(tmp_path / "b", **options, resume=True), "Trace")
    assert second.steps == whole.steps[8:]


def test_a_moved_work_directory_continues_from_itself(tmp_path):
    stop = [dict(type="TeacherEMAHook", beta=0.9), dict(type="Trace", stop_at=14)]
    run_toy(tmp_path / "a", custom_hooks=stop)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    kept = {p.name: p.read_bytes() for p in (tmp_path / "a").glob("*.pth")}
    run_toy(tmp_path / "b", resume=True)
    now = {p.name: p.read_bytes() for p in (tmp_path / "a").glob("*.pth")}
    assert kept == now  # nor was the original's best checkpoint removed
    assert len(list((tmp_path / "b").glob("best_*.pth"))) == 1


EMA = dict(type="TeacherEMAHook", beta=0.9)
VARIANTS = {
    "erm": dict(
        hooks=[],
        model__inner_step=None,
        model__objectives=[dict(type="ClassificationObjective")],
        optim_wrapper=dict(type="OptimWrapper", optimizer=dict(type="SGD", lr=0.1)),
    ),
    "adaptive": dict(hooks=[EMA], model__neck=dict(type="AMDFusion")),
    "student": dict(hooks=[EMA | dict(evaluate="student")]),
    "mean": dict(
        hooks=[
            dict(
                type="TeacherEMAHook",
                ema_type="StochasticWeightAverage",
                beta=None,
                begin_iter=5,
            )
        ]
    ),
    "interval": dict(hooks=[EMA | dict(interval=3, update_buffers=False)]),
    "scheduler": dict(
        hooks=[EMA],
        param_scheduler=[
            dict(type="CosineAnnealingLR", T_max=24, by_epoch=False),
            dict(type="LinearLR", start_factor=0.1, end=10, by_epoch=False),
        ],
    ),
    "second order": dict(hooks=[EMA], optim_wrapper__order=2),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_kind_of_run_continues_to_the_bit(tmp_path, name):
    options = dict(VARIANTS[name])
    hooks = options.pop("hooks")
    options |= dict(default_hooks__checkpoint=BY_STEP, train_cfg__max_epochs=2)
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"

    def train(folder, trace=None, **more):
        custom = [*hooks, dict(type="Trace") | (trace or {})]
        return hook_of(run_toy(folder, custom_hooks=custom, **options, **more), "Trace")

    trace = train(whole)
    train(resumed, dict(stop_at=10))
    second = train(resumed, resume=True)
    assert second.steps == trace.steps[8:]
    a, b = (torch.load(d / "iter_12.pth") for d in (whole, resumed))
    for part in ("state_dict", "ema_state_dict", "optimizer", "param_schedulers"):
        if part in a:
            assert_same_trees(a[part], b[part], part)
    assert ("ema_state_dict" in a) == (name != "erm")


def test_an_epoch_with_a_smaller_last_batch_ends_where_it_should(tmp_path):
    data = dict(type="ToyDataset", count=26)  # batches of 4: six and one of two
    options = dict(
        train_dataloader__dataset=data,
        default_hooks__checkpoint=BY_STEP | dict(interval=7),
    )
    trace = hook_of(run_toy(tmp_path / "a", **options), "Trace")
    stop = [EMA, dict(type="Trace", stop_in_val=1)]
    run_toy(tmp_path / "b", **options | dict(custom_hooks=stop))
    second = hook_of(run_toy(tmp_path / "b", **options, resume=True), "Trace")
    assert second.steps == trace.steps[7:]


def test_different_seeds_of_processes_leave_the_sampler_in_common(
    monkeypatch, tmp_path
):
    randomness = dict(seed=3, diff_rank_seed=True)
    runner = run_toy(tmp_path, train=False, randomness=randomness)
    monkeypatch.setattr("mmaction_mbcd.engine.loops.get_rank", lambda: 2)
    runner._seed = 5  # what set_random_seed gives process 2
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    assert runner.train_loop._common_seed() == 3


@HOOKS.register_module()
class FailingSave(Hook):
    """Fails while the second checkpoint is being made."""

    def before_save_checkpoint(self, runner, checkpoint):
        if checkpoint["meta"]["epoch"] == 2:
            raise KeyboardInterrupt


def test_the_old_checkpoint_stays_until_the_new_one_is_complete(tmp_path):
    hooks = [dict(type="TeacherEMAHook"), dict(type="Trace"), dict(type="FailingSave")]
    run_toy(tmp_path, custom_hooks=hooks)
    assert [p.name for p in tmp_path.glob("epoch_*.pth")] == ["epoch_1.pth"]
    assert len(list(tmp_path.glob("best_*.pth"))) == 1
    torch.load(tmp_path / "epoch_1.pth")


def test_only_the_asked_number_of_checkpoints_stays(tmp_path):
    run_toy(tmp_path)
    assert [p.name for p in tmp_path.glob("epoch_*.pth")] == ["epoch_4.pth"]
    assert not list(tmp_path.glob("*.part"))


class TestChecksBeforeTheFirstStep:
    def test_wrong_wrapper(self, tmp_path):
        stock = dict(type="OptimWrapper", optimizer=dict(type="Adam", lr=0.01))
        with pytest.raises(ValueError, match="MBCDOptimWrapper.*got OptimWrapper"):
            run_toy(tmp_path, optim_wrapper=stock)

    def test_no_teacher(self, tmp_path):
        with pytest.raises(ValueError, match="distills from a teacher.*TeacherEMAHook"):
            run_toy(tmp_path, custom_hooks=[dict(type="Trace")])

    def test_modalities(self, tmp_path, monkeypatch):
        monkeypatch.setattr(ToyDataset, "modalities", ("video",), raising=False)
        with pytest.raises(ValueError, match=r"dataset yields \['video'\]"):
            run_toy(tmp_path)

    def test_sync_batch_norm_with_a_modality_that_may_be_absent(
        self, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(
            ToyDataset, "optional_modalities", ("audio",), raising=False
        )
        runner = run_toy(tmp_path, train=False)
        runner.model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(runner.model)
        runner.call_hook("before_run")
        runner._train_loop = runner.build_train_loop(runner._train_loop)
        runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
        with pytest.raises(ValueError, match=r"\['audio'\] have SyncBatchNorm"):
            runner.train_loop._check_parts()

    def test_number_of_classes(self, tmp_path):
        with pytest.raises(ValueError, match="num_classes is 3, but.*has 5 classes"):
            run_toy(
                tmp_path,
                train_dataloader__dataset=dict(type="ToyDataset", classes=5),
            )

    def test_no_batch(self, tmp_path):
        with pytest.raises(ValueError, match="yields no batch: 24 samples"):
            run_toy(
                tmp_path,
                train_dataloader__batch_size=32,
                train_dataloader__drop_last=True,
            )
