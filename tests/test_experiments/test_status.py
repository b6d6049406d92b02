"""How far a grid is: counts, forecasts and tables."""

import io
import time

import pytest
from rich.console import Console

from mmaction_mbcd.errors import UsageError
from mmaction_mbcd.experiments import run_folder, status
from mmaction_mbcd.experiments.experiment import Experiment
from mmaction_mbcd.experiments.grid import Grid
from mmaction_mbcd.experiments.run_folder import write_json
from tests_support import ROOT, load_tool

tool = load_tool("experiment")
STATES = ("finished", "finished", "running", "failed", "interrupted", "waiting")


@pytest.fixture
def experiment(tmp_path):
    """Two methods with three seeds each; nothing has happened to them."""
    grid = Grid.of(
        dict(
            datasets=["hac"],
            methods=["erm", "mbcd"],
            targets=["human"],
            seeds=[0, 1, 2],
        )
    )
    made = Experiment(grid, tmp_path / "out", ROOT)
    specs = grid.specs(ROOT / "configs" / "mbcd")
    made.runs = [made._planned(spec, f"{i:08}") for i, spec in enumerate(specs)]
    for run in made.runs:
        run.folder.record(dict(spec=run.spec.describe()))
    made.write()
    return made


def finish(run, **seconds):
    run.folder.note(state="finished", seconds=seconds)


def shown(found, width=120):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(found)
    return console.export_text()


@pytest.fixture
def mixed(experiment):
    """One run in every state; yields while one is being worked on."""
    runs = experiment.runs
    finish(runs[0], train=50, test_source=10)
    finish(runs[1], train=100, test_source=20)
    runs[3].folder.note(state="failed", error="train: KeyError: [/a] [0, 1] (exit ..)")
    runs[4].folder.note(state="interrupted", phase="train")
    with runs[2].folder.held():
        runs[2].folder.note(state="running", phase="train", started=time.time() - 30)
        yield experiment


def test_counts_and_headline(mixed):
    assert status.counts(mixed.runs) == dict(
        finished=2, running=1, failed=1, interrupted=1, waiting=1
    )
    # erm's took 60 and 120 s, 90 on average: 60 are left of the running one; mbcd has
    # none that is finished, so both of its wait for 90; the failed one for nothing.
    assert status.forecast(mixed.runs) == pytest.approx(60 + 90 + 90, abs=2)
    assert status.headline(mixed.runs) == (
        "6 runs: 2 finished, 1 running, 1 failed, 1 interrupted, 1 waiting; "
        "about 4 min left"
    )


def test_forecast_arithmetic(experiment):
    runs = experiment.runs
    assert status.forecast(runs) is None  # nothing is known
    assert status.headline(experiment.runs) == "6 runs: 6 waiting"
    finish(runs[0], train=100)
    finish(runs[3], train=300, test_last=100)
    # Two of erm at 100 s, two of mbcd at 400 s, one at a time.
    assert status.forecast(runs) == 2 * 100 + 2 * 400
    with runs[1].folder.held(), runs[4].folder.held():
        for run in (runs[1], runs[4]):
            run.folder.note(state="running", started=time.time() - 150)
        # Two at a time; erm's is late: 0 + 100 and 250 + 400 s.
        assert status.forecast(runs) == pytest.approx(750 / 2, abs=1)
    for run in runs:
        finish(run, train=1)
    assert status.forecast(runs) is None
    assert status.headline(experiment.runs) == "6 runs: 6 finished"


@pytest.mark.parametrize(
    ("progress", "left"),
    [
        ({}, None),
        (dict(phase="train", done=10, total=40, first=0, seconds=20), 60),
        # Resumed at step 30: four steps took 8 s, six are left.
        (dict(phase="train", done=34, total=40, first=30, seconds=8), 12),
        (dict(phase="train", done=30, total=40, first=30, seconds=0), None),
        (dict(phase="validation", done=3, total=4, first=1, seconds=9, epoch=2), None),
        (dict(phase="test", done=4, total=4, first=1, seconds=3), 0),
        (dict(phase="train", done=4, total=8), None),  # of an older version
    ],
)  # fmt: skip
def test_seconds_left(experiment, progress, left):
    run = experiment.runs[0]
    write_json(run.folder.path / "progress.json", progress)
    assert status.seconds_left(run) == (None if left is None else pytest.approx(left))


@pytest.mark.parametrize(
    ("progress", "said"),
    [
        ({}, "train"),
        (dict(phase="train", epoch=3, epochs=20), "train, epoch 3/20"),
        (dict(phase="validation", epoch=3, epochs=20), "train, validating epoch 3"),
        (dict(phase="test", done=1, total=2), "train"),
    ],
)
def test_where_it_is(experiment, progress, said):
    run = experiment.runs[0]
    run.folder.note(phase="train")
    write_json(run.folder.path / "progress.json", progress)
    assert status.at(run) == said


def test_table(mixed):
    progress = dict(
        phase="train", done=5, total=10, first=0, seconds=50, epoch=1, epochs=2
    )
    write_json(mixed.runs[2].folder.path / "progress.json", progress)
    text = shown(status.table(mixed))
    rows = [line for line in text.splitlines() if "seed" in line]
    assert len(rows) == 3
    assert "hac erm to-human, seed 2" in rows[0]
    assert "train, epoch 1/2" in rows[0] and "50 s" in rows[0]
    # Brackets of an error are no markup.
    assert "failed" in rows[1] and "train: KeyError: [/a] [0, 1]" in rows[1]
    assert "interrupted" in rows[2]
    text = shown(status.table(mixed, every=True))
    rows = [line for line in text.splitlines() if "seed" in line]
    assert [next(s for s in (*STATES,) if s in row) for row in rows] == list(STATES)
    assert "60 s" in rows[0] and "2 min" in rows[1]


def test_titles(experiment):
    grid = Grid.of(
        dict(
            datasets=["hac"], methods=["mbcd"], targets=["human"],
            modalities=[["video", "audio"]], variants={"slow": {}},
            select=["leave_one_source_out"],
        )
    )  # fmt: skip
    made = Experiment(grid, experiment.out, ROOT)
    runs = [made._planned(s, "d" * 8) for s in grid.specs(ROOT / "configs" / "mbcd")]
    assert [status.title(run) for run in runs] == [
        "hac mbcd+slow video-audio cartoon-to-animal (leave_one_source_out), seed 0",
        "hac mbcd+slow video-audio animal-to-cartoon (leave_one_source_out), seed 0",
        "hac mbcd+slow video-audio to-human, seed 0",
    ]


def test_reports_as_lines(mixed):
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    watch = status.Watch(mixed, console)
    with watch:
        watch.report(mixed.runs[2], "started", "")
        watch.report(mixed.runs[3], "failed", "train: [/b] no")
        watch.report(mixed.runs[0], "finished", "")
    lines = console.export_text().splitlines()
    assert lines[0].endswith("  started     hac erm to-human, seed 2")
    assert lines[1].endswith("  failed      hac mbcd to-human, seed 0")
    assert lines[2] == "          train: [/b] no"
    assert lines[3].endswith("hac erm to-human, seed 0  (2 of 6, about 4 min left)")


# --- the verb


def verb(capsys, *argv):
    code = tool.main([str(each) for each in argv])
    return code, capsys.readouterr().out


def test_the_verb(mixed, capsys):
    code, text = verb(capsys, "status", "--out", mixed.out, "--all")
    assert code == 0 and text.startswith("6 runs: 2 finished, 1 running, 1 failed")
    assert text.count("seed") == 6 and "not of this grid" not in text


def test_a_terminal_is_shown_what_changes_until_all_has_ended(experiment, monkeypatch):
    """``status --watch``: the same place of the screen, again and again."""
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100, color_system=None)
    looks = []

    def sleep(seconds):
        looks.append(seconds)
        for run in experiment.runs[: 2 * len(looks)]:
            finish(run, train=60)

    monkeypatch.setattr(tool.time, "sleep", sleep)
    args = tool.parse_args(["status", "--watch", "--out", str(experiment.out)])
    assert tool.show(args, console) == 0
    assert len(looks) == 3  # six runs, two of which end between any two looks
    text = screen.getvalue()
    assert "6 runs: 6 waiting" in text and "6 runs: 6 finished" in text
    assert "\x1b[" in text  # the cursor goes up, and writes over it


def test_strangers_are_said(experiment, capsys):
    (experiment.out / "runs" / "hac" / "old[1]_deadbeef").mkdir()
    (experiment.out / "runs" / "notes.txt").touch()
    assert [p.name for p in experiment.strangers()] == ["old[1]_deadbeef"]
    _, text = verb(capsys, "status", "--out", experiment.out)
    text = " ".join(text.split())
    assert "1 folder of runs is not of this grid" in text and "old[1]_deadbeef" in text


@pytest.mark.parametrize("damage", ["nothing", "no list", "no grid", "cut grid"])
def test_a_folder_without_an_experiment(experiment, capsys, damage, tmp_path):
    out = experiment.out
    if damage == "nothing":
        out = tmp_path
    elif damage == "no list":
        (out / "runs.json").write_text('{"runs": [')
    elif damage == "no grid":
        (out / "grid.yaml").unlink()
    else:
        (out / "grid.yaml").write_text("")
    with pytest.raises(SystemExit) as end:
        verb(capsys, "status", "--out", out)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "error: " in line and str(out) in line
    expected = "holds NoneType" if damage == "cut grid" else "holds no experiment"
    assert expected in line


def test_an_experiment_is_found_again(experiment):
    found = Experiment.open(experiment.out, ROOT)
    assert [r.spec for r in found.runs] == [r.spec for r in experiment.runs]
    assert [r.folder for r in found.runs] == [r.folder for r in experiment.runs]
    assert found.grid.seeds == [0, 1, 2]
    with pytest.raises(UsageError, match="plan or run a grid there first"):
        Experiment.open(experiment.out / "runs", ROOT)


def test_a_run_says_what_cannot_be(capsys, tmp_path):
    for argv, message in (
        (["run", "--out", tmp_path, "--methods", "erm"], "datasets names none"),
        (["run", tmp_path / "none.yaml", "--out", tmp_path], "grid file not found"),
        (["resume", "--out", tmp_path], "holds no experiment"),
    ):
        with pytest.raises(SystemExit) as end:
            verb(capsys, *argv)
        assert end.value.code == 2
        assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_table_reads_each_file_once(mixed, monkeypatch):
    read, names = run_folder.read_json, []

    def counted(path):
        names.append(path.parent.name + "/" + path.name)
        return read(path)

    monkeypatch.setattr(run_folder, "read_json", counted)
    first = shown(status.table(mixed, every=True))
    assert (
        len(names) == len(set(names)) == 6 + 5
    )  # how far it is matters not of the failed one
    names.clear()
    assert shown(status.table(mixed, every=True)) == first
    assert len(names) == 4 + 3  # the two that are finished stay so


def test_a_glance_is_of_one_moment(mixed):
    run = mixed.runs[2]
    glance = run.folder.glance()
    assert (glance.state, glance.noted["phase"]) == ("running", "train")
    run.folder.note(state="failed", phase="test")
    assert (glance.state, glance.noted["phase"]) == ("running", "train")
    assert run.folder.glance().state == run.folder.state == "failed"
    # Noted as running, and held by nobody: interrupted, as the folder itself says.
    mixed.runs[4].folder.note(state="running")
    assert mixed.runs[4].folder.glance().state == "interrupted"
