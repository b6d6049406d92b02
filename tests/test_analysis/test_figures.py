"""Curves' correlation, modality bars, run folders, and the files of a figure."""

import numpy as np
import pandas as pd
import pytest

from mmaction_mbcd.analysis.clips import chosen_clips
from mmaction_mbcd.analysis.curves import curve_correlation, draw_curves
from mmaction_mbcd.analysis.figures import colours, figure_style, plt, save_figure
from mmaction_mbcd.analysis.modality_bars import draw_modalities, measure_modalities
from mmaction_mbcd.analysis.run_folders import Run, epoch_of, parse_runs
from mmaction_mbcd.analysis.statistics import accuracy_interval
from mmaction_mbcd.errors import UsageError
from mmaction_mbcd.evaluation.predictions import Predictions


def test_correlation_of_curves_by_the_formulas():
    source = np.array([0.2, 0.5, 0.4, 0.9, 0.8])
    target = np.array([0.1, 0.3, 0.35, 0.5, 0.45])
    frame = pd.DataFrame({"source/top1": source, "target/top1": target})
    found = curve_correlation(frame)
    a, b = source - source.mean(), target - target.mean()
    pearson = (a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum())
    ranks = [0, 1, -1, 0, 0]  # differences of the ranks 1 3 2 5 4 and 1 2 3 5 4
    spearman = 1 - 6 * sum(d**2 for d in ranks) / (5 * 24)
    assert found == pytest.approx(dict(pearson=pearson, spearman=spearman, epochs=5))


@pytest.mark.parametrize(
    "target", [[0.5, 0.5, 0.5], [0.1, 0.2], None], ids=["constant", "short", "none"]
)
def test_correlation_that_does_not_exist(tmp_path, target):
    source = [0.1, 0.2, 0.3][: len(target or [1] * 3)]
    frame = pd.DataFrame({"source/top1": source})
    if target:
        frame["target/top1"] = target
    found = curve_correlation(frame)
    assert np.isnan(found["pearson"]) and np.isnan(found["spearman"])
    if target is None:  # a run that did not watch its target is drawn as well
        frame.index.name = "epoch"
        assert draw_curves({"A": frame}, ["video"], tmp_path / "c")[0].exists()


def predictions(modalities=("video", "audio")):
    """Four clips of classes 0 1 0 1; the last has no sound; the first is a source."""
    fused = np.array([[2, 1], [1, 2], [0, 3], [0, 3]], np.float32)
    audio = np.array([[0, 1], [0, 1], [1, 0], [np.nan] * 2], np.float32)
    video = np.array([[1, 0], [1, 0], [1, 0], [1, 0]], np.float32)
    heads = {"": fused, "video": video, "audio": audio, "student": fused[::-1]}
    present = {"video": np.ones(4, bool), "audio": np.array([1, 1, 1, 0], bool)}
    return Predictions(
        sample_ids=np.array(list("abcd")),
        domains=np.array(["s", "t", "t", "t"]),
        roles=np.array(["source", "target", "target", "target"]),
        labels=np.array([0, 1, 0, 1]),
        skipped=np.zeros(4, bool),
        present={m: present[m] for m in modalities},
        logits={k: v for k, v in heads.items() if k in ("", "student", *modalities)},
        classes=("x", "y"),
    )


def test_modalities_are_counted_where_they_are_present(tmp_path):
    frame = measure_modalities(predictions())
    found = {(r.role, r.head): (r.value, r.N) for r in frame.itertuples()}
    assert found == {
        ("source", "fused"): (1, 1),
        ("source", "video"): (1, 1),
        ("source", "audio"): (0, 1),
        ("target", "fused"): (pytest.approx(2 / 3), 3),
        ("target", "video"): (pytest.approx(1 / 3), 3),
        ("target", "audio"): (1, 2),  # the last clip has none
    }
    row = frame.set_index(["role", "head"]).loc["target", "fused"]
    assert (row["low"], row["high"]) == accuracy_interval(2 / 3, 3)
    alone = measure_modalities(predictions(("video",)))
    assert set(alone["head"]) == {"video"}  # its fused prediction
    assert alone.set_index("role").loc["target", "value"] == pytest.approx(2 / 3)
    both = pd.concat([frame.assign(run="joint"), alone.assign(run="video alone")])
    files = draw_modalities(both, tmp_path / "m")
    assert len(pd.read_csv(files[2])) == 8


def test_the_same_data_give_the_same_files(tmp_path):
    data = pd.DataFrame(dict(x=[1.0, 2.0]))
    for name in ("a", "b"):
        with figure_style():
            figure, ax = plt.subplots()
            ax.plot(data["x"])
            files = save_figure(figure, tmp_path / name / "gamma_0.5", data)
    assert [path.name for path in files] == [
        "gamma_0.5.png", "gamma_0.5.svg", "gamma_0.5.csv"
    ]  # fmt: skip
    for path in files:
        assert path.read_bytes() == (tmp_path / "a" / path.name).read_bytes()
    assert not plt.get_fignums()


@pytest.mark.parametrize("count", [3, 8, 12, 20])
def test_colours_differ(count):
    found = colours([str(i) for i in range(count)])
    assert len(set(found.values())) == count


def test_the_choice_of_clips_is_fixed():
    chosen = chosen_clips(1000, 50, seed=3)
    assert np.array_equal(chosen, chosen_clips(1000, 50, seed=3))
    assert len(set(chosen)) == 50 and (np.diff(chosen) > 0).all()
    assert chosen.max() > 900 > 100 > chosen.min()
    assert not np.array_equal(chosen, chosen_clips(1000, 50, seed=4))
    assert list(chosen_clips(3, None)) == list(chosen_clips(3, 7)) == [0, 1, 2]


@pytest.fixture
def folder(tmp_path):
    """What a run leaves, as far as names go."""
    run = tmp_path / "sketch@home"
    run.mkdir()
    for epoch in (1, 9, 10):
        (run / f"epoch_{epoch}.pth").write_text("")
    (run / "best_source_top1_epoch_9.pth").write_text("")
    return run


def test_runs_are_named_and_found(folder):
    run = Run.parse(f"M B=CD={folder}@student")
    assert (run.name, run.folder, run.weights) == ("M B=CD", folder, "student")
    plain = Run.parse(str(folder))
    assert (plain.name, plain.weights, plain.file) == ("sketch@home", None, None)
    one = Run.parse(f"{folder}/epoch_10.pth@teacher")
    assert one.name == "sketch@home epoch_10 teacher"
    assert one.checkpoint("best") == folder / "epoch_10.pth"
    assert plain.checkpoint("best").name == "best_source_top1_epoch_9.pth"
    assert plain.checkpoint("last").name.startswith("epoch_")
    epochs = [epoch_of(path) for path in plain.checkpoints()]
    assert epochs == [1, 9, 10]


def test_runs_that_cannot_be_shown(folder, tmp_path):
    with pytest.raises(UsageError, match="nowhere: no such run folder or checkpoint"):
        Run.parse(f"A={tmp_path}/nowhere")
    with pytest.raises(UsageError, match="several runs would be called 'sketch@home'"):
        parse_runs([str(folder), str(folder)])
    with pytest.raises(UsageError, match="holds 0 config files"):
        Run.parse(str(folder)).config()
    (folder / "best_source_top1_epoch_9.pth").unlink()
    with pytest.raises(UsageError, match=r"no best checkpoint \(best_source_top1"):
        Run.parse(str(folder)).checkpoint()
