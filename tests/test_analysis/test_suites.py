"""Evaluation beyond accuracy: from files and a checkpoint to tables."""

import copy
import json
import resource
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from mmaction.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from scipy import stats
from sklearn.metrics import accuracy_score

from helpers.forked import run_script
from method_toys import SYNTHETIC
from mmaction_mbcd.analysis.subsets import predict_subsets
from mmaction_mbcd.analysis.suites import (
    Accuracy,
    Corruptions,
    MissingModality,
    ModalityShift,
    Subject,
    accuracy,
    base,
    calibration,
    corruptions,
    detection,
    missing,
    ood,
    readings,
    shift,
)
from mmaction_mbcd.analysis.trained import TrainedModel
from mmaction_mbcd.errors import DivergenceError, UsageError
from mmaction_mbcd.evaluation import DomainAccuracy
from mmaction_mbcd.evaluation.predictions import Predictions
from tests_support import ROOT, load_tool

CONFIG = "configs/mbcd/synth_action/mbcd.py"
CLASSES = ["swing", "bounce", "circle", "pulse", "spin", "zigzag"]
NAMES = ("video", "audio", "flow")


def read_config(data, config=CONFIG, **dataset):
    cfg = Config.fromfile(ROOT / config)
    for split in ("train", "val", "test"):
        cfg[f"{split}_dataloader"].update(num_workers=0, batch_size=6)
        cfg[f"{split}_dataloader"].dataset.update(data_root=str(data), **dataset)
    return cfg


def save_checkpoint(cfg, path, seed=0, **experiment):
    """Random weights whose predictions are of many classes, as a run saves them."""
    init_default_scope("mmaction")
    torch.manual_seed(seed)
    model = MODELS.build(cfg.model)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "head" in name:
                value.copy_(torch.randn_like(value))
    facts = dict(
        method=cfg.method.name,
        dataset="SynthActionDataset",
        sources=["studio", "street"],
        target=["sketch"],
        modalities=list(NAMES),
        classes=CLASSES,
        held_out_classes=[],
    )
    meta = dict(seed=seed, epoch=3, iter=30, experiment=facts | experiment)
    saved = dict(state_dict=model.state_dict(), meta=meta)
    if any(hook.type == "TeacherEMAHook" for hook in cfg.get("custom_hooks") or []):
        saved["ema_state_dict"] = {
            f"module.{name}": value for name, value in saved["state_dict"].items()
        }
    torch.save(saved, path)
    return path


@pytest.fixture(scope="module")
def checkpoint(tiny_data, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "epoch_3.pth"
    return save_checkpoint(read_config(tiny_data), path)


@pytest.fixture(scope="module")
def trained(tiny_data, checkpoint):
    return TrainedModel.load(read_config(tiny_data), str(checkpoint))


@pytest.fixture(scope="module")
def subject(trained):
    return Subject(trained)


def test_data_workers_of_an_evaluation(tiny_data, checkpoint):
    """As those of a training: OpenCV has one thread, and batches find files enough."""
    kept, threads = resource.getrlimit(resource.RLIMIT_NOFILE), cv2.getNumThreads()
    cv2.setNumThreads(3)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, kept[1]))
    try:
        TrainedModel.load(read_config(tiny_data), str(checkpoint))
        assert cv2.getNumThreads() == 1
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(4096, kept[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, kept)
        cv2.setNumThreads(threads)


class Held:
    """A loader whose batches have been read once."""

    def __init__(self, loader):
        self.dataset, self.batches = loader.dataset, list(loader)

    def __iter__(self):
        return iter(copy.deepcopy(self.batches))


@pytest.fixture(scope="module")
def held(trained):
    return Held(trained.loader())


@pytest.fixture(scope="module")
def clean(trained, held):
    return trained.predict(held)


@pytest.fixture(scope="module")
def tool():
    return load_tool("evaluate")


def options(data, checkpoint, out, *suites):
    return [
        *(str(ROOT / CONFIG), str(checkpoint), "--data-root", str(data)),
        *("--out", str(out), "--suites", *suites),
        *("--cfg-options", "test_dataloader.num_workers=0"),
    ]


def hand_made(labels, fused, video=None, domains=None, present=None, classes=2):
    """Predictions whose heads give these classes; None says nothing."""

    def logits(chosen):
        rows = [np.full(classes, np.nan) if c is None else np.eye(classes)[c] * 4
                for c in chosen]  # fmt: skip
        return np.array(rows, np.float32)

    heads = {"": logits(fused)} | ({} if video is None else {"video": logits(video)})
    count = len(labels)
    return Predictions(
        sample_ids=np.array([f"clip{i}" for i in range(count)]),
        domains=np.array(domains or ["d"] * count),
        roles=np.array(["target"] * count),
        labels=np.array(labels),
        skipped=np.array([label < 0 for label in labels]),
        present={"video": np.array(present or [True] * count)},
        logits=heads,
        classes=tuple("ab"[:classes]),
    )


# --------------------------------------------------------------- missing modality


class TestSubsets:
    def test_masking_equals_zeroing_the_embedding(self, trained, held, monkeypatch):
        """The published protocol: encoders see the input, what is fused is zero."""
        subsets = {"+".join(s): s for s in missing.subsets_of(NAMES)}
        found = predict_subsets(trained, held, subsets)
        fuse = trained.model.neck.forward
        for name, kept in subsets.items():
            monkeypatch.setattr(
                trained.model.neck,
                "forward",
                lambda features, *rest, kept=kept: fuse(
                    {m: x if m in kept else 0 * x for m, x in features.items()}, *rest
                ),
            )
            by_hand = trained.predict(held)
            np.testing.assert_array_equal(found[name].logits[""], by_hand.logits[""])
            for m in NAMES:
                assert (found[name].known(m) == (m in kept)).all()
        assert len({each.logits[""].tobytes() for each in found.values()}) == 7

    def test_all_modalities_are_what_a_test_says(self, trained, held, clean):
        counted = []
        found = predict_subsets(trained, held, {"all": NAMES}, counted.append)["all"]
        assert counted == [6, 6, 6]
        assert list(found.logits) == list(clean.logits) == ["", *NAMES]
        for head in clean.logits:
            np.testing.assert_array_equal(found.logits[head], clean.logits[head])

    def test_a_model_that_diverged_is_named(
        self, tiny_data, checkpoint, held, tmp_path
    ):
        content = torch.load(checkpoint)
        name = next(n for n in content["state_dict"] if n.startswith("fused_head"))
        content["state_dict"][name][:] = float("nan")
        torch.save(content, tmp_path / "nan.pth")
        bad = TrainedModel.load(read_config(tiny_data), str(tmp_path / "nan.pth"))
        with pytest.raises(DivergenceError, match="fused predictions of .*nan.pth"):
            predict_subsets(bad, held, {"all": NAMES})

    def test_subsets(self):
        assert missing.subsets_of("va") == [("v", "a"), ("v",), ("a",)]
        assert len(missing.subsets_of("abcde")) == 31

    def test_clips_without_any_kept_modality_count_and_are_said(self):
        whole = hand_made([0, 1, 1, -1], [0, 1, 1, None])
        part = hand_made([0, 1, 1, -1], [0, 1, 0, None], present=[1, 1, 0, 0])
        (row, _) = missing.measure_missing({("video",): part}, whole).to_dict("records")
        assert row["N"] == 3 and row["without"] == 1
        assert row["top1"] == pytest.approx(2 / 3)
        assert row["difference"] == pytest.approx(-1 / 3)


# ------------------------------------------------------------------------ numbers


def test_accuracies_are_those_of_domain_accuracy(trained, held, clean):
    metric = DomainAccuracy()
    for inputs, batch in trained.batches(held):
        done = [s.to_dict() for s in trained.model.predict(inputs, batch)]
        metric.process({}, done)
    expected = metric.evaluate(18)
    data = accuracy.measure_accuracy(clean).set_index(["head", "domain", "class"])
    for head, name in (("fused", "target"), *((m, f"target/{m}") for m in NAMES)):
        row = data.loc[(head, "all", "all")]
        assert row["top1"] == pytest.approx(expected[f"{name}/top1"]) and row["N"] == 18
    fused = data.loc[("fused", "sketch", "all")]
    assert fused["mean_class"] == pytest.approx(expected["target/mean_class"])
    assert 0 < expected["target/top1"] < 1  # or the above would show little
    for index, name in enumerate(CLASSES):
        own = clean.labels == index
        right = accuracy_score(clean.labels[own], clean.predicted()[own])
        assert data.loc[("fused", "all", name), "top1"] == pytest.approx(right)


def test_accuracy_by_hand():
    """Two domains; one clip skipped, one without video."""
    predictions = hand_made(
        [0, 0, 1, 1, -1],
        [0, 1, 1, 1, None],
        video=[0, None, 0, 1, None],
        domains=["x", "x", "x", "y", "y"],
    )
    data = accuracy.measure_accuracy(predictions).set_index(["head", "domain", "class"])
    assert data.loc[("fused", "all", "all"), ["N", "top1"]].tolist() == [4, 0.75]
    assert data.loc[("fused", "x", "all"), "top1"] == pytest.approx(2 / 3)
    assert data.loc[("fused", "x", "all"), "mean_class"] == pytest.approx(0.75)
    assert data.loc[("video", "all", "all"), "N"] == 3
    assert data.loc[("video", "all", "b"), ["N", "top1"]].tolist() == [2, 0.5]
    assert data.loc[("fused", "y", "a"), "N"] == 0
    assert np.isnan(data.loc[("fused", "y", "a"), "top1"])
    # Wilson: (p + z^2/2n -+ z sqrt(p q/n + z^2/4n^2)) / (1 + z^2/n) at 3 of 4.
    low, high = data.loc[("fused", "all", "all"), ["low", "high"]]
    assert (low, high) == pytest.approx((0.30064, 0.95441), abs=1e-4)


def test_confusion_by_counting(clean):
    data = accuracy.measure_confusion(clean)
    for head in clean.logits:
        counted = np.zeros((6, 6), int)
        for label, predicted in zip(clean.labels, clean.predicted(head), strict=True):
            counted[label, predicted] += 1
        matrix = accuracy.matrix_of(data, base.title_of(head), "count")
        assert list(matrix.index) == list(matrix.columns) == CLASSES
        assert matrix.to_numpy().tolist() == counted.tolist()
        shares = accuracy.matrix_of(data, base.title_of(head), "share").to_numpy()
        np.testing.assert_allclose(shares, counted / 3)


def test_a_class_without_clips_has_no_shares():
    data = accuracy.measure_confusion(hand_made([0, 0], [0, 1]))
    assert data.loc[data["label"] == "a", "share"].tolist() == [0.5, 0.5]
    assert data.loc[data["label"] == "b", "share"].isna().all()


def test_difference_is_the_paired_one():
    rng = np.random.default_rng(0)
    own, other = rng.random(80) < 0.6, rng.random(80) < 0.5
    found = base.difference_to(own, other, np.arange(80))
    expected = stats.ttest_rel(own.astype(float), other.astype(float))
    interval = expected.confidence_interval(0.95)
    assert found["difference"] == pytest.approx(own.mean() - other.mean())
    assert found["difference_low"] == pytest.approx(interval.low)
    assert found["difference_high"] == pytest.approx(interval.high)
    # A clip that counts twice is one clip: the interval is as wide as of one.
    twice = base.difference_to(
        np.repeat(own, 2), np.repeat(other, 2), np.repeat(np.arange(80), 2)
    )
    assert twice["difference_low"] == pytest.approx(interval.low, abs=2e-3)


def test_auroc_interval_by_pairs():
    """DeLong's variance from all pairs, with ties; and that it covers."""
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(0, 9, 60) / 9.0, rng.random(60) < 0.6
    scores[positive] += 0.2
    x, y = scores[positive], scores[~positive]
    wins = (x[:, None] > y) + 0.5 * (x[:, None] == y)
    variance = wins.mean(1).var(ddof=1) / len(x) + wins.mean(0).var(ddof=1) / len(y)
    low, high = detection.auroc_interval(scores, positive)
    assert low == pytest.approx(wins.mean() - 1.959964 * variance**0.5)
    assert high == pytest.approx(wins.mean() + 1.959964 * variance**0.5)
    inside, truth = 0, stats.norm.cdf(1 / 2**0.5)  # of N(1, 1) against N(0, 1)
    kind = np.arange(160) < 80
    for _ in range(1000):
        low, high = detection.auroc_interval(rng.normal(size=160) + kind, kind)
        inside += low < truth < high
    assert 930 <= inside <= 970


def test_calibration_of_hand_made_predictions():
    p = hand_made([0, 0, 1, -1], [0, 1, 1, None])
    sure = 1 / (1 + np.exp(-4))
    row = calibration.measure_calibration(p).iloc[0]
    assert row["N"] == 3 and row["accuracy"] == pytest.approx(2 / 3)
    assert row["ece"] == row["ece_mass"] == pytest.approx(sure - 2 / 3)
    losses = -np.log([sure, 1 - sure, sure])
    assert row["nll"] == pytest.approx(losses.mean(), rel=1e-6)
    half = 4.302653 * losses.std(ddof=1) / 3**0.5  # Student's t of two degrees
    assert row["nll_low"] == pytest.approx(losses.mean() - half, rel=1e-5)
    squares = 2 * np.array([1 - sure, sure, 1 - sure]) ** 2
    assert row["brier"] == pytest.approx(squares.mean(), rel=1e-6)
    half = 4.302653 * squares.std(ddof=1) / 3**0.5
    assert row["brier_high"] == pytest.approx(squares.mean() + half, rel=1e-5)


def test_corruptions_by_hand():
    whole = hand_made([0, 0, 1, 1], [0, 0, 1, 0], video=[0, 1, 1, None])
    variants = {
        ("video", "fog", 1): hand_made([0, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, None]),
        ("video", "fog", 5): hand_made([0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 0, None]),
    }
    data = corruptions.measure_corruptions(variants, whole)
    fused = data[data["head"] == "fused"]
    assert fused["top1"].tolist() == [0.5, 0] and set(fused["clean"]) == {0.75}
    assert fused["difference"].tolist() == [-0.25, -0.75]
    summary = corruptions.summarise_corruptions(data).set_index("head")
    assert summary.loc["fused", "mean_corruption"] == 0.25
    assert summary.loc["fused", "relative_drop"] == pytest.approx(0.5 / 0.75)
    # Three clips have video; two of them are right in clean data.
    assert summary.loc["video", "N"] == 3
    assert summary.loc["video", "clean"] == pytest.approx(2 / 3)
    assert summary.loc["video", "mean_corruption"] == pytest.approx(1 / 6)


def test_shift_starts_from_the_clean_data():
    whole, noisy = hand_made([0, 1], [0, 1]), hand_made([0, 1], [0, 0])
    data = shift.measure_shift({("video", 2.0): noisy, ("video", 0.5): whole}, whole)
    assert data[["level", "top1"]].to_numpy().tolist() == [[0, 1], [0.5, 1], [2, 0.5]]


def test_ood_by_counting_pairs(clean):
    inside, outside = clean.select(np.arange(10)), clean.select(np.arange(10, 18))
    data = ood.measure_ood(inside, {"other": outside})
    row = data[(data["head"] == "audio") & (data["score"] == "msp")].iloc[0]
    a, b = (p.probabilities("audio").max(1) for p in (inside, outside))
    pairs = [(x > y) + 0.5 * (x == y) for x in a for y in b]
    assert row["auroc"] == pytest.approx(np.mean(pairs))
    assert (row["N_inside"], row["N_outside"]) == (10, 8)
    # 95 % of ten are all ten: what is accepted is above the least of them.
    assert row["fpr95"] == pytest.approx(np.mean(b >= a.min()))
    assert row["fpr95_hac"] == pytest.approx(np.mean(a <= b.max()))


# --------------------------------------------------------------------- what is read


class TestReadings:
    def test_one_modality_is_corrupted_and_the_others_are_clean(self, subject):
        suite = Corruptions(["fog", "audio/white_noise"], [5])
        clean, fog, noise = suite.readings(subject)
        assert (fog.name, noise.name) == (
            "corruptions/video/fog_5",
            "corruptions/audio/white_noise_5",
        )
        first = {r.name: r.loader().dataset[0]["inputs"] for r in (clean, fog, noise)}
        for reading, changed in ((fog, "video"), (noise, "audio")):
            for m in NAMES:
                same = torch.equal(first[reading.name][m], first["clean"][m])
                assert same == (m != changed)
        # What was changed for a pass is not the next one's.
        again = clean.loader().dataset[0]["inputs"]
        assert all(torch.equal(again[m], first["clean"][m]) for m in NAMES)

    def test_all_kinds_of_all_modalities(self, subject):
        names = [r.name for r in Corruptions().readings(subject)]
        assert len(names) == len(set(names)) == 1 + 5 * (11 + 6 + 3)
        assert "corruptions/video/defocus_hac_c_1" not in names

    def test_an_unknown_kind_is_named(self, subject):
        with pytest.raises(
            UsageError, match="rain is no corruption.*audio: white_noise"
        ):
            Corruptions(["fog", "rain"]).readings(subject)

    def test_suites_share_the_clean_pass(self, subject):
        asked = [
            *Accuracy().readings(subject),
            *MissingModality().readings(subject),
            *ModalityShift([1.0]).readings(subject),
        ]
        found = readings.merged(asked)
        assert [r.name for r in found] == [
            "clean",
            *(f"shift/{m}/1" for m in NAMES),
        ]
        assert len(found[0].subsets) == 7 and found[0].subsets["clean"] == NAMES

    def test_the_shift_reaches_the_model(self, subject):
        _, video, *_ = ModalityShift([2.0]).readings(subject)
        noisy = video.loader().dataset[0]["inputs"]["video"]
        plain = subject.dataset[0]["inputs"]["video"].float()
        noise = (noisy - plain).std() / plain.std()
        assert noise == pytest.approx(2, rel=0.02)


# ------------------------------------------------------------------------ the tool


def numbers(out):
    return json.loads((out / "summary.json").read_text())["suites"]


def test_the_tool_and_its_files(tool, tiny_data, checkpoint, clean, tmp_path, capsys):
    """Every quick suite; the second call reads nothing and says the same."""
    args = options(tiny_data, checkpoint, tmp_path, *tool.QUICK)
    assert tool.main(args) == 0
    shown, before = capsys.readouterr().out, numbers(tmp_path)
    top1 = 100 * clean.correct().mean()
    assert f"{top1:.1f} [" in shown and "N" in shown and "sketch" in shown
    assert set(before) == set(tool.QUICK)
    for figure in ("confusion", "missing", "reliability", "risk_coverage"):
        for suffix in (".png", ".svg", ".csv"):
            assert (tmp_path / f"{figure}{suffix}").stat().st_size > 100
    matrix = pd.read_csv(tmp_path / "confusion_fused_count.csv", index_col=0)
    assert matrix.to_numpy().sum() == 18
    files = sorted((tmp_path / "predictions").rglob("*.npz"))
    assert len(files) == 7
    times = [path.stat().st_mtime_ns for path in files]
    again = options(tiny_data, checkpoint, tmp_path, "missing", "calibration")
    assert tool.main(again) == 0
    assert [path.stat().st_mtime_ns for path in files] == times
    assert numbers(tmp_path) == before
    # Kept predictions, such as a grid's, say the same without a checkpoint.
    kept = shutil.copy(tmp_path / "predictions" / "clean.npz", tmp_path / "kept.npz")
    assert tool.main(["--predictions", str(kept)]) == 0
    assert "Detection of misclassification" in capsys.readouterr().out
    del before["missing"]
    assert numbers(tmp_path / "kept_evaluation") == before


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--suites", "missing"], "missing: kept predictions are of the clean data"),
        (["--modalities", "video"], "--modalities: predictions are of one model"),
        (["a.py", "b.pth"], "stands in place of config and checkpoint"),
        (["--suites", "accuracy"], "nowhere.npz"),
        (["--predictions", __file__], "test_suites.py holds none that can be read"),
    ],
)
def test_what_kept_predictions_cannot_say(tool, tmp_path, capsys, args, message):
    given = ["--predictions", str(tmp_path / "nowhere.npz"), *args]
    assert message in refusal(tool, given, capsys)


def test_a_folder_that_cannot_be_written_is_said_first(tool, tmp_path, capsys):
    path = tmp_path / "kept.npz"
    hand_made([0, 1], [0, 1]).save(path)
    args = ["--predictions", str(path), "--out", "/proc/self"]
    assert "error: --out /proc/self: " in refusal(tool, args, capsys)


def test_options_may_stand_between_config_and_checkpoint(tool):
    args = tool.parse_args(["a.py", "--in-domain", "b.pth", "--suites", "missing"])
    assert (args.config, args.checkpoint) == ("a.py", "b.pth")
    assert args.suites == ["missing"] and args.in_domain


@pytest.mark.long
def test_an_interrupted_evaluation_goes_on(
    tool, tiny_data, checkpoint, tmp_path, monkeypatch
):
    chosen = ["--kinds", "audio/low_pass", "--severities", "1", "5"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    args = options(tiny_data, checkpoint, whole, "corruptions")
    assert tool.main([*args, *chosen]) == 0
    predict, passes = readings.predict_subsets, []

    def interrupted(*args):
        passes.append(args)
        if len(passes) == 2:
            raise KeyboardInterrupt
        return predict(*args)

    monkeypatch.setattr(readings, "predict_subsets", interrupted)
    again = [*options(tiny_data, checkpoint, stopped, "corruptions"), *chosen]
    with pytest.raises(SystemExit, match="130"):
        tool.main(again)
    (finished,) = (stopped / "predictions").rglob("*.*")
    assert finished.name == "clean.npz"
    assert tool.main(again) == 0
    assert len(passes) == 2 + 2  # 3 passes, one of which was finished
    assert numbers(stopped) == numbers(whole)


def refusal(tool, args, capsys):
    with pytest.raises(SystemExit, match="2"):
        tool.main(args)
    return capsys.readouterr().err.splitlines()[-1]


def test_evaluations_are_not_mixed(
    tool, tiny_data, checkpoint, trained, tmp_path, capsys
):
    subject = Subject(trained)
    folder = tmp_path / "predictions"
    readings.predict_all(subject, [subject.clean()], folder)
    other = save_checkpoint(read_config(tiny_data), tmp_path / "other.pth", seed=1)
    line = refusal(tool, options(tiny_data, other, tmp_path, "accuracy"), capsys)
    assert "clean.npz is of another evaluation (weights differ)" in line
    args = options(tiny_data, checkpoint, tmp_path, "accuracy")
    line = refusal(tool, [*args, "--in-domain"], capsys)
    assert "(data, clips differ)" in line
    # The same clips elsewhere are the same data.
    moved = tmp_path / "moved"
    moved.symlink_to(tiny_data)
    same = replace(trained, config=read_config(moved))
    again = readings.predict_all(Subject(same), [Subject(same).clean()], folder)
    assert list(again) == ["clean"]


def test_what_was_trained_on_is_refused(tool, tiny_data, checkpoint, tmp_path, capsys):
    args = options(tiny_data, checkpoint, tmp_path, "accuracy")
    line = refusal(tool, [*args, "--target", "street"], capsys)
    assert "trained on street, which is tested here as unseen" in line
    assert not (tmp_path / "predictions").exists()


class TestOutOfDistribution:
    def test_against_another_dataset(self, tool, tiny_data, checkpoint, tmp_path):
        args = options(tiny_data, checkpoint, tmp_path, "ood")
        other = ["--ood-config", str(ROOT / CONFIG), "--ood-data-root", str(tiny_data)]
        args += [*other, "--ood-target", "studio", "--ood-split", "test"]
        assert tool.main(args) == 0
        rows = numbers(tmp_path)["ood"]["ood"]
        assert {r["outside"] for r in rows} == {"SynthAction studio"}
        assert {(r["N_inside"], r["N_outside"]) for r in rows} == {(18, 6)}
        outside = Predictions.load(tmp_path / "predictions/ood/dataset.npz")
        assert set(outside.domains) == {"studio"}

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ([], "needs clips from outside"),
            (["--ood-target", "studio"], "belong to --ood-config"),
            (["--ood-config", "same"], "these are the clips that are evaluated"),
            (
                ["--ood-config", "short"],
                "video is 3 x 4 x 56 x 56, not 3 x 8 x",
            ),
            (["--ood-config", "silent"], "its data have no audio"),
            (["--held-out-classes", "spin"], "held_out_classes: none, here spin"),
        ],
    )
    def test_what_cannot_be_compared(
        self, tool, tiny_data, checkpoint, tmp_path, capsys, changes, message
    ):
        cfg = read_config(tiny_data)
        for name in ("short", "silent"):
            other = copy.deepcopy(cfg)
            dataset = other.test_dataloader.dataset
            if name == "short":
                dataset.target = "studio"
                dataset.pipelines.video[1].clip_len = 4
            else:
                for split in ("train", "val", "test"):
                    del other[f"{split}_dataloader"].dataset.pipelines["audio"]
            other.dump(tmp_path / f"{name}.py")
        cfg.dump(tmp_path / "same.py")
        changes = [str(tmp_path / f"{c}.py") if c in ("same", "short", "silent") else c
                   for c in changes]  # fmt: skip
        args = options(tiny_data, checkpoint, tmp_path / "out", "ood")
        assert message in refusal(tool, [*args, *changes], capsys)

    @pytest.mark.long
    def test_held_out_classes(self, tool, tiny_data, tmp_path):
        saved = save_checkpoint(
            read_config(tiny_data), tmp_path / "c.pth", held_out_classes=["spin"]
        )
        args = options(tiny_data, saved, tmp_path / "out", "ood")
        assert tool.main([*args, "--held-out-classes", "spin"]) == 0
        rows = numbers(tmp_path / "out")["ood"]["ood"]
        assert {(r["N_inside"], r["N_outside"]) for r in rows} == {(15, 3)}
        folder = tmp_path / "out" / "predictions"
        assert 4 not in Predictions.load(folder / "clean.npz").labels
        held_out = Predictions.load(folder / "ood/held_out_classes.npz")
        assert set(held_out.labels) == {CLASSES.index("spin")}


@pytest.mark.long
@pytest.mark.parametrize("method", SYNTHETIC)
def test_every_method(tool, tiny_data, tmp_path, method):
    config = f"configs/mbcd/synth_action/{method}.py"
    cfg = read_config(tiny_data, config)
    saved = save_checkpoint(cfg, tmp_path / "c.pth")
    args = options(tiny_data, saved, tmp_path, *tool.QUICK, "corruptions", "shift")
    args[0] = str(ROOT / config)
    args += ["--kinds", "fog", "--severities", "3", "--levels", "1"]
    assert tool.main(args) == 0
    assert set(numbers(tmp_path)) == {*tool.QUICK, "corruptions", "shift"}


@pytest.mark.long
def test_a_killed_process_goes_on(repo, tiny_data, checkpoint, tmp_path, tool):
    """SIGKILL at some moment: what is there is whole, and the rest is read."""
    import subprocess
    import sys
    import time

    chosen = ["--kinds", "fog", "--levels", "1"]
    args = [*options(tiny_data, checkpoint, tmp_path, "corruptions", "shift"), *chosen]
    process = subprocess.Popen([sys.executable, "tools/evaluate.py", *args], cwd=repo)
    while not list(tmp_path.rglob("fog_2.npz")):
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert not (tmp_path / "summary.json").exists()
    done = run_script(repo / "tools/evaluate.py", *args, cwd=repo)
    assert done.returncode == 0, done.stderr
    whole = tmp_path / "whole"
    args = [*options(tiny_data, checkpoint, whole, "corruptions", "shift"), *chosen]
    assert tool.main(args) == 0
    assert numbers(tmp_path) == numbers(whole)
