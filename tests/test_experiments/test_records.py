"""From the folders of runs to the rows of a table, and to its files."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_1samp

from helpers.grids import FakeGrid
from mmaction_mbcd.analysis.curves import read_curves
from mmaction_mbcd.analysis.run_folders import Run
from mmaction_mbcd.analysis.seed_curves import average_curves
from mmaction_mbcd.errors import UsageError
from mmaction_mbcd.evaluation import Predictions
from mmaction_mbcd.experiments import grid_figures
from mmaction_mbcd.experiments.run_folder import write_json
from mmaction_mbcd.experiments.tables import Place, read_records, summarise
from tests_support import load_tool

tool = load_tool("experiment")


def test_cells_are_what_the_files_say(tmp_path):
    experiment = FakeGrid(tmp_path, seeds=(0, 1, 2)).finished()
    records = read_records(experiment)
    ((block, methods),) = records.cells.items()
    assert block == ("synth_action", "video audio")
    assert list(methods) == ["erm", "mbcd"]
    assert (records.missing, records.notes) == ([], [])
    for method, places in methods.items():
        assert {p.target for p in places} == {"studio", "street"}
        for place, cell in places.items():
            assert cell.seeds == [0, 1, 2] and cell.wanted == 3
            for run in experiment.runs:
                if (run.spec.method, run.spec.target) == (method, (place.target,)):
                    said = Predictions.load(run.folder.predictions_file("source"))
                    own = cell.correct[cell.seeds.index(run.spec.seed)]
                    assert own.sum() == (said.predicted() == said.labels).sum()


def test_runs_that_are_not_there_are_named(tmp_path):
    grid = FakeGrid(tmp_path)
    experiment = grid.plan()
    for run in experiment.runs[1:]:
        grid.finish(run)
    grid.fail(experiment.runs[0], "train: out of memory")
    records = read_records(experiment)
    assert len(records.missing) == 1
    assert records.missing[0] == "synth_action erm to-studio, seed 0 (failed)"
    frame = summarise(records)
    cell = frame[(frame.method == "erm") & (frame.target == "studio")].iloc[0]
    assert (cell["seeds"], cell["wanted"]) == (1, 2)


def test_a_target_and_a_method_that_nobody_finished_leave_gaps(tmp_path):
    grid = FakeGrid(tmp_path, methods=dict(erm=0.5, ema=0.6, mbcd=0.7))
    experiment = grid.plan()
    for run in experiment.runs:
        if run.spec.target == ("studio",) and run.spec.method != "mbcd":
            grid.finish(run)
    frame = summarise(read_records(experiment), "erm")
    assert set(frame["method"]) == {"erm", "ema", "mbcd"}
    assert set(frame["target"]) == {"studio", "street", "average"}
    there = frame[frame["mean"].notna()]
    assert {(r.method, r.target) for r in there.itertuples()} == {
        ("erm", "studio"), ("ema", "studio")}  # fmt: skip
    # Nothing is called an average of both targets.
    assert frame.loc[frame["target"] == "average", "mean"].isna().all()


def test_nothing_is_there_yet(tmp_path):
    with pytest.raises(UsageError, match="no run of .* has predictions by rule"):
        read_records(FakeGrid(tmp_path).plan())


def test_a_rule_that_the_grid_has_not(tmp_path):
    experiment = FakeGrid(tmp_path).finished()
    with pytest.raises(UsageError, match="no rule 'oracle'; it has source, last"):
        read_records(experiment, "oracle")
    with pytest.raises(UsageError, match="no evaluation 'in_domain'; it has target"):
        read_records(experiment, "source", "in_domain")


def test_a_mixture_is_said(tmp_path):
    grid = FakeGrid(tmp_path)
    experiment = grid.plan()
    for i, run in enumerate(experiment.runs):
        versions = dict(torch="2.9.0" if i else "2.8.0")
        grid.finish(run, revision="aaaa" if i % 2 else "bbbb", versions=versions)
    notes = " ".join(read_records(experiment).notes)
    assert "several revisions of the code: aaaa, bbbb" in notes
    assert "several versions of torch: 2.8.0, 2.9.0" in notes


def test_seeds_that_saw_other_clips_are_no_cell(tmp_path):
    experiment = FakeGrid(tmp_path).finished()
    path = experiment.runs[1].folder.predictions_file("source")
    said = Predictions.load(path)
    said.select(np.arange(len(said) - 1)).save(path)
    with pytest.raises(ValueError, match="seed 1 was tested on other clips .N = 29."):
        read_records(experiment)


def test_a_clip_that_one_seed_could_not_read_counts_for_none(tmp_path):
    experiment = FakeGrid(tmp_path).finished()
    path = experiment.runs[0].folder.predictions_file("source")
    said = Predictions.load(path)
    said.skipped[3], said.labels[3] = True, -1
    for logits in said.logits.values():
        logits[3] = np.nan
    said.save(path)
    records = read_records(experiment)
    spec = experiment.runs[0].spec
    cells = next(iter(records.cells.values()))[spec.method]
    cell = next(c for p, c in cells.items() if p.target == spec.target[0])
    assert cell.correct.shape == (2, 29) and cell.skipped == 1
    assert "Up to 1 test clips of a cell could not be read" in " ".join(records.notes)


def test_heads_that_a_method_lacks_are_left_out(tmp_path):
    experiment = FakeGrid(tmp_path, student=("mbcd",)).finished()
    methods = next(iter(read_records(experiment, head="student").cells.values()))
    assert list(methods) == ["mbcd"]
    with pytest.raises(UsageError, match="and head 'smell'"):
        read_records(experiment, head="smell")


def test_in_domain_is_of_the_sources_together(tmp_path):
    grid = FakeGrid(tmp_path, evaluate=("target", "in_domain"))
    records = read_records(grid.finished(), evaluation="in_domain")
    methods = next(iter(records.cells.values()))
    assert set(methods["erm"]) == {Place("street", "studio"), Place("studio", "street")}


def test_the_verb_writes_files_and_shows_the_first(tmp_path, capsys):
    FakeGrid(tmp_path, reference="erm").finished()
    assert tool.main(["table", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "ERM" in shown and "above ERM" in shown
    files = {path.name for path in (tmp_path / "tables").iterdir()}
    stems = ("target_source", "target_last")
    assert files == {f"{s}{x}" for s in stems for x in (".md", ".tex", ".csv")}
    frame = pd.read_csv(tmp_path / "tables" / "target_source.csv")
    direct = summarise(read_records(tool.Experiment.open(tmp_path, tool.REPO)), "erm")
    np.testing.assert_allclose(frame["mean"], direct["mean"])
    np.testing.assert_allclose(frame["p_holm"], direct["p_holm"])
    assert (frame["rule"] == "source").all()


def test_some_methods_alone(tmp_path, capsys):
    names = dict(erm=0.5, ema=0.6, mbcd=0.7)
    FakeGrid(tmp_path, methods=names, reference="erm").finished()
    line = ["table", "--out", str(tmp_path), "--methods", "erm", "ema", "--rule"]
    assert tool.main([*line, "last"]) == 0
    assert "MBCD" not in capsys.readouterr().out
    assert tool.main([*line, "last", "--name", "table4.a"]) == 0
    files = {path.name for path in (tmp_path / "tables").glob("*.csv")}
    assert files == {"erm+ema_target_last.csv", "table4.a_target_last.csv"}
    experiment = tool.Experiment.open(tmp_path, tool.REPO)
    frame = pd.read_csv(tmp_path / "tables" / "erm+ema_target_last.csv")
    assert set(frame["method"]) == {"erm", "ema"}
    # A family of one comparison: Holm leaves the test's own p, and of two it does not.
    compared = frame.dropna(subset="p")
    assert len(compared) and (compared["p"] == compared["p_holm"]).all()
    whole = summarise(read_records(experiment, "last"), "erm").dropna(subset="p")
    assert (whole["p"] != whole["p_holm"]).any()
    assert len(tool.Experiment.open(tmp_path, tool.REPO).runs) == len(experiment.runs)
    with pytest.raises(SystemExit):
        tool.main(["table", "--out", str(tmp_path), "--methods", "gmp"])
    said = capsys.readouterr().err
    assert "no method gmp; it has erm, ema, mbcd" in said


@pytest.mark.parametrize(("seeds", "marked"), [((0,), False), ((0, 1, 2), True)])
def test_one_seed_marks_nothing(tmp_path, seeds, marked):
    # The clips leave no doubt, but who knows where another training ends.
    grid = FakeGrid(tmp_path, methods=dict(erm=0.2, ema=0.5, mbcd=0.95), seeds=seeds)
    frame = summarise(read_records(grid.finished()))
    assert frame["best"].any() and frame["second"].any()
    assert frame["best_supported"].any() == marked
    assert frame["second_supported"].any() == marked


def test_the_verb_without_results(tmp_path, capsys):
    FakeGrid(tmp_path).plan()
    with pytest.raises(SystemExit) as error:
        tool.main(["table", "--out", str(tmp_path)])
    assert error.value.code == 2
    assert "run it first" in capsys.readouterr().err


def test_one_table_that_cannot_be_made_leaves_the_others(tmp_path, capsys):
    experiment = FakeGrid(tmp_path, reference="erm").finished()
    for run in experiment.runs:
        run.folder.predictions_file("last").unlink()
    assert tool.main(["table", "--out", str(tmp_path)]) == 0
    assert "no table of target by last: no run of" in capsys.readouterr().out
    assert (tmp_path / "tables" / "target_source.md").is_file()


def test_a_reference_that_has_not_run_yet_is_said(tmp_path, capsys):
    grid = FakeGrid(tmp_path, reference="mbcd")
    experiment = grid.plan()
    for run in experiment.runs:
        if run.spec.method == "erm":
            grid.finish(run)
    assert tool.main(["table", "--out", str(tmp_path)]) == 0
    assert "no differences: the reference 'mbcd' has no" in capsys.readouterr().out


def test_a_data_set_of_which_nothing_has_run_yet(tmp_path, capsys):
    grid = FakeGrid(tmp_path, others=("hac",), reference="erm", names=dict(erm="E"))
    for run in grid.plan().runs:
        if run.spec.dataset == "synth_action":
            grid.finish(run)
    assert tool.main(["table", "--out", str(tmp_path)]) == 0
    assert "No run of it is finished yet." in capsys.readouterr().out
    text = (tmp_path / "tables" / "target_source.md").read_text()
    first, second = text.split("### hac")
    assert "Mean of 2 seeds" in first and "No run of it is finished yet." in second
    assert second.count("| missing |") >= 2 and "nan" not in second
    assert tool.main(["report", "--out", str(tmp_path)]) == 0


def test_figures_are_of_the_epochs_that_the_grid_chose(tmp_path, monkeypatch, capsys):
    """Whatever the rule; the checkpoint is the one that a finished run keeps."""
    grid = FakeGrid(tmp_path, rules=("last", "source"), targets=("studio",))
    experiment = grid.finished()
    for run in experiment.runs:
        (run.folder.path / "epoch_3.pth").touch()
        (run.folder.path / "best_source_top1_epoch_1.pth").touch()  # of a killed run
        chosen = run.folder.results("source") | dict(epoch=2)
        write_json(run.folder.results_file("source"), chosen)
    seen = []

    def make_figure(kind, runs, options):
        seen.append(runs)
        return [], None

    monkeypatch.setattr(grid_figures, "make_figure", make_figure)
    line = ["figures", "--out", str(tmp_path), "--kinds"]
    tool.main([*line, "shift"])
    folder = experiment.runs[0].folder.path
    (runs,) = seen
    assert runs[0] == Run("erm", folder, folder / "epoch_3.pth", None,
                          folder / "predictions_last.npz", 3)  # fmt: skip
    tool.main([*line, "modalities", "shift", "--rule", "source"])
    (_, runs) = seen  # no other epoch's weights stand in for what is gone
    assert runs[0] == Run("erm", folder, None, None,
                          folder / "predictions_source.npz", 2)  # fmt: skip
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "no shift of synth_action_to-studio_seed0_source: erm: the checkpoint of"
        in said
    )
    with pytest.raises(SystemExit):
        tool.main([*line, "modalities", "--rule", "oracle"])
    assert "does not select by 'oracle', but by last, source" in capsys.readouterr().err


def test_curves_over_seeds_are_students(tmp_path, capsys):
    grid = FakeGrid(tmp_path, seeds=(0, 1, 2), reference="erm", targets=("street",))
    experiment = grid.finished()
    line = ["figures", "--out", str(tmp_path), "--kinds", "seeds"]
    assert tool.main(line) == 0
    stem = tmp_path / "figures" / "synth_action_to-street_seeds"
    assert capsys.readouterr().out.count(str(stem)) == 3
    data = pd.read_csv(f"{stem}.csv").set_index(["method", "quantity", "epoch"])
    last = {
        (r.spec.method, r.spec.seed): read_curves(r.folder.path).iloc[-1]
        for r in experiment.runs
    }
    for role in ("source", "target"):
        values = [last["mbcd", seed][f"{role}/top1"] for seed in (0, 1, 2)]
        found = data.loc[("mbcd", role, 3)]
        expected = ttest_1samp(values, 0).confidence_interval(0.95)
        assert found["mean"] == pytest.approx(np.mean(values))
        assert tuple(found[["low", "high"]]) == pytest.approx(tuple(expected))
        assert found["seeds"] == 3 and found["N"] == (90 if role == "source" else 30)
    pairs = [last["mbcd", s]["target/top1"] - last["erm", s]["target/top1"]
             for s in (0, 1, 2)]  # fmt: skip
    found = data.loc[("mbcd", "difference", 3)]
    expected = ttest_1samp(pairs, 0).confidence_interval(0.95)
    assert tuple(found[["low", "high"]]) == pytest.approx(tuple(expected))
    assert ("erm", "difference", 3) not in data.index


def test_curves_of_seeds_that_differ():
    """In length, in whether the target was watched, and in what they counted."""

    def frame(source, target=None, count=None):
        found = pd.DataFrame({"source/top1": source}, index=range(2, 2 + len(source)))
        found["source/N"] = count or [10.0] * len(source)
        if target is not None:
            found["target/top1"] = target
        return found

    curves = dict(
        a={0: frame([0.1, 0.3], [0.2, 0.4]), 1: frame([0.3], [0.4])},
        b={0: frame([0.5, 0.5], count=[7.0, np.nan])},
    )
    data = average_curves(curves, "b").set_index(["method", "quantity", "epoch"])
    assert data.loc[("a", "source")][["seeds", "mean"]].to_numpy().tolist() == [
        [2, pytest.approx(0.2)], [1, pytest.approx(0.3)]]  # fmt: skip
    assert data.loc[("b", "source", 2), "N"] == 7
    assert set(data.index.get_level_values("quantity")) == {"source", "target"}
    assert np.isnan(data.loc[("a", "target", 3), "low"])
    # Student's interval of 0.1 and 0.3 is wider than accuracies can be.
    assert tuple(data.loc[("a", "source", 2), ["low", "high"]]) == (0, 1)


def test_one_seed_has_curves_without_a_band(tmp_path):
    FakeGrid(tmp_path, seeds=(0,), targets=("street",)).finished()
    line = ["figures", "--out", str(tmp_path), "--kinds", "seeds"]
    assert tool.main(line) == 0
    stem = tmp_path / "figures" / "synth_action_to-street_seeds"
    data = pd.read_csv(f"{stem}.csv")
    assert data["low"].isna().all() and set(data["quantity"]) == {"source", "target"}


def test_figures_of_a_grid_without_the_source_rule(tmp_path, capsys):
    FakeGrid(tmp_path, rules=("last",), targets=("studio",)).finished()
    line = ["figures", "--out", str(tmp_path), "--kinds", "modalities"]
    assert tool.main(line) == 0, capsys.readouterr().out


def test_figures_of_each_target(tmp_path, capsys):
    FakeGrid(tmp_path).finished()
    line = ["figures", "--out", str(tmp_path), "--kinds", "modalities"]
    code = tool.main(line)
    shown = capsys.readouterr().out
    assert code == 0, shown
    files = {path.name for path in (tmp_path / "figures").iterdir()}
    stems = {f"synth_action_to-{t}_seed0_modalities" for t in ("studio", "street")}
    assert files == {f"{s}{x}" for s in stems for x in (".png", ".svg", ".csv")}, shown
    frame = pd.read_csv(tmp_path / "figures" / f"{min(stems)}.csv")
    assert set(frame["run"]) == {"erm", "mbcd"}
    assert tool.main([*line, "--methods", "mbcd"]) == 0
    frame = pd.read_csv(tmp_path / "figures" / f"{min(stems)}.csv")
    assert set(frame["run"]) == {"mbcd"}
