"""What a step is said to cost, with the small networks and tiny clips."""

import functools
import json
from pathlib import Path

import pytest
import torch
from mmaction.registry import DATASETS

from helpers import pool_work
from mmaction_mbcd import cli
from mmaction_mbcd.benchmark import arithmetic, report, steps
from mmaction_mbcd.benchmark.counting import count_flops, counting_waits
from mmaction_mbcd.benchmark.training import (
    Setting,
    Training,
    clip_shapes,
    load_setting,
    method_configs,
)
from mmaction_mbcd.engine.checkpoint_checks import module_of
from mmaction_mbcd.errors import UsageError
from tests_support import ROOT, load_tool

CONFIGS = ROOT / "configs" / "mbcd"


def setting(method, **kwargs):
    config = str(CONFIGS / "synth_action" / f"{method}.py")
    return Setting(config, **dict(batch=2, pixels=16, clip_length=2) | kwargs)


@functools.cache
def training_of(method):
    """One for all tests that do not mind which step it is at."""
    return Training(setting(method))


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("erm", (1, 1)),
        ("mbcd", (3, 3)),
        ("gmp", (1, 3)),
        ("table4_ema_gcc", (2, 3)),
    ],
)
def test_a_step_runs_the_passes_that_its_method_needs(method, expected):
    """docs/methods/index.md, counted; heads and projections add less than 3 %."""
    training = training_of(method)
    passes = arithmetic.needed_passes(module_of(training.runner))
    lowest = arithmetic.floor(passes, arithmetic.count_parts(training))
    assert passes == expected
    assert lowest <= count_flops(training.step) <= 1.03 * lowest


def test_mbcd_costs_one_stem_three_branches_forward_and_three_backward():
    """Frozen up to layer1, so that there is a stem; heads add less than 1 %."""
    names = ("video", "audio", "flow")
    frozen = tuple((f"model.encoders.{m}.frozen_stages", 1) for m in names)
    mbcd, erm = (
        Training(setting(method, changes=frozen)) for method in ("mbcd", "erm")
    )
    stem, forward, backward = arithmetic.count_parts(erm)
    assert stem > 0 and arithmetic.count_parts(mbcd) == (stem, forward, backward)
    expected = (stem + 3 * forward + 3 * backward) / (stem + forward + backward)
    ratio = count_flops(mbcd.step) / count_flops(erm.step)
    assert ratio == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("method", ["erm", "mbcd"])
def test_a_step_does_not_wait_for_the_device(method):
    """What is logged, and what the guard wants to know, arrive later."""
    training = training_of(method)
    training.step()  # the guard says that it needs nothing at once
    with counting_waits(training.device, training.tensors()) as found:
        training.step()
    assert not found


def test_shapes_are_those_of_the_pipelines(tiny_data):
    cfg = load_setting(Setting(setting("erm").config))
    cli.set_datasets(cfg, data_root=str(tiny_data))
    item = DATASETS.build(cfg.train_dataloader.dataset)[0]["inputs"]
    assert clip_shapes(cfg) == {m: tuple(x.shape) for m, x in item.items()}
    small = clip_shapes(cfg, pixels=16, clip_length=2)
    assert small["video"] == (3, 2, 16, 16) and small["flow"] == (2, 2, 16, 16)


def test_shapes_of_the_papers_clips():
    """docs/data.md: 32 and 8 frames of 224 pixels, 10 s of sound."""
    cfg = load_setting(Setting(str(CONFIGS / "epic_kitchens" / "mbcd.py")))
    assert clip_shapes(cfg) == dict(
        video=(3, 32, 224, 224), audio=(1, 257, 1004), flow=(2, 8, 224, 224)
    )
    assert clip_shapes(cfg, clip_length=16)["flow"] == (2, 4, 224, 224)


def test_further_modalities_are_copies():
    cfg = load_setting(setting("mbcd", modalities=5))
    names = ["video", "audio", "flow", "video2", "audio2"]
    assert cfg.model.modalities == names
    assert cfg.model.encoders.audio2 == cfg.model.encoders.audio
    two, four = (Training(setting("erm", modalities=count)) for count in (2, 4))
    flow = arithmetic.count_parts(training_of("erm")).forward
    flow -= arithmetic.count_parts(two).forward
    video = arithmetic.count_parts(four).forward - flow
    video -= arithmetic.count_parts(two).forward
    assert 0 < flow < video  # two channels, and three


def test_steps_are_those_of_training():
    """Two equal trainings take equal steps, and the weights move."""
    a, b = (Training(setting("mbcd")) for _ in range(2))
    before = [p.detach().clone() for p in a.runner.model.parameters()]
    for training in (a, b):
        training.step()
        training.step()
    pairs = zip(a.runner.model.parameters(), b.runner.model.parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs)
    moved = zip(before, a.runner.model.parameters(), strict=True)
    assert any(not torch.equal(p, q) for p, q in moved)


def test_methods_are_compared_in_turns(monkeypatch):
    """The clock ticks 1 s per step of ERM and 3 s per step of the other."""
    now, order = [0.0], []

    class Fake:
        def __init__(self, setting):
            self.setting, self.device = setting, torch.device("cpu")

        def step(self):
            order.append(self.setting.name)
            now[0] += 1 if self.setting.name == "erm" else 3

    def describe(training):
        name = training.setting.name
        return steps.StepFigures(name, 100 if name == "erm" else 171, 90, {"a:1": 2})

    monkeypatch.setattr(steps, "Training", Fake)
    monkeypatch.setattr(steps, "describe", describe)
    monkeypatch.setattr(steps, "clock", lambda device: now[0])
    effort = steps.Effort(pairs=2, steps=2, memory=False)
    erm, mbcd = steps.compare([Setting("x/erm.py"), Setting("x/mbcd.py")], effort)
    assert erm.ratios == [1, 1] and mbcd.ratios == [3, 3]
    assert mbcd.seconds == [3, 3] and mbcd.base_seconds == [1, 1]
    assert mbcd.flops_ratio == 1.71
    assert order[8:] == ["erm", "erm", "mbcd", "mbcd"] * 2
    found = mbcd.as_dict()
    assert found["time_ratio"] == 3 and found["waits"] == 2


def test_medians_and_ranges():
    figures = steps.StepFigures("x", 1, 1, {}, [2, 9, 4], [1, 3, 1])
    found = figures.as_dict()
    assert found["time_ratio"] == 3 and found["time_ratio_range"] == (2, 4)


def test_the_memory_of_a_process_of_its_own():
    """256 MiB more than another process are 256 MiB more."""
    small = steps.in_fresh_process(pool_work.resident_after, 1)
    large = steps.in_fresh_process(pool_work.resident_after, 257)
    assert large - small == pytest.approx(256, abs=8)


def test_a_profile_has_the_ten_largest():
    entries = steps.profile(setting("erm", modalities=2), steps=1)
    times = [entry["milliseconds"] for entry in entries]
    assert len(entries) == 10 and times == sorted(times, reverse=True)
    assert 0.3 < sum(entry["share"] for entry in entries) <= 1
    assert any("convolution" in entry["name"] for entry in entries)


def test_the_tool_measures_prints_and_writes(tmp_path, capsys):
    tool, path = load_tool("benchmark/step"), tmp_path / "numbers.json"
    small = "--batch 2 --pixels 16 --clip-length 2 --pairs 1 --steps 1 --no-memory"
    options = [*small.split(), "--device", "cpu", "--json", str(path)]
    assert tool.main(["ema", *options, "--vary", "modalities", "2"]) == 0
    content = json.loads(path.read_text())
    (table,) = content["results"]
    assert [row["name"] for row in table["methods"]] == ["erm", "ema"]
    assert table["methods"][1]["flops_ratio"] == pytest.approx(1, abs=1e-9)
    assert content["environment"].keys() >= {"date", "device", "torch", "command"}
    printed = capsys.readouterr().out
    assert "modalities 2" in printed and "ema" in printed


def test_a_change_is_measured_against_the_method_without_it(tmp_path):
    tool, path = load_tool("benchmark/step"), tmp_path / "numbers.json"
    small = "--batch 2 --pixels 16 --clip-length 2 --pairs 1 --steps 1 --no-memory"
    change = ["--change", "model.modalities=[audio]", "model.norm=None"]
    options = [*small.split(), "--device", "cpu", "--json", str(path), *change]
    assert tool.main(["erm", *options]) == 0
    (table,) = json.loads(path.read_text())["results"]
    plain, changed = table["methods"]
    assert plain["name"] == "erm"
    assert changed["name"] == "erm, modalities=['audio'], norm=None"
    ratio = changed["flops"] / plain["flops"]
    assert changed["flops_ratio"] == ratio and 0 < ratio < 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nothing"], "no config nothing: give a path, or one of cmrf, "),
        (["--vary", "depth", "2"], "--vary depth: can be one of modalities, "),
        (["--vary", "modalities", "1"], "numbers from 2 on"),
        (["--vary", "batch", "x"], "--vary batch takes numbers; got x"),
        (["--device", "cuda"], "torch finds no GPU here"),
        (["--amp", "bfloat16"], "--amp needs a GPU"),
    ],
)
def test_wrong_options(options, message, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as error:
        load_tool("benchmark/step").main(options)
    assert error.value.code == 2 and message in capsys.readouterr().err


def test_all_methods_and_no_ablations():
    names = [Path(path).stem for path in method_configs(CONFIGS, "paper")]
    methods = "erm cmrf ema gmp jat mbcd moosa nel rna_net simmmdg"
    assert names == methods.split()


def test_a_file_that_cannot_be_written(tmp_path):
    with pytest.raises(UsageError, match="--json: .*nowhere"):
        report.write_json(tmp_path / "nowhere" / "a.json", {})
