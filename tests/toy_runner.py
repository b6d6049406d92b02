"""A complete MMEngine run on toy data, in seconds and in one process."""

import copy
import uuid

import numpy as np
import torch
from mmaction.registry import DATASETS, HOOKS, METRICS, MODELS
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseDataPreprocessor
from mmengine.runner import Runner

from mmaction_mbcd.datasets.seeding import seeded
from toys import toy_batch, toy_config

MODALITIES = ("video", "audio")


class QuickRunner(Runner):
    """Without asking every compiler for its version, which takes seconds."""

    def _log_env(self, env_cfg):
        pass


MBCD = [
    dict(type="ClassificationObjective"),
    dict(type="CollaborativeDistillation"),
]


@DATASETS.register_module()
class ToyDataset:
    """Random inputs with noise drawn as the real datasets draw augmentations."""

    def __init__(self, count=24, train=True, classes=3, views=1):
        self.views = views
        self.inputs, self.samples = toy_batch(count=count, dtype=torch.float32)
        self.train = train
        self.metainfo = dict(classes=[f"c{i}" for i in range(classes)])

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        views = [self.view(index, view) for view in range(self.views)]
        return views if self.views > 1 else views[0]

    def view(self, index, view):
        inputs = {m: x[index].clone() for m, x in self.inputs.items()}
        if self.train:
            with seeded(*index.entropy, int(index), view):
                for m in inputs:
                    inputs[m] += 0.1 * float(np.random.rand())
        sample = copy.deepcopy(self.samples[index])
        sample.set_metainfo(dict(view=view))
        return dict(inputs=inputs, data_samples=sample)


@MODELS.register_module()
class ToyPreprocessor(BaseDataPreprocessor):
    def forward(self, data, training=False):
        data = self.cast_data(data)
        inputs = {m: torch.stack(x) for m, x in data["inputs"].items()}
        return dict(inputs=inputs, data_samples=data["data_samples"])


@METRICS.register_module()
class ToyAccuracy(BaseMetric):
    """Accuracy and mean probability of the label; the latter is hard to tie."""

    def process(self, data_batch, data_samples):
        for sample in data_samples:
            score, label = sample["pred_score"], int(sample["gt_label"])
            student = sample.get("pred_scores", {}).get("student")
            self.results.append(
                (
                    float(score[label]),
                    float("nan") if student is None else float(student[label]),
                )
            )

    def compute_metrics(self, results):
        own, student = np.array(results).T
        return {"source/top1": float(own.mean()), "student": float(student.mean())}


@HOOKS.register_module()
class Trace(Hook):
    """Records what each step saw; stops the run at a given point by an error."""

    priority = "LOWEST"

    def __init__(self, stop_at=None, stop_in_val=None):
        self.stop_at, self.stop_in_val = stop_at, stop_in_val
        self.steps, self.validations = [], []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        ids = [s.sample_id for s in data_batch["data_samples"]]
        self.steps.append((runner.iter, batch_idx, ids, float(outputs["loss"])))
        if self.stop_at == runner.iter + 1:
            raise KeyboardInterrupt

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        if self.stop_in_val == runner.epoch and batch_idx == 1:
            raise KeyboardInterrupt

    def after_val_epoch(self, runner, metrics=None):
        self.validations.append((runner.epoch, metrics))


@HOOKS.register_module()
class Follow(Hook):
    """Up to which iteration the values are known, after each step."""

    priority = "LOWEST"

    def __init__(self):
        self.known = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        scalars = runner.message_hub.log_scalars
        history, _ = scalars["train/loss"].data if "train/loss" in scalars else ([], 0)
        self.known.append(len(history))


CHECKPOINT = dict(
    type="ResumableCheckpointHook",
    interval=1,
    max_keep_ckpts=1,
    save_best="source/top1",
    rule="greater",
)


def toy_run(work_dir, **kwargs):
    """A runner config: 24 samples, batch 4, so 6 steps an epoch; 4 epochs."""
    loader = dict(
        batch_size=4,
        num_workers=0,
        sampler=dict(type="ResumableSampler", shuffle=True),
        dataset=dict(type="ToyDataset"),
    )
    val = dict(
        batch_size=4,
        num_workers=0,
        sampler=dict(type="DefaultSampler", shuffle=False),
        dataset=dict(type="ToyDataset", train=False, count=12),
    )
    head = dict(type="MLPHead", hidden_channels=6, dropout=0.5)
    cfg = dict(
        model=toy_config(
            MODALITIES,
            data_preprocessor=dict(type="ToyPreprocessor"),
            neck=dict(type="AMDFusion", mode="fixed"),
            inner_step=dict(),
            objectives=MBCD,
            batchnorm=True,
            fused_head=head,
            unimodal_head=head,
        ),
        work_dir=str(work_dir),
        # Runs of one second would share MMEngine's message hub.
        experiment_name=uuid.uuid4().hex,
        train_dataloader=loader,
        val_dataloader=val,
        test_dataloader=val,
        train_cfg=dict(type="ResumableTrainLoop", max_epochs=4),
        val_cfg=dict(type="ValLoop"),
        test_cfg=dict(type="TestLoop"),
        val_evaluator=dict(type="ToyAccuracy"),
        test_evaluator=dict(type="ToyAccuracy"),
        optim_wrapper=dict(
            type="MBCDOptimWrapper",
            inner_lr=0.05,
            optimizer=dict(type="Adam", lr=0.01),
        ),
        param_scheduler=[],
        default_hooks=dict(
            runtime_info=dict(type="StepInfoHook"),
            logger=dict(type="LoggerHook", interval=100),
            checkpoint=dict(CHECKPOINT),
        ),
        custom_hooks=[dict(type="TeacherEMAHook", beta=0.9), dict(type="Trace")],
        default_scope="mmaction",
        randomness=dict(seed=3),
        log_level="WARNING",
    )
    for key, value in kwargs.items():
        node = cfg
        *parents, last = key.split("__")
        for parent in parents:
            node = node[parent]
        node[last] = value
    return cfg


def stop_workers(loader):
    """Ends persistent workers now.

    The garbage collector may close their queues first; each then takes five seconds.
    """
    if getattr(loader, "_iterator", None) is not None:
        loader._iterator._shutdown_workers()


def run_toy(work_dir, train=True, **kwargs):
    """Builds and, if asked, trains; an interruption by Trace is expected."""
    runner = QuickRunner.from_cfg(Config(toy_run(work_dir, **kwargs)))
    if train:
        try:
            runner.train()
        except KeyboardInterrupt:
            pass
        finally:
            stop_workers(runner.train_loop.dataloader)
    return runner


def hook_of(runner, name):
    """The runner's hook of a class name."""
    return next(h for h in runner.hooks if type(h).__name__ == name)
