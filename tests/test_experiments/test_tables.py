import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_1samp

from mmaction_mbcd.analysis.statistics import accuracy_interval
from mmaction_mbcd.errors import UsageError
from mmaction_mbcd.experiments import table_text
from mmaction_mbcd.experiments.tables import AVERAGE, Cell, Place, Records, summarise

A, B = Place("b, c", "a"), Place("a, c", "b")
NAMES = {"erm": "ERM", "mbcd": "MBCD", "rna_net": "RNA-Net"}


def cell(correct, seeds=None, clips=None, wanted=None):
    correct = np.atleast_2d(np.asarray(correct, bool))
    seeds = list(range(len(correct))) if seeds is None else seeds
    clips = np.arange(correct.shape[1]).astype(str) if clips is None else clips
    return Cell(seeds, correct, clips, [9] * len(seeds), wanted or len(seeds))


def records(methods, rule="source", block=("hac", "video audio")):
    return Records({block: methods}, rule, "target", names=NAMES)


def drawn(accuracy, seeds, clips, seed):
    return np.random.default_rng(seed).random((seeds, clips)) < accuracy


def row(frame, method, target):
    found = frame[(frame.method == method) & (frame.target == target)]
    assert len(found) == 1
    return found.iloc[0]


def test_means_and_deviations_by_hand():
    # Seeds of target a: 3/4, 1/4; of target b: 2/2, 1/2.
    one = cell([[1, 1, 1, 0], [1, 0, 0, 0]])
    other = cell([[1, 1], [1, 0]])
    frame = summarise(records({"erm": {A: one, B: other}}))
    a, b, mean = (row(frame, "erm", t) for t in ("a", "b", AVERAGE))
    assert (a["mean"], b["mean"], mean["mean"]) == (50, 75, 62.5)
    assert a["std"] == pytest.approx(100 * np.sqrt(2) * 0.25)  # n - 1
    assert b["std"] == pytest.approx(100 * np.sqrt(2) * 0.25)
    # Averages of the seeds: 7/8 and 3/8.
    assert mean["std"] == pytest.approx(100 * np.sqrt(2) * 0.25)
    assert (a["N"], b["N"], mean["N"], mean["seeds"]) == (4, 2, 6, 2)
    assert list(frame["name"].unique()) == ["ERM"] and a["epochs"] == "9 9"


def test_one_seed_has_wilsons_interval_and_says_that_it_covers_the_clips():
    correct = drawn(0.6, 1, 50, 0)
    found = row(summarise(records({"erm": {A: cell(correct)}})), "erm", "a")
    low, high = accuracy_interval(correct.mean(), 50)
    assert found["covers"] == "clips" and np.isnan(found["std"])
    assert (found["low"], found["high"]) == pytest.approx((100 * low, 100 * high))


def test_difference_of_single_seeds_is_the_paired_t_test():
    one, other = drawn(0.7, 1, 80, 1), drawn(0.5, 1, 80, 2)
    frame = summarise(records({"erm": {A: cell(other)}, "mbcd": {A: cell(one)}}), "erm")
    found = row(frame, "mbcd", "a")
    expected = ttest_1samp(one[0].astype(float) - other[0], 0)
    assert found["difference"] == pytest.approx(100 * (one.mean() - other.mean()))
    assert found["p"] == pytest.approx(expected.pvalue)
    low, high = expected.confidence_interval()
    got = (found["difference_low"], found["difference_high"])
    assert got == pytest.approx((100 * low, 100 * high))
    assert np.isnan(row(frame, "erm", "a")["p"])


def test_holm_is_over_the_methods_of_a_column():
    methods = {
        name: {A: cell(drawn(p, 3, 200, i))}
        for i, (name, p) in enumerate([("erm", 0.5), ("mbcd", 0.62), ("rna_net", 0.5)])
    }
    frame = summarise(records(methods), "erm")
    p = [row(frame, m, "a")["p"] for m in ("mbcd", "rna_net")]
    adjusted = [row(frame, m, "a")["p_holm"] for m in ("mbcd", "rna_net")]
    first, second = sorted(p)
    expected = {first: min(1, 2 * first), second: max(2 * first, second)}
    assert adjusted == pytest.approx([min(1, expected[x]) for x in p])


def test_best_is_marked_only_where_the_data_support_it():
    far = {"erm": {A: cell(drawn(0.3, 3, 300, 0))},
           "mbcd": {A: cell(drawn(0.8, 3, 300, 1))}}  # fmt: skip
    near = {"erm": {A: cell(drawn(0.5, 3, 300, 0))},
            "mbcd": {A: cell(drawn(0.5, 3, 300, 1))}}  # fmt: skip
    rows = table_text.markdown(summarise(records(far))).splitlines()[-2:]
    assert rows[0].startswith("| ERM | 27.9 ") and rows[1].startswith("| MBCD | **78.6")
    frame = summarise(records(near))
    assert frame["best"].sum() == 1 and not frame["best_supported"].any()
    assert "**" not in table_text.markdown(frame)
    assert r"\textbf" not in table_text.latex(frame)
    assert r"\textbf{" in table_text.latex(summarise(records(far)))


def test_the_second_is_underlined_where_it_is_set_apart_from_those_below():
    levels = {"erm": 0.3, "rna_net": 0.55, "mbcd": 0.8}
    three = {m: {A: cell(drawn(x, 3, 300, i))}
             for i, (m, x) in enumerate(levels.items())}  # fmt: skip
    frame = summarise(records(three))
    rows = table_text.markdown(frame).splitlines()[-3:]
    assert ["**" in row for row in rows] == [False, False, True]
    assert ["<u>" in row for row in rows] == [False, True, False]
    lines = [x for x in table_text.latex(frame).splitlines() if x.endswith(r"\\")]
    shown = {x.split(" & ")[0]: x for x in lines}
    assert r"\underline{5" in shown["RNA-Net"] and r"\underline" not in shown["ERM"]
    assert r"\textbf{" in shown["MBCD"]
    level = three | {"erm": {A: cell(drawn(0.55, 3, 300, 0))}}
    text = table_text.markdown(summarise(records(level)))
    assert "**" in text and "<u>" not in text


def test_a_missing_cell_is_said_and_has_no_average():
    whole = {A: cell([[1, 0, 1]]), B: cell([[1, 1]])}
    frame = summarise(records({"erm": whole, "mbcd": {A: cell([[1, 1, 1]])}}), "erm")
    assert np.isnan(row(frame, "mbcd", AVERAGE)["mean"])
    assert np.isnan(row(frame, "mbcd", "b")["mean"])
    assert row(frame, "mbcd", "a")["mean"] == 100
    lines = table_text.markdown(frame).splitlines()
    line = next(text for text in lines if text.startswith("| MBCD"))
    assert line.count("missing") == 2
    assert table_text.latex(frame).count("& missing") == 4  # accuracies, differences


def test_fewer_seeds_than_asked_for_are_said():
    frame = summarise(records({"erm": {A: cell([[1, 0]], wanted=3)}}))
    assert "(1 of 3 seeds)" in table_text.markdown(frame)
    assert "$^{(1)}$" in table_text.latex(frame)


def test_other_clips_are_not_compared():
    other = cell(drawn(0.5, 2, 6, 0), clips=np.array(list("uvwxyz")))
    methods = {"erm": {A: cell(drawn(0.5, 2, 6, 1))}, "mbcd": {A: other}}
    frame = summarise(records(methods), "erm")
    assert "difference" not in frame and not frame["best"].any()


def test_methods_are_compared_on_the_clips_that_both_could_read():
    whole, other = drawn(0.5, 2, 40, 1), drawn(0.7, 2, 40, 2)
    clips = np.array([f"clip{i % 38}" for i in range(40)])  # two stand twice
    read = np.arange(40) != 38  # one of the repeated rows
    methods = {
        "erm": {A: cell(whole, clips=clips)},
        "mbcd": {A: cell(other[:, read], clips=clips[read])},
    }
    found = row(summarise(records(methods), "erm"), "mbcd", "a")
    same = {"erm": {A: cell(whole[:, read], clips=clips[read])},
            "mbcd": methods["mbcd"]}  # fmt: skip
    expected = row(summarise(records(same), "erm"), "mbcd", "a")
    for name in ("difference", "difference_low", "p", "mcnemar"):
        assert found[name] == pytest.approx(expected[name])
    assert row(summarise(records(methods), "erm"), "erm", "a")["N"] == 40


def test_what_a_difference_rests_on_is_said():
    methods = {"erm": {A: cell(drawn(0.5, 3, 50, 0))},
               "mbcd": {A: cell(drawn(0.5, 1, 50, 1))}}  # fmt: skip
    frame = summarise(records(methods), "erm")
    assert row(frame, "mbcd", "a")["difference_covers"] == "clips"
    assert "clips alone where one" in table_text.difference_caption(frame)


def test_in_domain_says_that_its_clips_chose_the_epoch():
    frame = summarise(records({"erm": {A: cell([[1, 0]])}}))
    text = table_text.caption(frame.assign(evaluation="in_domain"))
    assert "which also chose the epoch" in text
    text = table_text.caption(frame.assign(evaluation="in_domain", rule="last"))
    assert "chose the epoch" not in text


def test_an_unknown_reference_is_named():
    with pytest.raises(UsageError, match="'ema' has no finished run; there are erm"):
        summarise(records({"erm": {A: cell([[1, 0]])}}), "ema")


def test_repeated_rows_of_a_clip_count_as_one_for_the_interval():
    correct = drawn(0.5, 1, 40, 3)
    twice = np.concatenate([correct, correct], axis=1)
    clips = np.tile(np.arange(40).astype(str), 2)
    single = row(summarise(records({"erm": {A: cell(correct)}})), "erm", "a")
    doubled = cell(twice, clips=clips)
    double = row(summarise(records({"erm": {A: doubled}})), "erm", "a")
    naive = row(summarise(records({"erm": {A: cell(twice)}})), "erm", "a")
    width = [x["high"] - x["low"] for x in (single, double, naive)]
    assert width[1] == pytest.approx(width[0], rel=0.05) and width[2] < 0.8 * width[0]


@pytest.mark.parametrize("rule", ["source", "last", "oracle", "leave_one_source_out"])
def test_the_rule_is_said_and_an_oracle_is_marked(rule):
    frame = summarise(records({"erm": {A: cell([[1, 0]])}}, rule))
    for text in (table_text.markdown(frame), table_text.latex(frame)):
        assert ("(oracle)" in text) == (rule == "oracle")
    said = table_text.RULE_NAMES[rule].split(",")[0]
    assert said in table_text.caption(frame)
    assert (frame["rule"] == rule).all()


def test_latex_escapes_and_ticks():
    blocks = {
        ("my_data & more", "video audio"): {"erm": {A: cell([[1, 0]])}},
        ("my_data & more", "video"): {"erm": {A: cell([[1, 1]])}},
    }
    found = summarise(Records(blocks, "source", "target", names={"erm": "50% #1"}))
    text = table_text.latex(found)
    assert "p $<$ .05" in text and "<" not in text.replace("$<$", "")
    assert r"my\_data \& more" in text and r"50\% \#1" in text
    rows = [line for line in text.splitlines() if line.startswith(r"50\%")]
    assert [line.count(r"\checkmark") for line in rows] == [2, 1]
    assert text.count(r"\midrule") == 2 and text.count(r"\begin{tabular}{lccr}") == 1


def test_p_values_as_people_write_them():
    assert table_text.p_text(0.0312) == "= .031"
    assert table_text.p_text(0.00001) == "< .001"
    assert table_text.p_text(1.0) == "= 1.000"


@pytest.mark.parametrize(
    ("points", "text"), [(-6e-16, "+0.0"), (0.04, "+0.0"), (-0.06, "-0.1"), (2, "+2.0")]
)
def test_no_difference_has_no_sign_of_its_own(points, text):
    cell = dict(difference=points, difference_low=-1, difference_high=1, p_holm=1.0)
    shown = table_text._difference(pd.Series(cell))
    assert shown == f"{text} [-1.0, +1.0], p = 1.000"
