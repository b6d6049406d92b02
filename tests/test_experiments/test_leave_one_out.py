"""Leave-one-domain-out: the plan, its arithmetic, and raw videos to a table."""

import json
import math
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from helpers.forked import run_script
from media import write_own
from mmaction_mbcd import cli
from mmaction_mbcd.experiments import leave_one_out
from mmaction_mbcd.experiments.leave_one_out import (
    Benchmark,
    compare,
    print_comparison,
    print_summary,
    run_benchmark,
    summarise,
)
from mmaction_mbcd.experiments.running import RunError, run_tool
from tests_support import load_tool

tool = load_tool("leave_one_domain_out")
QUIET = Console(file=open("/dev/null", "w"), width=100)  # noqa: SIM115


@pytest.fixture
def plan_of(tmp_path):
    def make(**kwargs):
        options = dict(
            repo=tmp_path,
            config=tmp_path / "mbcd.py",
            domains=("a", "b", "c"),
            out=tmp_path / "out",
        )
        return Benchmark(**options | kwargs)

    return make


@pytest.fixture
def tools(monkeypatch):
    """Stands in for train.py and test.py: each domain has its own accuracy."""
    calls = []
    correct = dict(a=9, b=12, c=15)

    def run(repo, command, title, log, console, threads=None):
        calls.append([str(x) for x in command])
        command = calls[-1]
        work_dir = Path(command[command.index("--work-dir") + 1])
        work_dir.mkdir(parents=True, exist_ok=True)
        if command[0] == "train.py":
            (work_dir / "best_source_top1_epoch_7.pth").touch()
            return
        out = Path(command[command.index("--out") + 1])
        seed = int(work_dir.name[-1])
        if "--sources" in command:
            source = command[command.index("--sources") + 1]
            metrics = {"target/N": 40, "target/top1": 0.5}
            for name in set(correct) - {source}:
                metrics |= {
                    f"target/{name}/N": 20, f"target/{name}/top1": correct[name] / 20
                }  # fmt: skip
        else:
            target = command[command.index("--target") + 1]
            metrics = {"target/N": 20, "target/top1": (correct[target] + seed) / 20}
        out.write_text(json.dumps(dict(metrics=metrics, epoch=7)))

    monkeypatch.setattr(leave_one_out, "run_tool", run)
    return calls


def test_every_domain_is_the_target_once(plan_of, tools):
    plan = plan_of(seeds=(0, 2), options=["--modalities", "video", "audio"])
    table = run_benchmark(plan, QUIET)
    assert list(zip(table["target"], table["seed"], strict=True)) == [
        (d, s) for d in "abc" for s in (0, 2)
    ]
    assert table["source"].tolist()[:2] == ["b, c"] * 2
    trained = [c for c in tools if c[0] == "train.py"]
    assert len(trained) == 6 and len(tools) == 12
    assert trained[1][2:] == [
        "--seed", "2", "--resume", "--target", "a", "--work-dir",
        f"{plan.out}/to-a_seed2", "--modalities", "video", "audio",
    ]  # fmt: skip
    best = f"{plan.out}/to-a_seed0/best_source_top1_epoch_7.pth"
    assert tools[1][:3] == ["test.py", str(plan.config), best]
    assert table["top1"].tolist() == pytest.approx([45, 55, 60, 70, 75, 85])
    assert pd.read_csv(plan.out / "results.csv")["N"].tolist() == [20] * 6


def test_the_summary_by_hand(plan_of, tools):
    table = run_benchmark(plan_of(seeds=(0, 2)), QUIET)
    rows = summarise(table).to_dict("records")
    assert [r["target"] for r in rows] == ["a", "b", "c", "average"]
    assert [r["top1"] for r in rows] == [50, 65, 80, 65]
    # Two values 10 apart: 10 / sqrt(2); the seeds' averages are 60 and 70.
    assert [r["std"] for r in rows] == pytest.approx([10 / math.sqrt(2)] * 4)
    # Wilson, 10 of 20, z = 1.96: (.5 + z^2/40 -+ z sqrt(.25/20 + z^2/1600))/(1+z^2/20)
    z = 1.959964
    half = z * math.sqrt(0.25 / 20 + z**2 / 1600) / (1 + z**2 / 20)
    assert rows[0]["low"] == pytest.approx(100 * (0.5 - half), abs=1e-3)
    assert rows[0]["high"] == pytest.approx(100 * (0.5 + half), abs=1e-3)
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_summary(plan_of(seeds=(0, 2)), table, console)
    text = console.export_text()
    assert "50.0" in text and "7.1" in text and "[29.9, 70.1]" in text


def test_a_comparison_of_configs(plan_of, tools):
    """One row per config, one column per target, the numbers of the summaries."""
    summary = summarise(run_benchmark(plan_of(seeds=(0, 2)), QUIET))
    better = summary.assign(top1=summary["top1"] + 5)
    table = compare(dict(ema=summary, mbcd=better))
    assert table["config"].tolist() == ["ema"] * 4 + ["mbcd"] * 4
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_comparison(table, "All", console)
    lines = console.export_text().splitlines()
    (ema,) = [line for line in lines if line.startswith("│ ema")]
    (mbcd,) = [line for line in lines if line.startswith("│ mbcd")]
    assert [cell.strip() for cell in ema.split("│")[2:-1]] == [
        "50.0 ± 7.1", "65.0 ± 7.1", "80.0 ± 7.1", "65.0 ± 7.1"
    ]  # fmt: skip
    assert "85.0 ± 7.1" in mbcd and "N = 20" in "".join(lines)


def test_single_source_tests_on_each_other_domain(plan_of, tools):
    table = run_benchmark(plan_of(single_source=True, chosen=("b",)), QUIET)
    assert len(tools) == 2 and ["--sources", "b"] == tools[0][5:7]
    pairs = zip(table["source"], table["target"], table["top1"], strict=True)
    assert list(pairs) == [("b", "a", 45.0), ("b", "c", 75.0)]


def test_finished_runs_are_kept(plan_of, tools):
    run_benchmark(plan_of(chosen=("a",)), QUIET)
    table = run_benchmark(plan_of(), QUIET)
    assert len([c for c in tools if c[0] == "train.py"]) == 3
    assert len(table) == 3


def test_other_options_are_not_mixed_in(plan_of, tools):
    run_benchmark(plan_of(chosen=("a",)), QUIET)
    with pytest.raises(
        ValueError, match=r"with other options \(\[\]\): choose another"
    ):
        run_benchmark(plan_of(options=["--modalities", "video"]), QUIET)


def test_a_folder_in_which_nothing_was_trained_is_free(plan_of, tools, monkeypatch):
    def fails(repo, command, title, log, console, threads=None):
        raise RunError("no training batch")

    with monkeypatch.context() as patch:
        patch.setattr(leave_one_out, "run_tool", fails)
        with pytest.raises(RunError):
            run_benchmark(plan_of(chosen=("a",)), QUIET)
    assert (plan_of().out / "options.json").exists()
    smaller = ["--cfg-options", "train_dataloader.batch_size=4"]
    run_benchmark(plan_of(chosen=("a",), options=smaller), QUIET)
    with pytest.raises(ValueError, match="with other options"):  # now it was
        run_benchmark(plan_of(chosen=("a",)), QUIET)


@pytest.mark.parametrize("keep_all", [False, True])
def test_what_stays_of_a_finished_run(plan_of, tools, monkeypatch, keep_all):
    run = leave_one_out.run_tool

    def trains(repo, command, title, log, console, threads=None):
        run(repo, command, title, log, console, threads)
        if command[0] == "train.py":
            for name in ("epoch_9.pth", "last_checkpoint"):
                (log.parent / name).touch()

    monkeypatch.setattr(leave_one_out, "run_tool", trains)
    made = plan_of(chosen=("a",), keep_all=keep_all)
    run_benchmark(made, QUIET)
    left = {path.name for path in (made.out / "to-a_seed0").iterdir()}
    needed = {"best_source_top1_epoch_7.pth", "results.json"}
    latest = {"epoch_9.pth", "last_checkpoint"} if keep_all else set()
    assert left == needed | latest


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(chosen=("z",)), "unknown domains \\['z'\\]; the dataset has"),
        (dict(domains=("a",)), "needs at least two"),
    ],
)
def test_plans_that_cannot_work(plan_of, kwargs, message):
    with pytest.raises(ValueError, match=message):
        plan_of(**kwargs).runs()


def test_a_failing_tool_shows_its_last_lines(tmp_path):
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "bad.py").write_text("print('so far'); raise SystemExit(3)")
    with pytest.raises(RunError, match="code 3(?s:.*)so far"):
        run_tool(tmp_path, ["bad.py"], "x", tmp_path / "bad.log", QUIET)


def test_command_line(tmp_path, repo, capsys):
    write = "".join(f"{i}.mp4,{'xy'[i % 2]},{'abc'[i % 3]}\n" for i in range(12))
    (tmp_path / "annotations.csv").write_text("file,label,domain\n" + write)
    config = str(repo / "configs" / "mbcd" / "own_videos" / "mbcd.py")
    root = ["--data-root", str(tmp_path)]
    args = tool.parse_args([config, *root, "--modalities", "video", "flow", "--amp"])
    made = tool.build_benchmark(args, config)
    assert made.domains == ("a", "b", "c")
    assert made.options == [*root, "--modalities", "video", "flow", "--amp"]
    assert str(made.out) == "work_dirs/own_videos/mbcd_video-flow_benchmark"
    assert tool.main([config, *root, "--dry-run", "--seeds", "0", "1"]) == 0
    assert "6 runs" in capsys.readouterr().out
    with pytest.raises(cli.UsageError, match="--target is set by this tool"):
        args = tool.parse_args([config, *root, "--target", "a"])
        tool.build_benchmark(args, config)
    both = [config, config.replace("mbcd.py", "small/mbcd.py")]
    assert tool.main([*both, *root, "--dry-run", "--seeds", "0", "1"]) == 0
    said = capsys.readouterr().out
    assert "work_dirs/own_videos/small/mbcd_benchmark" in said.replace("\n", "")
    with pytest.raises(SystemExit):
        tool.main([*both, *root, "--dry-run", "--out", str(tmp_path)])
    assert "several configs would write to" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        tool.main([config, *root, "--domains", "z"])


def test_several_configs_end_in_one_table(tmp_path, repo, tools, capsys):
    rows = [f"{d}{i}.mp4,{'xy'[i % 2]},{d}" for d in "abc" for i in range(20)]
    table = "\n".join(["file,label,domain", *rows])
    (tmp_path / "annotations.csv").write_text(table)
    folder = repo / "configs" / "mbcd" / "own_videos" / "small"
    configs = [str(folder / f"{m}.py") for m in ("erm", "mbcd")]
    out = tmp_path / "runs"
    code = tool.main([*configs, "--data-root", str(tmp_path), "--out", str(out)])
    assert code == 0 and len(tools) == 2 * 3 * 2
    both = pd.read_csv(out / "comparison.csv")
    assert both["config"].tolist() == ["erm"] * 4 + ["mbcd"] * 4
    assert both["top1"].tolist() == [45, 60, 75, 60] * 2  # the stand-in's
    assert (out / "mbcd" / "results.csv").exists()
    said = capsys.readouterr().out
    (row,) = [line for line in said.splitlines() if line.startswith("│ mbcd")]
    assert "75.0" in row


@pytest.mark.long
def test_three_commands_from_raw_videos_to_a_table(tmp_path, repo, capsys):
    """The three commands of docs/data.md, in processes of their own."""
    data = write_own(tmp_path / "data", clips=4)
    config = repo / "configs" / "mbcd" / "own_videos" / "small" / "mbcd.py"
    options = [
        "--cfg-options", "train_cfg.max_epochs=2", "train_cfg.val_interval=1",
        "train_dataloader.batch_size=4",
    ]  # fmt: skip
    for split in cli.SPLITS:
        options += [f"{split}_dataloader.num_workers=0"]
        options += [f"{split}_dataloader.persistent_workers=False"]

    def call(script, *args):
        done = run_script(repo / "tools" / script, *args, cwd=repo)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    alone = ("--workers", 1)
    call("data/extract_flow.py", data / "videos", data / "flow", "--method", "dis",
         *alone)  # fmt: skip
    call("data/extract_audio.py", data / "videos", data / "audio", *alone)
    out = tmp_path / "runs"
    benchmark = [
        config, "--data-root", data, "--out", out, "--domains", "studio", *options,
    ]  # fmt: skip

    def run():  # it starts processes itself
        assert tool.main([*map(str, benchmark)]) == 0
        return capsys.readouterr().out

    said = run()
    table = pd.read_csv(out / "results.csv")
    assert table["target"].tolist() == ["studio"] and table["N"].tolist() == [4]
    assert "Top-1 % on unseen domains" in said and "studio" in said
    assert (out / "to-studio_seed0" / "results.json").exists()
    assert "already there" in run()
