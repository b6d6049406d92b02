"""A step of any method at toy size, also as the worker of two processes."""

import copy
import os

import torch
import torch.distributed as dist
from mmaction.registry import MODELS, OPTIM_WRAPPERS
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import init_default_scope

from method_toys import METHODS, NAMES, method_config, method_model, views_of
from toys import PlainInnerStep, toy_batch


def step(method, seed=0):
    """A model in training mode with all that it borrows, and its teacher."""
    torch.manual_seed(seed)
    config = method_model(method)
    model = MODELS.build(config).train()
    teacher = copy.deepcopy(model).eval()
    for m, encoder in model.encoders.items():
        teacher.encoders[m].backbone.conv1 = encoder.backbone.conv1
    with torch.no_grad():  # an average differs from the student
        for own, other in zip(
            teacher.parameters(), MODELS.build(config).parameters(), strict=True
        ):
            if own.requires_grad:
                own.lerp_(other, 0.3)
    model.bind_teacher(teacher)
    if model.inner_step is not None:
        model.bind_optimizer(PlainInnerStep())
    return model, teacher


def batch_of(method, seed, count=8):
    """Eight rows; with two views the second half shows the first's clips again."""
    inputs, samples = toy_batch(NAMES, count=count, seed=seed, dtype=torch.float32)
    if views_of(method) == 2:
        half = count // 2
        for m in inputs:
            noise = 0.1 * torch.randn_like(inputs[m][:half])
            inputs[m] = torch.cat([inputs[m][:half], inputs[m][:half] + noise])
        samples = samples[:half] + copy.deepcopy(samples[:half])
        for row, sample in enumerate(samples):
            sample.set_metainfo(dict(view=row // half))
    return inputs, samples


def method_worker(rank, port, folder):
    """Steps of every method under DistributedDataParallel, which finds no unused.

    Process 1 has no audio, then one row of it, then nothing valid, then all.
    """
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    init_default_scope("mmaction")
    dist.init_process_group("gloo", rank=rank, world_size=2)
    for method in METHODS:
        model, _ = step(method)
        model.bind_optimizer(None)
        start = copy.deepcopy(model.state_dict())
        wrapped = MMDistributedDataParallel(
            model, device_ids=None, broadcast_buffers=False
        )
        wrapper = dict(method_config(method)["optim_wrapper"])
        wrapper["optimizer"] = torch.optim.SGD(
            [p for p in model.parameters() if p.requires_grad], 0.01
        )
        wrapper = OPTIM_WRAPPERS.build(wrapper)
        for seed in range(4):
            inputs, samples = batch_of(method, 10 * seed + rank)
            for row, sample in enumerate(samples if rank else ()):
                present = dict(sample.present)
                if seed == 2:
                    sample.set_metainfo(dict(skipped="cut off"))
                    present = dict.fromkeys(present, False)
                elif seed < 2 and row >= seed:
                    present["audio"] = False
                sample.set_metainfo(dict(present=present))
            logs = wrapped.train_step(
                dict(inputs=inputs, data_samples=samples), wrapper
            )
        torch.save(
            dict(
                state=model.state_dict(),
                start=start,
                parameters=[n for n, _ in model.named_parameters()],
                logs={k: float(v) for k, v in logs.items()},
            ),
            f"{folder}/{method}_{rank}.pt",
        )
