import numpy as np
import pytest
import torch
from mmaction.registry import METRICS
from mmaction.structures import ActionDataSample
from mmengine.evaluator import Evaluator
from scipy.special import softmax

from mmaction_mbcd.evaluation import DomainAccuracy, PredictionFile, Predictions
from mmaction_mbcd.evaluation.predictions import collect
from mmaction_mbcd.models.batch import write_scores

CLASSES = ("walk", "run", "sit")


def samples(count=7, seed=0, without_audio=(1, 4), skipped=(5,)):
    """Data samples as a recognizer leaves them: fused, video, audio and student."""
    random = np.random.default_rng(seed)
    made, logits = [], {}
    for i in range(count):
        sample = ActionDataSample().set_gt_label(i % 3)
        gone = i in skipped
        present = {"video": not gone, "audio": not gone and i not in without_audio}
        facts = dict(sample_id=f"clip{i}", domain="ab"[i % 2], role="target")
        facts |= dict(present=present, skipped="broken" if gone else "")
        sample.set_metainfo(facts)
        made.append(sample)
    for head in ("", "video", "audio", "student"):
        logits[head] = torch.tensor(random.normal(size=(count, 3)), dtype=torch.float32)
    write_scores(made, logits)
    return made, {head: x.numpy() for head, x in logits.items()}


def dicts():
    return [sample.to_dict() for sample in samples()[0]]


def test_registered():
    assert METRICS.get("PredictionFile") is PredictionFile


def test_file_holds_what_the_model_said(tmp_path):
    made, logits = samples()
    metric = PredictionFile(str(tmp_path / "of/run.npz"), facts={"seed": 3})
    metric.dataset_meta = dict(classes=CLASSES)
    evaluator = Evaluator([DomainAccuracy(), metric])
    evaluator.dataset_meta = dict(classes=CLASSES)
    for start in (0, 4):  # two batches
        evaluator.process(data_samples=made[start : start + 4])
    metrics = evaluator.evaluate(len(made))
    said = Predictions.load(tmp_path / "of/run.npz")
    assert said.sample_ids.tolist() == [f"clip{i}" for i in range(7)]
    assert said.domains.tolist() == list("abababa")
    assert said.labels.tolist() == [0, 1, 2, 0, 1, -1, 0]
    assert said.classes == CLASSES and said.facts == {"seed": 3}
    assert said.modalities == ("video", "audio")
    for head, whole in logits.items():
        known = said.known(head)
        absent = {1, 4, 5} if head == "audio" else {5}
        assert set(np.flatnonzero(~known)) == absent
        np.testing.assert_array_equal(said.logits[head][known], whole[known])
        assert (said.predicted(head)[~known] == -1).all()
        assert not said.correct(head)[~known].any()
        np.testing.assert_allclose(
            said.probabilities(head)[known], softmax(whole[known].astype(float), axis=1)
        )
    # The same numbers as the metric beside it.
    for head, key in (("", "target/top1"), ("audio", "target/audio/top1"),
                      ("student", "student/target/top1")):  # fmt: skip
        accuracy = said.correct(head)[said.known(head)].mean()
        assert accuracy == pytest.approx(metrics[key], abs=1e-12)


def test_select_by_mask_and_by_indices():
    said = collect(dicts(), CLASSES)
    first = said.select(said.domains == "a")
    assert first.sample_ids.tolist() == ["clip0", "clip2", "clip4", "clip6"]
    again = said.select(np.array([0, 2, 4, 6]))
    np.testing.assert_array_equal(first.logits["student"], again.logits["student"])
    np.testing.assert_array_equal(first.present["audio"], [True, True, False, True])
    np.testing.assert_array_equal(first.correct(), said.correct()[::2])


def test_an_unknown_head_is_named():
    said = collect(dicts(), CLASSES)
    with pytest.raises(ValueError, match="no head 'flow'.*'fused', 'video', 'audio'"):
        said.correct("flow")


def test_nothing_to_keep():
    with pytest.raises(ValueError, match="no sample was evaluated"):
        collect([], CLASSES)
    bare = ActionDataSample().set_gt_label(0)
    bare.set_metainfo(dict(sample_id="x", present={}))
    with pytest.raises(ValueError, match="1 of 1 samples have no logits, such as 'x'"):
        collect([bare.to_dict()], CLASSES)


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04", None])
def test_a_damaged_file_is_named(tmp_path, damage):
    path = tmp_path / "said.npz"
    collect(dicts(), CLASSES).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    with pytest.raises(ValueError, match="said.npz holds no predictions.*again"):
        Predictions.load(path)


def test_another_file_is_refused_and_no_pickle_is_read(tmp_path):
    path = tmp_path / "other.npz"
    np.savez(path, a=np.zeros(3))
    with pytest.raises(ValueError, match="holds no predictions"):
        Predictions.load(path)
    np.savez(path, known=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError):
        Predictions.load(path)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path, said = tmp_path / "said.npz", collect(dicts(), CLASSES)
    said.save(path)
    before = path.read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OSError, match="No space"):
        said.save(path)
    assert path.read_bytes() == before
