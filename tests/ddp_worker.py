"""What runs in each process of the tests of two gloo processes.

A module of its own, at the top level, so that spawned processes can import it.
"""

import os

import torch
import torch.distributed as dist
from mmengine.model import MMDistributedDataParallel

from mmaction_mbcd.engine import AverageBatchNormHook, MBCDOptimWrapper
from toys import build_toy, toy_batch

STEPS, ROWS = 3, 8
MBCD = [
    dict(type="ClassificationObjective"),
    dict(type="CollaborativeDistillation"),
]


def model_and_teacher():
    options = dict(inner_step=dict(), objectives=MBCD)
    model = build_toy(**options)
    teacher = build_toy(seed=3, **options).eval()
    for m, encoder in model.encoders.items():
        teacher.encoders[m].backbone.conv1 = encoder.backbone.conv1
    model.bind_teacher(teacher)
    return model, teacher


def train(model, module, rank, world, order, sync, accumulate=1):
    optimizer = torch.optim.SGD(
        [p for p in module.parameters() if p.requires_grad], 0.2
    )
    optim = MBCDOptimWrapper(
        optimizer=optimizer,
        inner_lr=0.5,
        order=order,
        sync_inner=sync,
        accumulative_counts=accumulate,
    )
    logs = []
    for step in range(STEPS * accumulate):
        inputs, samples = toy_batch(seed=step, count=ROWS)
        own = slice(rank * ROWS // world, (rank + 1) * ROWS // world)
        batch = dict(
            inputs={m: x[own] for m, x in inputs.items()}, data_samples=samples[own]
        )
        logs.append(model.train_step(batch, optim))
    return logs


class _Runner:
    def __init__(self, model):
        self.model = model


def absent_worker(rank, port, folder):
    """Process 1 lacks audio altogether; BatchNorm, affine LayerNorm, adaptive AMD."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    model = build_toy(
        inner_step=dict(),
        batchnorm=True,
        neck=dict(type="AMDFusion"),
        norm=dict(type="LayerNorm", affine=True),
    )
    wrapped = MMDistributedDataParallel(model, device_ids=None, broadcast_buffers=False)
    hook, runner = AverageBatchNormHook(), _Runner(wrapped)
    hook.before_train(runner)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optim = MBCDOptimWrapper(
        optimizer=torch.optim.SGD(trainable, 0.1), inner_lr=0.1, sync_inner=True
    )
    logs = []
    for step in range(3):
        absent = {"audio": list(range(4))} if rank == 1 else None
        inputs, samples = toy_batch(seed=10 * step + rank, count=4, absent=absent)
        logs.append(
            wrapped.train_step(dict(inputs=inputs, data_samples=samples), optim)
        )
        own = model.encoders["video"].backbone.layer1[1].running_mean.clone()
        hook.after_train_iter(runner)
    logs = [{k: float(v) for k, v in log.items()} for log in logs]
    torch.save((model.state_dict(), logs, own), f"{folder}/{rank}.pt")


def worker(rank, port, order, sync, folder, accumulate):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    model, _ = model_and_teacher()
    wrapped = MMDistributedDataParallel(model, device_ids=None, broadcast_buffers=False)
    names = {n for n, _ in wrapped.named_parameters()}
    assert not any("teacher" in n for n in names)
    train(wrapped, model, rank, 2, order, sync, accumulate)
    optim = MBCDOptimWrapper(
        optimizer=torch.optim.SGD(model.fused_head.parameters(), 0.1), sync_inner=sync
    )
    sums = torch.tensor([1.0 + rank, 2.0])
    counts = torch.tensor([4, 4 * rank])
    synced = optim.sync_confidences(sums, counts, [True, rank == 1])
    torch.save((model.state_dict(), synced), f"{folder}/{rank}.pt")
