"""What only a GPU can show: `make test-gpu`."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from helpers.forked import run_script
from method_toys import METHODS
from method_worker import batch_of, step
from mmaction_mbcd.benchmark import steps
from mmaction_mbcd.benchmark.training import Setting, Training, method_configs
from mmaction_mbcd.evaluation.predictions import Predictions
from tests_support import ROOT, assert_same_trees, compare_runs, gradients
from toy_runner import hook_of, run_toy
from toys import total

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="needs a GPU: make test-gpu"
    ),
]

TEACHER = dict(type="TeacherEMAHook", beta=0.9)
EXACT = dict(seed=3, deterministic=True)


@pytest.fixture
def deterministic():
    """What ``randomness`` sets stays set in a process."""
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    yield dict(randomness=EXACT)
    torch.use_deterministic_algorithms(False)
    cudnn.deterministic, cudnn.benchmark = before


class DrawsOnTheCPU(TorchFunctionMode):
    """Random numbers of a GPU come from the CPU's generator."""

    DRAWING = {torch.rand, torch.randn, torch.rand_like, torch.randn_like,
               torch._sample_dirichlet}  # fmt: skip

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function is F.dropout:
            return self.dropout(*args, **kwargs)
        if function not in self.DRAWING:
            return function(*args, **kwargs)
        tensors = [x for x in args if isinstance(x, torch.Tensor)]
        device = kwargs.pop("device", tensors[0].device if tensors else "cpu")
        args = [x.cpu() if isinstance(x, torch.Tensor) else x for x in args]
        return function(*args, **kwargs).to(device)

    @staticmethod
    def dropout(x, p=0.5, training=True, inplace=False):
        if not training or p == 0:
            return x
        return x * F.dropout(torch.ones(x.shape, dtype=x.dtype), p).to(x.device)


def stepped(method, device):
    """Losses and gradients of a method's step in float64."""
    model, teacher = step(method)
    model, teacher = model.double().to(device), teacher.double().to(device)
    for m, encoder in model.encoders.items():  # one stem, as the hook shares it
        teacher.encoders[m].backbone.conv1 = encoder.backbone.conv1
    model.bind_teacher(teacher)
    inputs, samples = batch_of(method, seed=1)
    inputs = {m: x.double().to(device) for m, x in inputs.items()}
    samples = [sample.to(device) for sample in samples]
    torch.manual_seed(1)
    with DrawsOnTheCPU():
        losses = model.loss(inputs, samples)
        total(losses).backward()
    return {k: torch.as_tensor(v).cpu() for k, v in losses.items()}, gradients(model)


@pytest.mark.parametrize("method", METHODS)
def test_a_step_is_the_cpus(method):
    """In float64, where sums in another order differ by 1e-15 of their size."""
    losses, slopes = stepped(method, "cpu")
    found, found_slopes = stepped(method, "cuda")
    assert found.keys() == losses.keys() and found_slopes.keys() == slopes.keys()
    for name, value in losses.items():
        torch.testing.assert_close(
            found[name].double(), value.detach().double(), rtol=1e-9, atol=1e-9
        )
    for name, slope in slopes.items():
        assert found_slopes[name].is_cuda
        difference = (found_slopes[name].cpu() - slope).abs().max()
        assert difference <= 1e-9 * max(float(slope.abs().max()), 1.0), name


def run(folder, **options):
    """Two epochs of six steps; the losses of each, and when they were known."""
    hooks = [TEACHER, dict(type="FiniteGuardHook"), dict(type="Follow")]
    runner = run_toy(folder, custom_hooks=hooks, train_cfg__max_epochs=2, **options)
    assert next(runner.model.parameters()).is_cuda
    history = runner.message_hub.log_scalars["train/loss"].data[0].tolist()
    return history, hook_of(runner, "Follow").known


def test_values_come_a_step_late_and_are_the_same(tmp_path, deterministic):
    """The real copy, into page-locked memory, while the next step runs."""
    own = dict(type="RuntimeInfoHook")  # MMEngine's, which every step waits for
    at_once, known = run(
        tmp_path / "a", default_hooks__runtime_info=own, **deterministic
    )
    assert known == [*range(1, 13)]
    late, known = run(tmp_path / "b", **deterministic)
    assert known == [0, 1, 2, 3, 4, 6, 6, 7, 8, 9, 10, 12]
    assert late == at_once
    a, b = (torch.load(tmp_path / name / "epoch_2.pth") for name in "ab")
    for part in ("state_dict", "ema_state_dict", "optimizer"):
        assert_same_trees(a[part], b[part], part)


def test_a_stopped_run_continues_to_the_bit(tmp_path, deterministic):
    by_step = dict(
        type="ResumableCheckpointHook", by_epoch=False, interval=4, max_keep_ckpts=2,
        save_best="source/top1", rule="greater",
    )  # fmt: skip
    options = dict(default_hooks__checkpoint=by_step, **deterministic)
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    trace = hook_of(run_toy(whole, **options), "Trace")
    stop = [TEACHER, dict(type="Trace", stop_at=9)]
    run_toy(resumed, **options | dict(custom_hooks=stop))
    second = hook_of(run_toy(resumed, **options, resume=True), "Trace")
    assert [s[:3] for s in second.steps] == [s[:3] for s in trace.steps[8:]]
    for folder in (whole, resumed):
        (folder / "iter_24.pth").rename(folder / "epoch_4.pth")
    compare_runs(whole, resumed)


@pytest.mark.parametrize("amp", [None, "bfloat16"])
@pytest.mark.parametrize("config", method_configs(ROOT / "configs/mbcd", "small"))
def test_no_step_waits(config, amp):
    """By torch's sync debug mode; NEL's decomposition looks whether it succeeded."""
    training = Training(Setting(config, batch=4, device="cuda", amp=amp))
    for _ in range(2):
        training.step()
    with steps.counting_waits(training.device, ()) as waits:
        for _ in range(3):
            training.step()
    found = {place.split(":")[0]: count for place, count in waits.items()}
    assert found == ({"nel.py": 3} if training.setting.name == "nel" else {})


def test_waits_are_counted():
    x = torch.ones(3, device="cuda")
    with steps.counting_waits(x.device, [x]) as waits:
        x.sum().item()
        (x * 2).to("cpu", non_blocking=True)
    (place,) = waits
    assert place.startswith("test_gpu.py") and waits[place] == 1


# ------------------------------------------------------------------ command line

CONFIG = "configs/mbcd/synth_action/mbcd.py"


def checked(done):
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def forked(name, *args):
    """As tools/demo.py and experiment.py start tools."""
    return checked(run_script(ROOT / "tools" / name, *args, cwd=ROOT))


def tool(name, *args, **environment):
    """As a user does."""
    start = [] if name.endswith(".sh") else [sys.executable]
    return checked(
        subprocess.run(
            [*start, str(ROOT / "tools" / name), *map(str, args)],
            cwd=ROOT,
            env=os.environ | {"PYTHON": sys.executable} | environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
    )


def small(data):
    return [
        "--data-root", data, "--cfg-options", "train_cfg.max_epochs=1",
        "train_dataloader.batch_size=4", "val_dataloader.batch_size=8",
        "default_hooks.logger.interval=1",
    ]  # fmt: skip


def logged(folder):
    (path,) = folder.glob("*/vis_data/scalars.json")
    rows = map(json.loads, path.read_text().splitlines())
    return [row["loss"] for row in rows if "loss" in row]


@pytest.fixture(scope="module")
def trained(tiny_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    forked("train.py", CONFIG, "--work-dir", folder, "--seed", 0, *small(tiny_data))
    return folder


def test_a_training_and_its_test_by_the_tools(trained, tiny_data, tmp_path):
    """Tested on the GPU and on the CPU: the same predictions."""
    assert "pin_memory=True" in next(trained.glob("*/vis_data/config.py")).read_text()
    (best,) = trained.glob("best_*.pth")
    found = []
    for where, environment in dict(gpu={}, cpu=dict(CUDA_VISIBLE_DEVICES="")).items():
        file = tmp_path / f"{where}.npz"
        tool(
            "test.py", CONFIG, best, "--work-dir", tmp_path / where,
            "--predictions", file, "--data-root", tiny_data, **environment,
        )  # fmt: skip
        found.append(Predictions.load(file))
    gpu, cpu = found
    assert gpu.sample_ids.tolist() == cpu.sample_ids.tolist()
    assert gpu.logits.keys() == cpu.logits.keys()
    for head, logits in cpu.logits.items():  # TF32 in convolutions keeps 10 bits
        np.testing.assert_allclose(gpu.logits[head], logits, atol=5e-2)


@pytest.mark.parametrize("amp", ["float16", "bfloat16"])
def test_mixed_precision_by_the_tools(trained, tiny_data, tmp_path, amp):
    options = [*small(tiny_data), "optim_wrapper.loss_scale=256.0"]
    tool(
        "train.py", CONFIG, "--work-dir", tmp_path, "--seed", 0, "--amp", amp,
        *(options if amp == "float16" else small(tiny_data)),
    )  # fmt: skip
    half, full = logged(tmp_path), logged(trained)
    assert len(half) == len(full) and half != full
    assert half[0] == pytest.approx(full[0], rel=0.05)


def test_one_process_on_nccl(trained, tiny_data, tmp_path):
    said = tool(
        "dist_train.sh", CONFIG, 1, "--work-dir", tmp_path, "--seed", 0,
        *small(tiny_data),
    )  # fmt: skip
    assert "Traceback" not in said
    assert logged(tmp_path) == pytest.approx(logged(trained), rel=1e-3)
    text = next(tmp_path.glob("*/*.log")).read_text()
    assert re.search(r"Distributed launcher: pytorch", text)
    assert re.search(r"GPU number: 1", text)
