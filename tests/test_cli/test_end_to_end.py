"""From encoded files to a result through the command line, in real processes."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import mmaction
import pandas as pd
import pytest
import torch
from PIL import Image

from helpers.forked import run_script
from method_toys import SYNTHETIC
from tests_support import assert_same_trees, load_tool

MMACTION_TOOLS = Path(mmaction.__file__).parent / ".mim" / "tools"
CONFIGS = "configs/mbcd/synth_action"


def run(repo, tool, *args, check=True, **environment):
    """Runs a tool in its own process and returns it with its output."""
    env = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(repo / "tests")} | environment
    if str(tool).endswith(".sh"):
        done = subprocess.run(
            [str(tool), *map(str, args)],
            cwd=repo,
            # PYTHON: make test activates no environment.
            env=os.environ | {"PYTHON": sys.executable} | env,
            capture_output=True,
            text=True,
            timeout=300,
        )
    else:
        done = run_script(repo / tool, *args, cwd=repo, env=env)
    if check:
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def small(data, **changes):
    """``--cfg-options`` for a run of one epoch of 6 steps."""
    options = {
        "train_cfg.max_epochs": 1,
        "train_dataloader.batch_size": 4,
        "val_dataloader.batch_size": 8,
    }
    for split in ("train", "val", "test"):
        options[f"{split}_dataloader.dataset.data_root"] = data
    options |= {key.replace("__", "."): value for key, value in changes.items()}
    return ["--cfg-options", *(f"{k}={v}" for k, v in options.items())]


def test_the_demo(repo, tmp_path, capsys, monkeypatch):
    out = tmp_path / "demo"
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.chdir(repo)
    options = ["--epochs", 2, "--train-per-class", 2, "--test-per-class", 1]
    # Data, training and testing run in processes of their own.
    monkeypatch.setattr("sys.argv", ["demo.py", "--out", str(out), *map(str, options)])
    assert load_tool("demo").main() == 0
    stdout = capsys.readouterr().out
    table = pd.read_csv(out / "results.csv").set_index("method")
    assert list(table.index) == ["ERM", "EMA", "MBCD"]
    for method in table.index:
        found = json.loads((out / method.lower() / "results.json").read_text())
        row = table.loc[method]
        top1 = 100 * found["metrics"]["target/top1"]
        assert row["fused top1"] == pytest.approx(top1)
        assert row["low"] < top1 + 1e-9 and top1 - 1e-9 < row["high"]
        assert row["N"] == found["N"]["target"] == 18  # 6 classes x (2 + 1)
        for m in ("video", "audio", "flow"):
            expected = 100 * found["metrics"][f"target/{m}/top1"]
            assert row[f"{m} top1"] == pytest.approx(expected)
        assert f"{row['fused top1']:.1f} [" in stdout
    assert pd.isna(table.loc["ERM", "student top1"])
    assert not pd.isna(table.loc["MBCD", "student top1"])
    assert "N = 18 clips" in stdout and "seed 0" in stdout
    assert "best source validation" in stdout
    picture = Image.open(out / "curves.png")
    assert picture.width > 800 and len(set(picture.convert("L").getdata())) > 50
    log = (out / "mbcd" / "train.log").read_text()
    assert re.search(r"the teacher holds [\d.]+ % of the initial weights", log)
    for name in ("loss_distill", "r/audio", "drop_prob/flow", "acc/video"):
        assert name in log
    assert list((out / "mbcd").glob("*/vis_data/events.out.tfevents.*"))


@pytest.mark.parametrize(
    "method", [pytest.param("erm", marks=pytest.mark.long), "mbcd"]
)
def test_mmaction2s_own_tools_run_the_same_config(repo, tiny_data, tmp_path, method):
    config = f"{CONFIGS}/{method}.py"
    done = run(
        repo,
        MMACTION_TOOLS / "train.py",
        config,
        "--work-dir",
        tmp_path,
        "--seed",
        0,
        *small(tiny_data),
    )
    assert "source/top1" in done.stdout + done.stderr
    (best,) = tmp_path.glob("best_*.pth")
    tested = run(
        repo,
        MMACTION_TOOLS / "test.py",
        config,
        best,
        "--work-dir",
        tmp_path / "t",
        *small(tiny_data),
    )
    theirs = re.search(r"target/top1: ([\d.]+)", tested.stdout + tested.stderr)
    own = tmp_path / "results.json"
    run(
        repo,
        "tools/test.py",
        config,
        best,
        "--work-dir",
        tmp_path / "o",
        "--out",
        own,
        *small(tiny_data),
    )
    found = json.loads(own.read_text())["metrics"]
    assert float(theirs.group(1)) == pytest.approx(found["target/top1"], abs=1e-4)
    assert found["target/N"] == 18
    run(
        repo,
        MMACTION_TOOLS / "train.py",
        config,
        "--work-dir",
        tmp_path,
        "--resume",
        *small(tiny_data, train_cfg__max_epochs=2),
    )
    assert (tmp_path / "epoch_2.pth").exists()


@pytest.mark.long
def test_a_killed_run_resumes_to_the_bit(repo, tiny_data, tmp_path):
    """SIGKILL inside an epoch, then within a validation; two workers, real media."""
    config = tmp_path / "with_kill_hook.py"
    config.write_text(
        f'_base_ = "{repo / CONFIGS}/mbcd.py"\n'
        'custom_imports = dict(imports=["mmaction_mbcd", "kill_hook"])\n'
    )
    options = small(
        tiny_data,
        train_cfg__max_epochs=2,
        train_cfg__val_interval=1,
        default_hooks__checkpoint__by_epoch=False,
        default_hooks__checkpoint__interval=3,
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    base = ["tools/train.py", config, "--seed", 1]
    run(repo, *base, "--work-dir", whole, *options)
    kill = "default_hooks.kill.type=KillHook"
    first = run(
        repo,
        *base,
        "--work-dir",
        killed,
        *options,
        kill,
        "default_hooks.kill.after_iter=5",
        check=False,
    )
    assert first.returncode == -signal.SIGKILL
    assert (killed / "iter_3.pth").exists()
    second = run(
        repo,
        *base,
        "--work-dir",
        killed,
        "--resume",
        *options,
        kill,
        "default_hooks.kill.in_val_of_epoch=1",
        check=False,
    )
    assert second.returncode == -signal.SIGKILL
    assert (killed / "iter_6.pth").exists()
    run(repo, *base, "--work-dir", killed, "--resume", *options)
    a, b = (torch.load(d / "iter_12.pth") for d in (whole, killed))
    for part in ("state_dict", "ema_state_dict", "optimizer"):
        assert_same_trees(a[part], b[part], part)
    info = [x["message_hub"]["runtime_info"] for x in (a, b)]
    assert info[0]["best_score"] == info[1]["best_score"]
    best = [sorted(p.name for p in d.glob("best_*.pth")) for d in (whole, killed)]
    assert best[0] == best[1]


@pytest.mark.long
def test_training_from_a_frame_store_is_training_from_the_files(
    repo, tiny_data, tmp_path
):
    config, store = f"{CONFIGS}/mbcd.py", tmp_path / "store"
    data = ["--data-root", tiny_data]
    run(
        repo, "tools/data/pack.py", config, *data, "--out", store,
        "--codec", "pnm", "--workers", 1,
    )  # fmt: skip
    said = {}
    for name, more in (("files", []), ("store", ["--frame-store", store])):
        folder = ["--work-dir", tmp_path / name, "--seed", 3]
        done = run(repo, "tools/train.py", config, *folder, *more, *small(tiny_data))
        said[name] = done.stdout
    weights = [
        torch.load(tmp_path / name / "epoch_1.pth", weights_only=False)["state_dict"]
        for name in said
    ]
    assert_same_trees(*weights)
    assert f"frames from {store} (PNM, lossless)" in " ".join(said["store"].split())
    assert "frames from" not in said["files"]


def trained_by_two(repo, data, folder):
    """The best checkpoint of ``dist_train.sh`` with two processes."""
    trained = run(
        repo,
        repo / "tools/dist_train.sh",
        f"{CONFIGS}/mbcd.py",
        2,
        "--work-dir",
        folder,
        "--seed",
        0,
        *small(
            data,
            optim_wrapper__sync_inner=True,
            train_dataloader__num_workers=1,
            val_dataloader__num_workers=1,
        ),
    )
    assert trained.stdout.count("Best checkpoint: ") == 1
    (best,) = folder.glob("best_*.pth")
    return best


@pytest.mark.long
def test_two_processes_through_dist_train(repo, tiny_data, tmp_path):
    best = torch.load(trained_by_two(repo, tiny_data, tmp_path))
    assert best["meta"]["experiment"]["sources"] == ["studio", "street"]


@pytest.mark.long
def test_two_processes_test_as_one_does(repo, tiny_data, tmp_path):
    best, config = trained_by_two(repo, tiny_data, tmp_path), f"{CONFIGS}/mbcd.py"
    out = tmp_path / "two.json"
    run(
        repo,
        repo / "tools/dist_test.sh",
        config,
        best,
        2,
        "--out",
        out,
        "--work-dir",
        tmp_path / "t",
        *small(tiny_data, test_dataloader__num_workers=1),
    )
    one = tmp_path / "one.json"
    run(
        repo,
        "tools/test.py",
        config,
        best,
        "--out",
        one,
        "--work-dir",
        tmp_path / "t",
        *small(tiny_data),
    )
    two, one = (json.loads(p.read_text())["metrics"] for p in (out, one))
    assert two["target/N"] == one["target/N"] == 18
    assert two["target/top1"] == pytest.approx(one["target/top1"])


def test_student_weights_in_domain_and_fewer_modalities(repo, tiny_data, tmp_path):
    config = f"{CONFIGS}/mbcd.py"
    run(
        repo,
        "tools/train.py",
        config,
        "--work-dir",
        tmp_path,
        "--modalities",
        "audio",
        "flow",
        *small(tiny_data),
    )
    (best,) = tmp_path.glob("best_*.pth")
    results = {}
    for name, extra in (
        ("teacher", []),
        ("student", ["--weights", "student"]),
        ("sources", ["--in-domain"]),
    ):
        out = tmp_path / f"{name}.json"
        run(
            repo,
            "tools/test.py",
            config,
            best,
            "--modalities",
            "audio",
            "flow",
            "--out",
            out,
            "--work-dir",
            tmp_path / "t",
            *extra,
            *small(tiny_data),
        )
        results[name] = json.loads(out.read_text())
    teacher, student = results["teacher"]["metrics"], results["student"]["metrics"]
    assert student["target/top1"] == teacher["student/target/top1"]
    assert student["teacher/target/top1"] == teacher["target/top1"]
    assert "target/video/top1" not in teacher and "target/flow/top1" in teacher
    assert results["sources"]["metrics"]["source/N"] == 12


class TestBadInput:
    def error(self, repo, *args):
        done = run(repo, "tools/train.py", *args, check=False)
        assert done.returncode != 0
        return (done.stdout + done.stderr).splitlines()[-1]

    def test_unreadable_video_is_named(self, repo, tiny_data, tmp_path):
        broken = tmp_path / "data"
        os.makedirs(broken)
        subprocess.run(["cp", "-r", f"{tiny_data}/.", broken], check=True)
        victim = sorted((broken / "studio" / "videos").glob("*.mp4"))[0]
        victim.write_bytes(victim.read_bytes()[:200])
        assert cv2.VideoCapture(str(victim)).read()[0] is False
        done = run(
            repo,
            "tools/train.py",
            f"{CONFIGS}/erm.py",
            "--work-dir",
            tmp_path / "w",
            *small(broken),
            check=False,
        )
        assert done.returncode != 0
        assert str(victim) in done.stdout + done.stderr

    def test_one_modality_given_to_amd(self, repo, tiny_data, tmp_path):
        message = self.error(
            repo,
            f"{CONFIGS}/mbcd.py",
            "--work-dir",
            tmp_path,
            "--modalities",
            "video",
            *small(tiny_data),
        )
        assert "needs at least two; got ['video']" in message

    def test_the_wrong_wrapper(self, repo, tiny_data, tmp_path):
        config = tmp_path / "stock_wrapper.py"
        config.write_text(
            f'_base_ = "{repo / CONFIGS}/mbcd.py"\n'
            'optim_wrapper = dict(_delete_=True, type="OptimWrapper", '
            'optimizer=dict(type="Adam", lr=1e-3))\n'
        )
        message = self.error(
            repo, config, "--work-dir", tmp_path / "w", *small(tiny_data)
        )
        assert "needs optim_wrapper.type MBCDOptimWrapper" in message
        assert message.endswith("got OptimWrapper")


def readme_code(repo, first_line):
    """The README's code block that starts with a line."""
    blocks = re.findall(r"```python\n(.*?)```", (repo / "README.md").read_text(), re.S)
    (block,) = [block for block in blocks if block.startswith(first_line)]
    return block


def test_the_readmes_own_method(repo, tiny_data, tmp_path):
    """A loss in a file outside the package, through custom_imports."""
    (tmp_path / "my_method.py").write_text(readme_code(repo, "# my_method.py"))
    config = readme_code(repo, "# my_config.py").replace(
        "configs/mbcd", str(repo / "configs" / "mbcd")
    )
    (tmp_path / "my_config.py").write_text(config)
    done = run(
        repo, "tools/train.py", tmp_path / "my_config.py", "--work-dir", tmp_path / "w",
        *small(tiny_data), PYTHONPATH=str(tmp_path),
    )  # fmt: skip
    assert "loss_norm" in done.stdout + done.stderr
    assert list((tmp_path / "w").glob("best_*.pth"))


def short(method, data, **changes):
    """``small`` for any method: CMRF's mean must start within six steps."""
    if method.startswith("cmrf"):
        changes["custom_hooks__0__begin_iter"] = 2
    return small(data, **changes)


def train_and_test(repo, method, data, folder):
    """One method through both tools; the metrics."""
    config = f"{CONFIGS}/{method}.py"
    run(repo, "tools/train.py", config, "--work-dir", folder, "--seed", 0,
        *short(method, data))  # fmt: skip
    (best,) = folder.glob("best_*.pth")
    out = folder / "results.json"
    run(repo, "tools/test.py", config, best, "--out", out, "--work-dir", folder / "t",
        *small(data))  # fmt: skip
    return json.loads(out.read_text())


@pytest.mark.long
@pytest.mark.parametrize("method", ["cmrf", "nel", "moosa_gmp"])
def test_the_families_through_the_command_line(repo, tiny_data, tmp_path, method):
    """A running mean, two views, gradient modulation; plain ones and MBCD above."""
    found = train_and_test(repo, method, tiny_data, tmp_path)
    assert found["N"]["target"] == 18
    assert 0 <= found["metrics"]["target/top1"] <= 1
    # CMRF is evaluated by its student and reports the mean beside it.
    assert ("teacher/target/top1" in found["metrics"]) == (method == "cmrf")
    assert found["weights"] == ("student" if method == "cmrf" else None)


@pytest.mark.long
@pytest.mark.parametrize("method", SYNTHETIC)
def test_every_method_through_the_command_line(repo, tiny_data, tmp_path, method):
    """One epoch, a stop, the second by resuming, then the test."""
    found = train_and_test(repo, method, tiny_data, tmp_path)
    assert found["N"]["target"] == 18
    again = short(method, tiny_data, train_cfg__max_epochs=2)
    config = f"{CONFIGS}/{method}.py"
    done = run(repo, "tools/train.py", config, "--work-dir", tmp_path, "--seed", 0,
               "--resume", *again)  # fmt: skip
    assert "resumed epoch: 1" in done.stdout + done.stderr
    assert list(tmp_path.glob("epoch_2.pth"))
