"""Checkpoints through the command line: the wrong one, a damaged one, random kills."""

import json
import os
import random
import signal

import pytest
import torch

from helpers.forked import run_script
from mmaction_mbcd import scripts
from tests_support import assert_same_trees

CONFIGS = "configs/mbcd/synth_action"


def options(data, **more):
    """An epoch of six steps."""
    values = {"train_cfg.max_epochs": 1, "train_dataloader.batch_size": 4} | more
    changed = [f"{key}={value}" for key, value in values.items()]
    return ["--data-root", data, "--cfg-options", *changed]


@pytest.fixture(scope="module")
def trained(repo, tiny_data, tmp_path_factory):
    """EMA's checkpoint of one epoch, as the tools make it."""
    folder = tmp_path_factory.mktemp("trained")
    done = run_script(
        repo / "tools" / "train.py", f"{CONFIGS}/ema.py", "--work-dir", folder,
        "--seed", 0, *options(tiny_data), cwd=repo,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "epoch_1.pth"


@pytest.fixture
def tested(repo, tiny_data, tmp_path):
    def run(checkpoint, *args, config="ema"):
        return run_script(
            repo / "tools" / "test.py", f"{CONFIGS}/{config}.py", checkpoint,
            "--data-root", tiny_data, "--work-dir", tmp_path / "w", *args, cwd=repo,
        )  # fmt: skip

    return run


def refusal(done):
    """The one line, after which no number may stand anywhere."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "top1" not in done.stdout and "Traceback" not in done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("test.py: error: ")
    return line


def test_a_domain_that_was_trained_on_is_not_tested_as_unseen(trained, tested):
    line = refusal(tested(trained, "--target", "studio"))
    assert "it was trained on studio, which is tested here as unseen" in line
    assert "its sources: studio, street" in line


def test_the_checkpoint_of_another_method_is_refused(trained, tested):
    line = refusal(tested(trained, config="mbcd"))
    assert "its method: EMA, here MBCD" in line


def test_part_of_the_weights_is_tested_on_request_and_said(trained, tested, tmp_path):
    content = torch.load(trained)
    for part in ("state_dict", "ema_state_dict"):
        content[part] = {k: v for k, v in content[part].items() if "audio" not in k}
    torch.save(content, tmp_path / "part.pth")
    line = refusal(tested(tmp_path / "part.pth", "--weights", "student"))
    assert "missing" in line and "--allow-partial" in line
    out = tmp_path / "results.json"
    done = tested(tmp_path / "part.pth", "--allow-partial", "--out", out)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found["allow_partial"] and found["weights_loaded"]["missing"] > 10
    assert found["experiment"]["sources"] == ["studio", "street"]


@pytest.mark.long  # as test_engine/test_trust.py, in a real process
def test_a_damaged_checkpoint_is_named(trained, tested, tmp_path):
    path = tmp_path / "cut.pth"
    path.write_bytes(trained.read_bytes()[:-5000])
    assert f"{path} is damaged: it ends after" in refusal(tested(path))


@pytest.mark.long  # as test_engine/test_trust.py, in a real process
def test_another_target_is_not_resumed(repo, tiny_data, trained):
    done = run_script(
        repo / "tools" / "train.py", f"{CONFIGS}/ema.py", "--resume", trained,
        "--target", "studio", "--work-dir", trained.parent / "other",
        *options(tiny_data), cwd=repo,
    )  # fmt: skip
    assert done.returncode == 2
    line = done.stderr.strip().splitlines()[-1]
    assert "its target: sketch, here studio" in line


def train(repo, data, folder, log, *args):
    return scripts.start_script(
        repo / "tools" / "train.py",
        [
            f"{CONFIGS}/mbcd.py", "--work-dir", folder, "--seed", 3, *args,
            *options(data, **{
                "train_cfg.max_epochs": 3, "default_hooks.checkpoint.minutes": 0,
            }),
        ],
        log,
        cwd=repo,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("seed", "damages"),
    [pytest.param(seed, bool(seed % 2), marks=pytest.mark.long) for seed in range(9)],
)
def test_killed_at_random_moments(repo, tiny_data, tmp_path, seed, damages):
    """SIGKILL wherever it is, also in the middle of a checkpoint, until it is done.

    In the odd trials the newest checkpoint is damaged as well.
    """
    draw = random.Random(seed)
    done = tmp_path.parent / "whole_for_kills"  # uninterrupted, made once
    if not (done / "epoch_3.pth").exists():
        process = train(repo, tiny_data, done, tmp_path / "whole.log")
        process.join()
        assert process.exitcode == 0
    folder, kills = tmp_path / "killed", 0
    for attempt in range(40):
        process = train(
            repo, tiny_data, folder, tmp_path / f"{attempt}.log", "--resume"
        )
        wait = draw.uniform(2, 9) if kills < 4 else 300
        process.join(wait)
        if process.exitcode is not None:
            break
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += 1
        found = sorted(folder.glob("*iter_*.pth"), key=os.path.getmtime)
        if damages and len(found) > 1:
            content = found[-1].read_bytes()
            found[-1].write_bytes(content[: draw.randrange(len(content))])
    log = (tmp_path / f"{attempt}.log").read_text()
    assert process.exitcode == 0, log[-2000:]
    assert kills >= 1
    a, b = (torch.load(path / "epoch_3.pth") for path in (done, folder))
    for part in ("state_dict", "ema_state_dict", "optimizer"):
        assert_same_trees(a[part], b[part], part)
    assert not list(folder.glob("*.part"))
    left = {p.name for p in folder.glob("*.pth") if not p.name.startswith("best")}
    assert len(left) == 2 and "epoch_3.pth" in left
