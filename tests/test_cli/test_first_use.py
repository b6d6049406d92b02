"""What a newcomer meets: no environment, no weights, few clips, a full terminal."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.config import Config
from rich.console import Console

from helpers.forked import run_script
from media import write_own
from mmaction_mbcd import cli
from mmaction_mbcd.experiments import running
from mmaction_mbcd.experiments.running import run_tool
from mmaction_mbcd.models.weights import load_backbone
from mmaction_mbcd.preparation.check import training_problems
from tests_support import load_tool

ROOT = Path(__file__).parents[2]
TOOLS = sorted((ROOT / "tools").rglob("*.py"))


@pytest.mark.parametrize("tool", TOOLS, ids=lambda p: str(p.relative_to(ROOT)))
def test_outside_the_environment_one_line_says_what_to_activate(tool, tmp_path):
    """-S: an interpreter without site-packages, as the system's own is."""
    done = subprocess.run(
        [sys.executable, "-S", "-E", str(tool)],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "source .venv/bin/activate" in line and line.startswith("No module named")


def test_missing_weights_are_one_line_with_the_command(tmp_path):
    """Before any data are looked for: there are none."""
    config = ROOT / "configs/mbcd/hac/mbcd.py"
    tool = ROOT / "tools" / "train.py"
    done = run_script(tool, config, "--modalities", "video", "flow", cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()[-1:]
    assert line.startswith("train.py: error: pretrained weights are missing: ")
    assert "slowfast_r101" in line and "(flow)" in line and "H.pth.tar" not in line
    assert "`python tools/data/weights/download.py`" in line
    assert "model.encoders.video.pretrained=None" in line
    assert "Traceback" not in done.stderr


def test_missing_weights_in_other_tools_name_the_command():
    with pytest.raises(FileNotFoundError, match="tools/data/weights/download.py"):
        load_backbone(None, "nowhere.pth")


@pytest.fixture
def own(tmp_path):
    """Three domains of 4 clips: 3 of each are for training."""
    return write_own(tmp_path / "own", clips=4)


def own_config(own, *options):
    train = load_tool("train")
    path = ROOT / "configs/mbcd/own_videos/erm.py"
    arguments = [str(path), "--data-root", str(own), *options]
    return train.build_config(train.parse_args([*arguments, "--target", "kitchen"]))


def test_too_few_clips_for_a_batch(own):
    cfg = own_config(own)
    weights, batches = training_problems(cfg, every_target=True)
    assert "pretrained weights are missing" in weights
    for domain in ("kitchen", "garden", "studio"):
        assert f"4 (target {domain})" in batches
    assert "train_dataloader.batch_size=4" in batches
    cfg.model.encoders.video.pretrained = None
    smaller = own_config(own, "--cfg-options", "train_dataloader.batch_size=4")
    assert len(training_problems(smaller, every_target=True)) == 1  # the weights
    (only,) = training_problems(cfg)[1:]
    assert "target kitchen" in only and "garden" not in only


def test_check_says_what_would_stop_a_training(own, capsys):
    check = load_tool("data/check")
    path = str(ROOT / "configs/mbcd/own_videos/erm.py")
    options = ["--data-root", str(own), "--quick", "--modalities", "video", "audio"]
    code = check.main([path, *options, "--workers", "1", "--allow", "missing"])
    out = capsys.readouterr().out
    assert code == 1 and out.count("training cannot start: ") == 2
    assert "batch_size=4" in out and "weights/download.py" in out


def test_the_benchmark_refuses_before_it_starts(own, tmp_path, capsys):
    tool = load_tool("leave_one_domain_out")
    path = str(ROOT / "configs/mbcd/own_videos/erm.py")
    with pytest.raises(SystemExit):
        tool.main([path, "--data-root", str(own), "--out", str(tmp_path / "out")])
    assert "batch_size=4" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_page_instead_of_the_config(repo, tiny_data, tmp_path):
    """The terminal has a page, the folder the config and the log all of it."""
    config = str(repo / "configs/mbcd/synth_action/mbcd.py")
    options = ["--data-root", str(tiny_data), "--work-dir", str(tmp_path / "work")]
    changes = ["--cfg-options", "train_cfg.max_epochs=1", "train_cfg.val_interval=1"]
    changes += [f"{s}_dataloader.num_workers=0" for s in cli.SPLITS]
    changes += [f"{s}_dataloader.persistent_workers=False" for s in cli.SPLITS]
    changes += ["train_dataloader.batch_size=4"]

    def call(name, *more):
        args = [config, *more, *options, *changes]
        done = run_script(repo / "tools" / f"{name}.py", *args, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    said = call("train", "--seed", "3")
    check_page("train", said, tmp_path / "work")
    (best,) = (tmp_path / "work").glob("best_*.pth")
    check_page("test", call("test", str(best)), tmp_path / "work", best)


def check_page(tool, said, folder, best=None):
    page = said[said.index("The run\n") :]
    facts = dict(
        line.strip().split("  ", 1)
        for line in page.splitlines()[1:20]
        if line.startswith("  ") and "  " in line.strip()
    )
    facts = {key: value.strip() for key, value in facts.items()}
    assert facts["method"] == "MBCD" and facts["modalities"] == "video, audio, flow"
    assert (
        facts["data"].startswith("SynthActionDataset, ") and "repaired" in facts["data"]
    )
    assert facts["folder"] == str(folder)
    if tool == "train":
        kept = Config.fromfile(folder / "mbcd.py")
        assert kept.train_cfg.max_epochs == 1 and kept.model.num_classes == 6
        assert "sketch" not in facts["training"] and "(target)" in facts["validation"]
        assert facts["seed"] == "3" and "1 epoch of" in facts["steps"]
        assert facts["optimizer"].startswith("Adam, rate 0.001")
    else:
        assert facts["checkpoint"] == str(best) and "sketch" in facts["test"]
    assert "train_cfg = dict(" not in said and "Hooks will be executed" not in said
    (log,) = sorted(folder.glob("*/*.log"))[-1:]
    text = log.read_text()
    assert "train_cfg = dict(" in text and "Hooks will be executed" in text
    assert "The run" in text and (folder / "mbcd.py").is_file()
    progress = json.loads((folder / "progress.json").read_text())
    assert progress["done"] == progress["total"]


def test_the_bar_follows_steps_within_an_epoch(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "_LOOK", 0.02)
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "slow.py").write_text(
        "import json, os, sys, time\n"
        "path = sys.argv[1] + '/progress.json'\n"
        "for step in range(1, 6):\n"
        "    facts = dict(phase='train', done=step, total=20, epoch=1, epochs=4)\n"
        "    open(path + '.part', 'w').write(json.dumps(facts))\n"
        "    os.replace(path + '.part', path)\n"
        "    time.sleep(0.2)\n"
        "json.dump(dict(phase='validation', done=1, total=2, epoch=1, epochs=4), "
        "open(path, 'w')); time.sleep(0.2)\n"
    )
    seen = []
    update = running.Progress.update

    def spy(self, task, **fields):
        seen.append((fields.get("completed"), fields.get("at")))
        update(self, task, **fields)

    monkeypatch.setattr(running.Progress, "update", spy)
    work_dir = tmp_path / "work"
    with open("/dev/null", "w") as sink:
        run_tool(
            tmp_path, ["slow.py", work_dir], "x", work_dir / "a.log", Console(file=sink)
        )
    assert {1, 2, 3, 4, 5} <= {done for done, _ in seen}
    texts = [at for _, at in seen if at]
    assert texts[0] == "epoch 1/4" and "epoch 1, validating" in texts
    assert any(text.startswith("epoch 1/4, ") and "left" in text for text in texts)
