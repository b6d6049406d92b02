"""How an epoch's time is split and projected, on tiny clips."""

import json
import subprocess
import sys
import time
from functools import partial

import pytest
import torch
from mmaction.registry import DATASETS
from mmengine.registry import init_default_scope

from mmaction_mbcd import cli
from mmaction_mbcd.benchmark import epochs
from mmaction_mbcd.benchmark.clips import write_hac_clips
from mmaction_mbcd.benchmark.training import RandomClips, Setting
from mmaction_mbcd.datasets import SampleIndex
from tests_support import ROOT, assert_same_trees, load_tool

ERM = str(ROOT / "configs" / "mbcd" / "synth_action" / "erm.py")
TINY = Setting(ERM, batch=2, pixels=16, clip_length=2)
EPIC = str(ROOT / "configs" / "mbcd" / "epic_kitchens" / "erm.py")
SMALL = "--batch 2 --pixels 16 --clip-length 2 --random --device cpu".split()


def test_an_epoch_s_figures_by_hand():
    """Behind the first of four steps: 3 s of waiting and 9 s of steps for 24 clips."""
    figures = epochs.EpochFigures([10, 1, 0.5, 1.5], [20, 4, 3, 2], batch=8)
    assert figures.first_batch == 10
    assert figures.clips_per_second == 24 / 12
    assert figures.waiting_share == 3 / 12
    # 20 * 399 * 16 = 127,680 clips at 2 a second.
    assert figures.paper_minutes == 127_680 / 2 / 60
    alone = epochs.EpochFigures([10], [20], batch=8)
    assert alone.clips_per_second == 8 / 30 and alone.waiting_share == 0


def test_a_projection_by_hand():
    """16 clips in 0.2 s on each of 8; 7/4 of 400 MB at 100 GB/s are 7 ms."""
    figures = epochs.EpochFigures(
        [9, 0.1], [9, 0.1], batch=16, gradient_bytes=4 * 10**8
    )
    assert epochs.communication_seconds(4e8, 8, 1e11) == pytest.approx(0.007)
    assert epochs.communication_seconds(4e8, 1, 1e11) == 0
    steps = 127_680 / (16 * 8)
    expected = steps * 0.207 / 60
    assert epochs.projected_minutes(figures, 8, 1e11) == pytest.approx(expected)
    assert epochs.projected_minutes(figures, 1, 1e11) == figures.paper_minutes


@DATASETS.register_module()
class SlowClips(RandomClips):
    """Takes 40 ms a clip to read."""

    def __getitem__(self, index):
        time.sleep(0.04)
        return super().__getitem__(index)


def test_waiting_and_steps_are_told_apart(monkeypatch):
    def slowly(cfg, setting):
        read_random_clips(cfg, setting)
        cfg.train_dataloader.dataset.type = "SlowClips"

    read_random_clips = epochs.read_random_clips
    monkeypatch.setattr(epochs, "read_random_clips", slowly)
    figures = epochs.measure_epoch(TINY, None, steps=3)
    assert len(figures.waited) == len(figures.stepped) == 3
    assert all(0.08 <= seconds for seconds in figures.waited)
    monkeypatch.undo()
    figures = epochs.measure_epoch(TINY, None, steps=3)
    assert min(figures.waited[1:]) < 0.08


def test_the_gradients_of_the_papers_layer4():
    """Of a linear layer and a frozen one: 4 bytes for each trained number."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 2))
    model[1].requires_grad_(False)
    assert epochs.gradient_bytes(model) == 4 * (3 * 5 + 5)


def test_an_epoch_of_clips_that_are_read(tiny_data):
    """24 source clips, so that three batches of eight are an epoch."""
    setting = Setting(ERM, batch=8)
    figures = epochs.measure_epoch(setting, str(tiny_data), workers=0)
    assert len(figures.stepped) == 3 and figures.batch == 8
    assert sum(figures.waited) > 0.01


def test_the_tool_prints_and_writes(tmp_path, capsys):
    path = tmp_path / "numbers.json"
    options = [*SMALL, "--steps", "2", "--epochs", "1", "--json", str(path)]
    tool = load_tool("benchmark/epoch")
    assert tool.main([ERM, *options, "--project", "8", "100"]) == 0
    (row,) = json.loads(path.read_text())["results"]["float32"]
    assert row["steps"] == 2 and row["batch"] == 2 and row["clips_per_second"] > 0
    printed = capsys.readouterr().out
    assert "20 epochs on 8 processes at 100 GB/s" in printed


def clips_of(dataset):
    """Inputs of the first and the last clip, as a training reads them."""
    data = DATASETS.build(dataset)
    return len(data), [data[SampleIndex(i, (0, 1))]["inputs"] for i in (0, -1)]


def test_clips_of_the_papers_size_are_made_and_packed(tmp_path, monkeypatch, capsys):
    """Two batches of two; a store without loss gives what the files give."""
    tool, found = load_tool("benchmark/epoch"), []

    def measure(setting, data_root, steps, workers, launcher, frame_store):
        init_default_scope("mmaction")
        cfg = cli.read_config(setting.config)
        for store in (None, frame_store):
            cli.set_datasets(cfg, data_root=data_root, frame_store=store)
            found.append(clips_of(cfg.train_dataloader.dataset))
        return epochs.EpochFigures([1, 1], [1, 1], setting.batch)

    small = partial(write_hac_clips, frames=70, size=(64, 48))
    monkeypatch.setattr(tool, "write_hac_clips", small)
    monkeypatch.setattr(tool, "DISTINCT", 3)
    monkeypatch.setattr(epochs, "measure_epoch", measure)
    path = tmp_path / "numbers.json"
    options = "--size paper --device cpu --batch 2 --steps 2 --epochs 1".split()
    assert tool.main([*options, "--frame-store", "pnm", "--json", str(path)]) == 0
    (count, files), (stored_count, stored) = found
    assert count == stored_count == 5  # four of the one source, one of the other
    assert_same_trees(files, stored)
    assert "reads a frame store (PNM, lossless)" in capsys.readouterr().out
    assert json.loads(path.read_text())["reads"] == "a frame store (PNM, lossless)"


def test_clips_are_the_same_in_every_run(tmp_path):
    """Without a setting of x264's, flow of this size differs on some processors."""
    found = []
    for name in "ab":
        root = write_hac_clips(tmp_path / name, clips=3, frames=12, size=(170, 128))
        files = {p.relative_to(root): p for p in root.rglob("*.*")}
        found.append({name: path.read_bytes() for name, path in files.items()})
    assert found[0] == found[1] and len(found[0]) == 5 * 4 + 6


def test_links_are_clips_like_others(tmp_path):
    write_hac_clips(tmp_path, clips=5, frames=8, size=(32, 32), distinct=2)
    folder = tmp_path / "human"
    files = [p.relative_to(folder) for p in sorted(folder.rglob("*.*"))]
    assert len(files) == 5 * 4
    for file in files:
        number = int(file.name[5:8])
        first = file.with_name(file.name.replace(f"{number:03d}", f"{number % 2:03d}"))
        assert (folder / file).samefile(folder / first)


@pytest.mark.long
def test_an_epoch_at_the_papers_size(tmp_path):
    path = tmp_path / "numbers.json"
    options = "--size paper --device cpu --batch 2 --steps 1 --epochs 1".split()
    tool = load_tool("benchmark/epoch")
    assert tool.main([*options, "--frame-store", "jpeg", "--json", str(path)]) == 0
    (row,) = json.loads(path.read_text())["results"]["float32"]
    assert row["steps"] == 1 and row["batch"] == 2


@pytest.mark.long
def test_two_processes(tmp_path):
    path = tmp_path / "numbers.json"
    options = [*SMALL, "--steps", "2", "--epochs", "1", "--json", str(path)]
    script = ROOT / "tools" / "benchmark" / "epoch.py"
    subprocess.run(
        [sys.executable, script, ERM, *options, "--processes", "2"],
        check=True,
        env=dict(PYTHONPATH=str(ROOT), PATH="/usr/bin:/bin", OMP_NUM_THREADS="1"),
    )
    (row,) = json.loads(path.read_text())["results"]["float32"]
    assert row["processes"] == 2 and row["batch"] == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--pixels", "64"], "those of random clips"),
        ([EPIC], "reads a EPICKitchensDataset, which cannot be made here"),
        (["--random", "--frame-store", "png"], "random clips are in memory"),
        (["--frame-store", "/no/store"], "--frame-store /no/store needs --data-root"),
        (["--data-root", "/no", "--frame-store", "/no/store"], "is not a frame store"),
        (["--project", "many", "1"], "--project takes a number of processes"),
        (["--random", "--amp", "--steps", "1"], "--amp needs a GPU"),
    ],
)
def test_wrong_options(options, message, capsys):
    with pytest.raises(SystemExit) as error:
        load_tool("benchmark/epoch").main(
            [*options, "--device", "cpu", "--epochs", "1"]
        )
    assert error.value.code == 2 and message in capsys.readouterr().err
