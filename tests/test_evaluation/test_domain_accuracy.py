import pytest
import torch
from mmaction.registry import METRICS
from mmaction.structures import ActionDataSample
from mmengine.evaluator import Evaluator

from mmaction_mbcd.evaluation import DomainAccuracy


def one_hot(index, classes=3):
    """Softmax-like scores whose highest is ``index``."""
    scores = torch.full((classes,), 0.1)
    scores[index] = 0.8
    return scores


def sample(label, predicted, domain="a", role="source", present=None, **scores):
    made = ActionDataSample().set_gt_label(label).set_pred_score(one_hot(predicted))
    made.set_metainfo(
        dict(
            sample_id=f"{domain}/{label}{predicted}",
            domain=domain,
            role=role,
            present=present or {"video": True, "audio": True},
        )
    )
    if scores:
        named = {name: one_hot(index) for name, index in scores.items()}
        made.set_field(named, "pred_scores", field_type="metainfo")
    return made


def evaluate(samples, **kwargs):
    evaluator = Evaluator(DomainAccuracy(**kwargs))
    evaluator.process(data_samples=samples)
    return evaluator.evaluate(len(samples))


def test_registered():
    assert METRICS.get("DomainAccuracy") is DomainAccuracy


def test_hand_computed_sources():
    # domain a: labels 0 0 0 1, predicted 0 0 1 1; domain b: labels 1 2, predicted 0 2
    samples = [sample(0, 0), sample(0, 0), sample(0, 1), sample(1, 1)]
    samples += [sample(1, 0, "b"), sample(2, 2, "b")]
    assert evaluate(samples) == pytest.approx(
        {
            "source/N": 6,
            "source/clips": 5,  # two rows of domain a are of one clip
            "source/top1": 4 / 6,
            # class 0: 2 of 3; class 1: 1 of 2; class 2: 1 of 1
            "source/mean_class": (2 / 3 + 1 / 2 + 1) / 3,
            "source/a/top1": 3 / 4,
            "source/a/N": 4,
            "source/b/top1": 1 / 2,
            "source/b/N": 2,
        }
    )


def test_mean_class_ignores_classes_that_do_not_occur():
    # A class that is predicted but has no sample would count 0 in mmaction2's helper.
    metrics = evaluate([sample(0, 0), sample(1, 2)])
    assert metrics["source/mean_class"] == 1 / 2


def test_one_source_is_named_and_one_target_is_not():
    metrics = evaluate([sample(0, 0), sample(1, 0, "c", "target")])
    assert metrics == {
        "source/N": 1,
        "source/top1": 1.0,
        "source/mean_class": 1.0,
        "source/a/top1": 1.0,
        "source/a/N": 1,
        "target/N": 1,
        "target/top1": 0.0,
        "target/mean_class": 0.0,
    }


def test_several_targets_are_named():
    samples = [sample(0, 0, "b", "target"), sample(1, 0, "c", "target")]
    metrics = evaluate(samples)
    assert metrics["target/b/top1"] == 1.0 and metrics["target/c/top1"] == 0.0
    assert metrics["target/top1"] == 0.5
    assert metrics["target/b/N"] == metrics["target/c/N"] == 1


def test_modalities_count_the_samples_that_have_them():
    gone = {"video": True, "audio": False}
    samples = [
        sample(0, 0, video=0, audio=1),
        sample(1, 1, video=0, audio=1),
        sample(2, 2, video=2, audio=2, present=gone),
    ]
    metrics = evaluate(samples)
    assert metrics["source/video/top1"] == pytest.approx(2 / 3)
    assert metrics["source/audio/top1"] == 1 / 2
    assert metrics["source/audio/N"] == 2
    assert "source/video/N" not in metrics


def test_absent_scores_may_be_anything():
    made = sample(0, 0, video=0, present={"video": True, "audio": False})
    made.pred_scores["audio"] = torch.full((3,), float("nan"))
    metrics = evaluate([made])
    assert metrics["source/video/top1"] == 1.0
    assert not [key for key in metrics if "audio" in key]


def test_the_model_beside():
    scores = {"student": 1, "student/video": 0, "video": 1}
    metrics = evaluate([sample(0, 0, **scores), sample(1, 1, **scores)])
    assert metrics["source/top1"] == 1.0
    assert metrics["source/video/top1"] == 0.5
    assert metrics["student/source/top1"] == 0.5
    assert metrics["student/source/mean_class"] == 0.5
    assert metrics["student/source/a/top1"] == 0.5
    assert metrics["student/source/video/top1"] == 0.5
    assert metrics["student/source/N"] == 2


def test_values_are_plain_numbers():
    metrics = evaluate([sample(0, 0, video=0)])
    assert {type(value) for value in metrics.values()} == {int, float}


def test_prefix():
    assert evaluate([sample(0, 0)], prefix="x")["x/source/top1"] == 1.0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_not_finite(value):
    bad = sample(1, 2, domain="zoo")
    bad.pred_score[1] = value
    with pytest.raises(ValueError, match="fused prediction of sample 'zoo/12' is not"):
        evaluate([sample(0, 0), bad])
    bad = sample(1, 2, domain="zoo", video=0)
    bad.pred_scores["video"][0] = value
    with pytest.raises(ValueError, match="video prediction of sample 'zoo/12'"):
        evaluate([bad])


@pytest.mark.filterwarnings("ignore")
def test_no_samples():
    with pytest.raises(ValueError, match="DomainAccuracy has no samples"):
        evaluate([])


def test_unknown_score_name():
    with pytest.raises(ValueError, match=r"unknown score 'vidoe'.*\['video', 'audio'"):
        evaluate([sample(0, 0, vidoe=1)])
    with pytest.raises(ValueError, match="unknown score 'student/vidoe'"):
        evaluate([sample(0, 0, **{"student/vidoe": 1})])


def test_score_missing_for_some():
    with pytest.raises(ValueError, match="1 of 2 samples have no score 'video'"):
        evaluate([sample(0, 0, video=0), sample(1, 1)])


def test_domain_named_like_a_modality():
    with pytest.raises(ValueError, match="'video'.* both a domain and a modality"):
        evaluate([sample(0, 0, domain="video")])


def test_padding_of_distributed_samplers_is_dropped():
    evaluator = Evaluator(DomainAccuracy())
    evaluator.process(data_samples=[sample(0, 0), sample(0, 1), sample(0, 1)])
    assert evaluator.evaluate(2)["source/top1"] == 1 / 2


def test_skipped_samples_are_counted_and_not_judged():
    samples = [sample(0, 0), sample(1, 0), sample(2, 2)]
    samples[1].set_metainfo(dict(skipped="cut off", present={"video": False}))
    found = evaluate(samples)
    assert found["source/N"] == 2 and found["source/skipped"] == 1
    assert found["source/top1"] == 1.0  # the wrong one is the one skipped
    assert "source/skipped" not in evaluate([sample(0, 0)])


def test_nothing_but_skipped_samples():
    lost = sample(0, 0)
    lost.set_metainfo(dict(skipped="cut off"))
    with pytest.raises(ValueError, match="none of the 1 source samples could be read"):
        evaluate([lost])


def test_a_clip_that_stands_twice():
    found = evaluate([sample(0, 0), sample(0, 0), sample(1, 1)])
    assert (found["source/N"], found["source/clips"]) == (3, 2)
    assert "source/clips" not in evaluate([sample(0, 0), sample(1, 1)])
