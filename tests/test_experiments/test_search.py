"""A random search: its draws, its budget, and that the sources alone choose."""

import copy
import dataclasses
import hashlib
import itertools
import re

import numpy as np
import pandas as pd
import pytest
import yaml
from matplotlib import pyplot as plt
from mmengine.config import Config
from scipy import stats

from helpers.search_runs import CONFIGS, finish, planned
from mmaction_mbcd import cli
from mmaction_mbcd.cli.settings_checks import check_settings
from mmaction_mbcd.errors import UsageError
from mmaction_mbcd.experiments import (
    planning,
    search,
    search_figures,
    search_space,
    status,
)
from mmaction_mbcd.experiments.distributions import (
    Below1,
    Choice,
    Integer,
    LogUniform,
    Uniform,
    read_distribution,
    unit_draw,
)
from mmaction_mbcd.experiments.experiment import Experiment
from mmaction_mbcd.experiments.grid import Grid
from mmaction_mbcd.experiments.job import Share
from mmaction_mbcd.experiments.run_folder import read_json, write_json
from mmaction_mbcd.experiments.search_ranges import COMMON, RANGES
from mmaction_mbcd.experiments.search_space import (
    Search,
    is_from_scratch,
    keys_of,
    read_trial_name,
    settings_of,
    trial_name,
    value_in,
    values_of,
)
from tests_support import ROOT, load_tool

LEAVES = sorted(
    path.relative_to(CONFIGS).with_suffix("").as_posix()
    for path in CONFIGS.rglob("*.py")
    if "_base_" not in path.parts
)
HAC_MBCD = str(CONFIGS / "hac" / "mbcd.py")
DRAWS = [unit_draw("test", i) for i in range(3000)]
tool = load_tool("experiment")


# --- draws


def test_a_draw_is_a_function_of_what_it_is_for():
    digest = hashlib.sha256(b"0\nmbcd\n3\nlr").hexdigest()
    # The first 53 bits as a binary fraction.
    assert unit_draw(0, "mbcd", 3, "lr") == int(digest[:14], 16) // 8 / 2**53
    # Pinned: another machine or version must draw the same.
    assert unit_draw(0, "mbcd", 3, "lr") == 0.2908658950286124
    assert stats.kstest(DRAWS, "uniform").pvalue > 0.01


@pytest.mark.parametrize(
    ("ours", "theirs", "map_back"),
    [
        (Uniform(0.3, 0.7), stats.uniform(0.3, 0.4), lambda x: x),
        (LogUniform(1e-5, 3.162e-4), stats.loguniform(1e-5, 3.162e-4), lambda x: x),
        (Below1(0.9, 0.9999), stats.loguniform(1e-4, 1e-1), lambda x: 1 - x),
    ],
)
def test_continuous_ranges_against_scipy(ours, theirs, map_back):
    values = np.array([ours.at(u) for u in DRAWS])
    assert ours.low <= values.min() and values.max() <= ours.high
    assert stats.kstest(map_back(values), theirs.cdf).pvalue > 0.01
    # Each value is the quantile, to four digits.
    quantiles = [u if map_back(0.25) == 0.25 else 1 - u for u in DRAWS[:50]]
    np.testing.assert_allclose(
        map_back(values[:50]), theirs.ppf(quantiles), rtol=5.1e-4
    )
    assert ours.at(0.0) == pytest.approx(ours.low, abs=1e-12)


@pytest.mark.parametrize(
    ("ours", "values"),
    [(Integer(3, 6), [3, 4, 5, 6]), (Choice((0.0, 0.1, 0.5)), [0.0, 0.1, 0.5])],
)
def test_discrete_ranges_against_equal_counts(ours, values):
    counts = pd.Series([ours.at(u) for u in DRAWS]).value_counts()
    assert sorted(counts.index) == values
    assert stats.chisquare(counts).pvalue > 0.01


def test_ranges_of_a_grid_file():
    text = "{a: {log_uniform: [1e-5, 0.1]}, b: {choice: [x, 1]}, c: {integer: [2, 9]}}"
    said = {key: read_distribution(each) for key, each in yaml.safe_load(text).items()}
    assert said == dict(a=LogUniform(1e-5, 0.1), b=Choice(("x", 1)), c=Integer(2, 9))
    assert read_distribution(dict(below_1=[0.9, 0.99])) == Below1(0.9, 0.99)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (3, "not a range such as"),
        (dict(normal=[0, 1]), "there are uniform, log_uniform"),
        (dict(uniform=[0, 1], choice=[1]), "not a range"),
        (dict(uniform=0), "needs a list, got 0"),
        (dict(uniform=[1]), "needs two numbers"),
        (dict(uniform=["a", 1]), "needs two numbers"),
        (dict(uniform=[2, 1]), "a lower and a higher number, got"),
        (dict(log_uniform=[0, 1]), "a higher number above 0"),
        (dict(below_1=[0.9, 1]), "a higher number below 1"),
    ],
)
def test_what_is_no_range(said, message):
    with pytest.raises(UsageError, match=message):
        read_distribution(said)


# --- trials


def specs(**keys):
    grid = dict(datasets=["hac"], methods=["erm", "mbcd"], targets=["human"]) | keys
    return Grid.of(grid).specs(CONFIGS)


def test_a_longer_search_keeps_its_trials():
    few = specs(search=dict(budget=4))
    many = specs(search=dict(budget=9, seeds_per_trial=2))
    assert len(few) == 2 * 4 and len(many) == 2 * 9 * 2
    assert set(few) < set(many)
    assert [s.variant for s in few[:4]] == ["trial00", "trial01", "trial02", "trial03"]
    assert {s.seed for s in few} == {1000} and {s.seed for s in many} == {1000, 1001}


def test_trial_0_is_the_config_and_the_others_differ():
    found = [s for s in specs(search=dict(budget=6)) if s.method == "mbcd"]
    assert found[0].settings == ()
    assert len({s.settings for s in found}) == 6
    names = set(settings_of(found[1]))
    assert names == {
        "optim_wrapper.optimizer.lr", "optim_wrapper.optimizer.weight_decay",
        "model.encoders.video.dropout", "model.encoders.audio.dropout",
        "model.encoders.flow.dropout", "custom_hooks.0.beta",
        "optim_wrapper.inner_lr", "model.objectives.1.weight",
    }  # fmt: skip


def test_draws_hang_on_seed_method_and_trial_alone():
    def lr(method, trial, seed, **options):
        made = Search.of(dict(budget=20, seed=seed) | options)
        drawn = made.draw(str(CONFIGS / "hac" / f"{method}.py"), method, trial, seed)
        return drawn["optim_wrapper.optimizer.lr"]

    assert lr("erm", 3, 0) == LogUniform(1e-5, 3.162e-4).at(
        unit_draw(0, "erm", 3, "lr")
    )
    other = {lr("erm", 3, 0), lr("erm", 4, 0), lr("mbcd", 3, 0), lr("erm", 3, 1)}
    assert len(other) == 4
    # A further hyper-parameter, a budget, another place: the same draw.
    batch = {"train_dataloader.batch_size": dict(choice=[8, 16])}
    assert lr("erm", 3, 0, ranges=dict(common=batch), budget=99) == lr("erm", 3, 0)
    by_place = {}
    for spec in specs(search=dict(budget=3), targets=["human", "cartoon"]):
        by_place.setdefault(spec.place, []).append((spec.variant, spec.settings))
    assert by_place["to-human"] == by_place["to-cartoon"]


def test_every_method_has_the_same_budget():
    found = specs(
        methods=["erm", "mbcd", "jat"], targets=["human", "animal"], seeds=[0, 1, 2],
        search=dict(budget=5, seed=[0, 3]),
    )  # fmt: skip
    counts = pd.Series([(s.method, s.target) for s in found]).value_counts()
    assert len(counts) == 6 and set(counts) == {5 * 2}


def test_several_searches_draw_and_train_anew():
    found = specs(methods=["erm"], search=dict(budget=3, seed=[0, 2]))
    names = [s.variant for s in found]
    assert names[3:] == ["search2-trial00", "search2-trial01", "search2-trial02"]
    assert [s.seed for s in found] == [1000] * 3 + [3000] * 3
    assert found[0].settings == found[3].settings == ()
    assert found[1].settings != found[4].settings


def test_names_of_trials():
    assert [trial_name(0, 3), trial_name(2, 117)] == ["trial03", "search2-trial117"]
    assert read_trial_name("search2-trial117") == (2, 117)
    assert read_trial_name("trial03") == (0, 3)
    assert read_trial_name("trial") is None and read_trial_name("") is None


def test_own_ranges_replace_add_and_remove():
    ranges = dict(
        common=dict(lr=dict(choice=[1e-4]), weight_decay=None),
        mbcd={"train_cfg.max_epochs": dict(integer=[5, 6]), "beta": None},
        cmrf=dict(mixing=None),
    )
    made = Search.of(dict(budget=2, ranges=ranges))
    drawn = made.draw(HAC_MBCD, "mbcd", 1, 0)
    assert drawn["optim_wrapper.optimizer.lr"] == 1e-4
    assert drawn["train_cfg.max_epochs"] in (5, 6)
    gone = {"optim_wrapper.optimizer.weight_decay", "custom_hooks.0.beta"}
    assert not gone & set(drawn) and "optim_wrapper.inner_lr" in drawn
    erm = made.draw(str(CONFIGS / "hac" / "erm.py"), "erm", 1, 0)
    assert (
        "train_cfg.max_epochs" not in erm and erm["optim_wrapper.optimizer.lr"] == 1e-4
    )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (dict(search=3), "must hold keys such as budget"),
        (dict(search=dict(seed=1)), "budget, the trials of each method, is missing"),
        (dict(search=dict(budgte=3)), "did you mean 'budget'"),
        (dict(search=dict(budget=0)), "budget must be a whole number from 1, got 0"),
        (dict(search=dict(budget=2, seed=[1, 1])), "a list of different ones"),
        (dict(search=dict(budget=2, seed=-1)), "seed must be"),
        (dict(search=dict(budget=2, by="target")), "by must be one of source, leave"),
        (dict(search=dict(budget=2, ranges=dict(lr=3))), r"ranges must be \{method"),
        (
            dict(search=dict(budget=2, by="leave_one_source_out")),
            "needs it in select too",
        ),
        (
            dict(search=dict(budget=2), variants=dict(a={})),
            "variants and search exclude each other",
        ),
        (
            dict(search=dict(budget=2), arguments=["--per-target-values"]),
            "were chosen on the targets",
        ),
        (dict(search=dict(budget=2), seeds=[0, 1000]), "seeds: 1000 is a trial's"),
        (
            dict(search=dict(budget=2), chosen=[dict(method="erm")]),
            "leave one of them out",
        ),
        (
            dict(search=dict(budget=2), options={"optim_wrapper.optimizer.lr": 1e-3}),
            "optimizer.lr is searched and set by options",
        ),
        (
            dict(search=dict(budget=2, ranges=dict(mbcd=dict(lamda=None)))),
            "mbcd.lamda: nothing of that name",
        ),
        (
            dict(search=dict(budget=2, ranges=dict(mbcd=dict(x=dict(choice=[1]))))),
            "neither searched nor a config's key",
        ),
        (
            dict(search=dict(budget=2, ranges=dict(erm={"a.b": dict(uniform=[1])}))),
            "ranges.erm.a.b: uniform needs two numbers",
        ),
        (
            dict(
                search=dict(
                    budget=2,
                    ranges=dict(
                        erm={"custom_hooks[TeacherEMAHook].beta": dict(choice=[0.9])}
                    ),
                )
            ),
            r"erm.py has no custom_hooks\[TeacherEMAHook\].beta",
        ),
    ],
)
def test_what_is_refused(keys, message):
    with pytest.raises(UsageError, match=message):
        specs(**keys)


def test_a_method_that_nobody_gave_ranges(tmp_path):
    own = tmp_path / "mine.py"
    own.write_text(f"_base_ = '{HAC_MBCD}'\n")
    with pytest.raises(UsageError, match="mine has no ranges; give some as"):
        specs(methods=[str(own)], search=dict(budget=2))
    found = specs(methods=[str(own)], search=dict(budget=2, ranges=dict(mine={})))
    assert len(settings_of(found[1])) == 5  # those of all methods


# --- the published ranges


def test_every_method_has_ranges():
    assert {leaf.rpartition("/")[2] for leaf in LEAVES} == set(RANGES)


def _slow(leaf):
    return (
        "published" in leaf or "table" in leaf or ("epic" in leaf and "_" in leaf[14:])
    )


@pytest.mark.parametrize(
    "leaf",
    [pytest.param(x, marks=pytest.mark.long) if _slow(x) else x for x in LEAVES],
)
def test_keys_exist_and_ranges_hold_the_configs_own_value(leaf):
    path, method = str(CONFIGS / f"{leaf}.py"), leaf.partition("/")[2]
    before, made = search_space._read(path), Search(budget=2)
    cfg = Config(copy.deepcopy(before))
    for each in made.space(method):
        keys = keys_of(each.key, before)
        assert keys, each.key
        values = (is_from_scratch(before) and each.scratch) or each.range
        for key in keys:
            own = value_in(before, key)
            if key.endswith(("dropout", ".dsu")):
                continue  # the encoder's default; checked below
            assert own is not None, f"{key} is not in {leaf}"
            if isinstance(values, Choice):
                assert own in values.values
            elif not ("published" in leaf and key.endswith("weight_decay")):
                assert values.low <= own <= values.high, key
    drawn = made.draw(path, method, 1, 0)
    check_settings(cfg, drawn)  # refuses what no component takes
    after = cfg.to_dict()
    assert {key: value_in(after, key) for key in drawn} == drawn


def test_ranges_of_ours_are_the_published_value_times_and_by_ten():
    for each in (each for own in RANGES.values() for each in own):
        if isinstance(each.range, LogUniform) and not each.published:
            middle = np.sqrt(each.range.low * each.range.high)
            assert each.range.high / each.range.low == pytest.approx(100, rel=1e-3)
            assert f"around {middle:.3g}" in each.source
    names = [{e.name for e in (*COMMON, *own)} for own in RANGES.values()]
    sizes = [len(COMMON) + len(own) for own in RANGES.values()]
    assert [len(each) for each in names] == sizes  # no name twice


def test_the_page_has_every_range():
    page = (ROOT / "docs" / "experiments_search.md").read_text()
    ranges = dict(common=COMMON) | RANGES
    for method, each in ((m, e) for m, own in ranges.items() for e in own):
        (row,) = (
            r
            for r in page.splitlines()
            if r.startswith(f"| `{each.name}` | `{each.key}` |")
        )
        assert f"| {each.range} |" in row
        assert ("| ours" in row) == (not each.published)
        if method in (
            "common",
            "mbcd",
            "simmmdg",
            "moosa",
            "cmrf",
            "nel",
            "jat",
            "gmp",
        ):
            assert re.search(rf"\b{'all' if method == 'common' else method}\b", row)


def test_networks_from_scratch_have_ranges_of_their_own():
    drawn = [
        Search(budget=40).draw(str(CONFIGS / "synth_action" / "cmrf.py"), "cmrf", t, 0)
        for t in range(1, 40)
    ]
    rates = [each["optim_wrapper.optimizer.lr"] for each in drawn]
    assert 3.162e-5 <= min(rates) and 3.162e-4 < max(rates) <= 3.162e-3
    assert "custom_hooks.0.begin_iter" not in drawn[0]


# --- the choice


def methods(experiment, name):
    return [run for run in experiment.runs if run.spec.method == name]


def search_of(out, curves, accuracies=None, **keys):
    """A finished search: ``{method: one curve per run}``."""
    experiment = planned(out, methods=list(curves), **keys)
    for method, own in curves.items():
        runs = methods(experiment, method)
        seen = (accuracies or {}).get(method, [None] * len(runs))
        for run, curve, target in zip(runs, own, seen, strict=True):
            finish(run.folder, curve, target=target)
    return experiment


def chosen(experiment):
    frame = search.tabulate(experiment, search.read_trials(experiment))
    own = frame[frame.chosen]
    return dict(zip(own.method, own.trial, strict=True)), frame


def test_the_best_epoch_on_the_sources_chooses_and_ties_go_to_the_earlier(tmp_path):
    curves = dict(
        erm=[[0.2, 0.5], [0.7, 0.1], [0.6, 0.69], [0.7, 0.3]],  # 0.7 twice
        mbcd=[[0.9, 0.1], [0.2, 0.3], [0.1, 0.1], [0.95, 0.9]],
    )
    found, frame = chosen(search_of(tmp_path, curves, search=dict(budget=4)))
    assert found == dict(erm=1, mbcd=3)
    assert frame[frame.method == "erm"]["rank"].tolist() == [4, 1, 3, 2]
    assert frame[frame.method == "erm"].validation.tolist() == [0.5, 0.7, 0.69, 0.7]


def test_trials_count_by_their_mean_over_seeds(tmp_path):
    curves = dict(erm=[[0.4], [0.5], [0.8], [0.1], [0.1], [0.8]])
    experiment = search_of(tmp_path, curves, search=dict(budget=3, seeds_per_trial=2))
    found, frame = chosen(experiment)
    assert found == dict(erm=0)  # all are 0.45
    assert frame.validation.tolist() == pytest.approx([0.45] * 3)
    assert frame.sd.tolist() == pytest.approx(
        [0.1 / 2**0.5, 0.7 / 2**0.5, 0.7 / 2**0.5]
    )


def test_the_target_has_no_part_in_it(tmp_path):
    curves = dict(erm=[[0.5], [0.7], [0.6]])
    for name, seen in (("a", [0.9, 0.1, 0.8]), ("b", [0.1, 0.9, 0.2])):
        experiment = search_of(
            tmp_path / name, curves, dict(erm=seen), search=dict(budget=3)
        )
        assert chosen(experiment)[0] == dict(erm=1)
    trials = search.read_trials(experiment)
    assert [search.target_accuracy(t, "source") for t in trials] == [0.1, 0.9, 0.2]
    before = chosen(experiment)[1]
    for run in experiment.runs:  # without anything about the target
        run.folder.results_file("source").unlink()
    assert chosen(experiment)[0] == dict(erm=1)
    pd.testing.assert_frame_equal(chosen(experiment)[1], before)
    assert np.isnan(search.target_accuracy(trials[0], "source"))


def test_a_watched_target_does_not_choose_either(tmp_path):
    experiment = planned(tmp_path, methods=["erm"], search=dict(budget=2))
    for run, source, target in zip(
        experiment.runs, ([0.5, 0.6], [0.4, 0.3]), ([0.1, 0.1], [0.9, 0.9]), strict=True
    ):
        finish(run.folder, source)
        (path,) = run.folder.path.glob("*/vis_data/scalars.json")
        lines = path.read_text().splitlines()
        path.write_text(
            "\n".join(
                line.replace("{", f'{{"target/top1": {value}, ')
                for line, value in zip(lines, target, strict=True)
            )
        )
    assert chosen(experiment)[0] == dict(erm=0)


def test_left_out_sources_can_choose(tmp_path):
    experiment = planned(
        tmp_path, methods=["erm"], select=["source", "leave_one_source_out"],
        search=dict(budget=2, by="leave_one_source_out"),
    )  # fmt: skip
    own = [r for r in experiment.runs if r.spec.purpose == "grid"]
    # By the sources' own clips trial 1 would be chosen; of what was left out, means by
    # epoch are 0.5, 0.55 for trial 0 and 0.45, 0.5 for trial 1, single maxima higher.
    for run, source in zip(own, ([0.6], [0.9]), strict=True):
        finish(run.folder, source)
    left = {0: ([0.4, 0.6], [0.6, 0.5]), 1: ([0.8, 0.1], [0.1, 0.9])}
    for run in experiment.runs:
        if run.spec.purpose == "grid":
            continue
        number = read_trial_name(run.spec.variant)[1]
        curve = left[number][["animal", "cartoon"].index(run.spec.target[0])]
        finish(run.folder, curve, column="target/top1")
    found, frame = chosen(experiment)
    assert found == dict(erm=0)
    assert frame.validation.tolist() == pytest.approx([0.55, 0.5])
    assert len(experiment.runs) == 2 + 2 * 2  # none leaves out the target itself
    assert all("human" not in r.spec.target for r in experiment.runs if r not in own)


def test_nothing_is_chosen_before_all_have_ended(tmp_path):
    curves = dict(erm=[[0.5], [0.7], [0.6]], mbcd=[[0.5], [0.7], [0.6]])
    experiment = search_of(tmp_path, curves, search=dict(budget=3))
    methods(experiment, "erm")[2].folder.note(state="interrupted")
    found, frame = chosen(experiment)
    assert found == dict(mbcd=1)
    assert frame[frame.method == "erm"]["rank"].tolist()[:2] == [2, 1]
    trials = search.read_trials(experiment)
    with pytest.raises(UsageError, match="1 trials have not ended"):
        search.final_grid(experiment, trials, frame)
    # One that failed has had its chance.
    methods(experiment, "erm")[2].folder.note(state="failed")
    methods(experiment, "erm")[1].folder.note(state="failed")
    found, frame = chosen(experiment)
    assert found == dict(erm=0, mbcd=1)
    methods(experiment, "erm")[0].folder.note(state="failed")
    frame = chosen(experiment)[1]
    assert search.summarise(frame).failed.tolist() == [3, 0]
    with pytest.raises(UsageError, match="no trial of erm human has a validation"):
        search.final_grid(experiment, trials, frame)


def test_a_method_with_more_trials_is_refused(tmp_path):
    curves = dict(erm=[[0.5], [0.7]], mbcd=[[0.5], [0.7]])
    experiment = search_of(tmp_path, curves, search=dict(budget=2))
    listed = read_json(tmp_path / "runs.json")
    write_json(tmp_path / "runs.json", dict(runs=listed["runs"][:-1]))
    with pytest.raises(UsageError, match="gets 2 runs of the search, but mbcd has 1"):
        search.read_trials(Experiment.open(tmp_path, ROOT))
    assert len(search.read_trials(experiment)) == 4
    with pytest.raises(UsageError, match="holds no search"):
        search.read_trials(planned(tmp_path / "b", methods=["erm"]))


def test_the_chosen_are_trained_with_the_grids_seeds(tmp_path):
    experiment = planned(
        tmp_path, methods=["erm", "mbcd"], targets=["human", "cartoon"], seeds=[0, 1],
        modalities=[["video", "audio"]], options={"train_cfg.max_epochs": 4},
        reference="erm", search=dict(budget=3),
    )  # fmt: skip
    best = {("erm", "human"): 0, ("erm", "cartoon"): 2, ("mbcd", "human"): 1,
            ("mbcd", "cartoon"): 1}  # fmt: skip
    for run in experiment.runs:
        number = read_trial_name(run.spec.variant)[1]
        wanted = best[run.spec.method, run.spec.target[0]]
        finish(run.folder, [0.9 if number == wanted else 0.1])
    trials = search.read_trials(experiment)
    content = search.final_grid(experiment, trials, search.tabulate(experiment, trials))
    grid = Grid.of(yaml.safe_load(yaml.safe_dump(content)))
    assert grid.search is None and grid.reference == "erm"
    found = grid.specs(CONFIGS)
    assert [(s.name, s.seed) for s in found[:4]] == [
        ("erm", 0), ("erm", 1), ("mbcd", 0), ("mbcd", 1),
    ]  # fmt: skip
    assert len(found) == 2 * 2 * 2
    for spec in found:
        wanted = best[spec.method, spec.target[0]]
        (trial,) = (
            run.spec
            for run in methods(experiment, spec.method)
            if run.spec.target == spec.target
            and run.spec.variant == trial_name(0, wanted)
        )
        assert spec.settings == trial.settings and "train_cfg.max_epochs=4" in (
            spec.settings
        )
        assert dataclasses.replace(trial, variant="", seed=spec.seed) == spec
    grid.targets = ["animal"]
    with pytest.raises(UsageError, match="no choice for hac erm video audio to-animal"):
        grid.specs(CONFIGS)


def test_repeated_searches(tmp_path):
    curves = dict(erm=[[0.5], [0.7], [0.6], [0.9], [0.2], [0.3]])
    seen = dict(erm=[0.1, 0.5, 0.9, 0.6, 0.9, 0.9])
    experiment = search_of(
        tmp_path, curves, seen, search=dict(budget=2, seed=[0, 1, 2]), reference="erm"
    )
    trials = search.read_trials(experiment)
    frame = search.tabulate(experiment, trials)
    assert frame[frame.chosen].trial.tolist() == [1, 1, 1]
    frame["target_accuracy"] = [search.target_accuracy(t, "source") for t in trials]
    (row,) = search.over_searches(frame).itertuples()
    values = [0.5, 0.6, 0.9]
    assert row.searches == 3 and row.mean == pytest.approx(np.mean(values))
    assert row.se == pytest.approx(np.std(values, ddof=1) / 3**0.5)
    content = search.final_grid(experiment, trials, frame)
    assert "reference" not in content
    found = Grid.of(content).specs(CONFIGS)
    assert [s.name for s in found] == ["erm+search0", "erm+search1", "erm+search2"]


# --- the budget


def test_expected_best_against_all_draws():
    values = [0.3, 0.9, 0.5, 0.5]
    expected = [
        np.mean([max(draw) for draw in itertools.product(values, repeat=n)])
        for n in range(1, 5)
    ]
    np.testing.assert_allclose(search.expected_best(values), expected)


def test_best_so_far(tmp_path):
    curves = dict(erm=[[0.5], [0.4], [0.6], [0.2]])
    experiment = search_of(tmp_path, curves, search=dict(budget=4))
    methods(experiment, "erm")[1].folder.note(state="failed")
    frame = chosen(experiment)[1]
    found = search.by_budget(frame)
    assert found.budget.tolist() == [1, 2, 3, 4]
    assert found.best.tolist() == [0.5, 0.5, 0.6, 0.6]
    # Trial 0 was not drawn and trial 1 failed: two are left.
    assert found.expected.tolist()[:2] == pytest.approx([0.4, 0.5])
    assert found.expected.isna().tolist() == [False, False, True, True]


def test_points_of_the_figures(tmp_path):
    curves = dict(mbcd=[[0.5], [0.4], [0.6]])
    experiment = search_of(tmp_path, curves, search=dict(budget=3))
    frame = chosen(experiment)[1]
    found = search.points(frame, Search(budget=3))
    beta = found[found.hyper_parameter == "beta"]
    drawn = [
        settings_of(run.spec)["custom_hooks.0.beta"] for run in experiment.runs[1:]
    ]
    assert beta.value.tolist() == [0.999, *map(float, drawn)]  # trial 0: the config's
    assert beta.validation.tolist() == [0.5, 0.4, 0.6]
    assert set(beta.scale) == {"Below1"} and beta.chosen.tolist() == [False] * 2 + [
        True
    ]
    # MBCD's config leaves feature dropout to the encoder.
    values = values_of(Search(budget=3), experiment.runs[0].spec)
    assert values["feature_dropout"] is None and values["lr"] == 1e-4
    assert (found.hyper_parameter == "feature_dropout").sum() == 2


@pytest.fixture
def undrawn(monkeypatch):
    """Figures that would be written: ``[(path, figure, data)]``."""
    found = []

    def keep(figure, path, data):
        plt.close(figure)
        found.append((path, figure, data))
        return [path]

    monkeypatch.setattr(search_figures, "save_figure", keep)
    return found


def test_the_figure_of_values(tmp_path, undrawn):
    curves = dict(mbcd=[[0.5], [0.4], [0.6]])
    experiment = search_of(tmp_path, curves, search=dict(budget=3))
    data = search.points(chosen(experiment)[1], Search(budget=3))
    search_figures.draw_values(data, tmp_path / "values")
    ((_, figure, written),) = undrawn
    pd.testing.assert_frame_equal(written, data)
    panels = {ax.get_xlabel(): ax for ax in figure.axes if ax.get_visible()}
    assert set(panels) == {
        "lr", "weight_decay", "feature_dropout", "1 - beta", "inner_lr", "distillation",
    }  # fmt: skip
    assert panels["lr"].get_xscale() == panels["1 - beta"].get_xscale() == "log"
    assert panels["feature_dropout"].get_xscale() == "linear"
    every, ringed = panels["1 - beta"].collections
    beta = [float(value) for value in data[data.hyper_parameter == "beta"].value]
    expected = np.stack([1 - np.array(beta), [50, 40, 60]], 1)
    np.testing.assert_allclose(every.get_offsets(), expected)
    np.testing.assert_allclose(ringed.get_offsets(), expected[2:])


def test_the_figure_of_the_budget(tmp_path, undrawn):
    curves = dict(erm=[[0.5], [0.4], [0.6]] * 2, mbcd=[[0.2], [0.7], [0.6]] * 2)
    experiment = search_of(
        tmp_path, curves, search=dict(budget=3), targets=["human", "animal"]
    )
    data = search.by_budget(chosen(experiment)[1])
    search_figures.draw_budget(data, tmp_path / "budget")
    ((_, figure, _),) = undrawn
    first, second = (ax for ax in figure.axes if ax.get_visible())
    assert [first.get_title(), second.get_title()] == ["to human", "to animal"]
    best, expected = first.get_lines()[2:]  # of mbcd
    assert best.get_xdata().tolist() == [1, 2, 3]
    assert best.get_ydata().tolist() == pytest.approx([20, 70, 70])
    # Of two drawn trials, 0.7 and 0.6: their mean, then (0.6 + 3 * 0.7) / 4.
    assert expected.get_ydata()[:2].tolist() == pytest.approx([65, 67.5])


# --- with the rest of a grid


def test_trials_of_a_method_are_measured_once(tmp_path):
    experiment = planned(tmp_path, methods=["erm", "mbcd"], search=dict(budget=5))
    needs = [planning.Need(run, 10, 10) for run in experiment.runs]
    assert planning.kinds(needs, Share()) == 2
    assert len({run.spec.alike for run in experiment.runs}) == 2 * 1
    assert experiment.runs[3].spec.alike.name == "erm"
    other = dataclasses.replace(experiment.runs[3].spec, variant="mine")
    assert other.alike == other  # not a trial
    shown = planning.table(planning.Plan(needs, 0), 1)
    assert list(shown.columns[1].cells) == ["erm", "mbcd"]
    assert list(shown.columns[3].cells) == ["5", "5"]
    finish(experiment.runs[0].folder, [0.5])
    finish(methods(experiment, "mbcd")[0].folder, [0.5])
    methods(experiment, "mbcd")[0].folder.note(seconds=dict(train=30.0))
    assert status.forecast(experiment.runs) == 4 * 10 + 4 * 30


def test_command_line(tmp_path, capsys, undrawn):
    curves = dict(erm=[[0.5], [0.7], [0.6]], mbcd=[[0.5], [0.7], [0.8]])
    seen = dict(erm=[0.1234] * 3, mbcd=[0.1234] * 3)
    experiment = search_of(tmp_path, curves, seen, search=dict(budget=3))
    assert tool.main(["search", "--out", str(tmp_path), "--trials"]) == 0
    said = capsys.readouterr().out
    assert "trial 2:" in said and "80.00" in said and "12.34" not in said
    files = {path.name for path in (tmp_path / "search").iterdir()}
    assert files == {"trials.csv", "choices.csv", "final.yaml"}
    assert [path.name for path, *_ in undrawn] == [
        "budget_hac", "values_hac_erm", "values_hac_mbcd",
    ]  # fmt: skip
    trials = pd.read_csv(tmp_path / "search" / "trials.csv")
    assert "target_accuracy" not in trials
    assert trials[trials.chosen].trial.tolist() == [1, 2]
    lr = float(settings_of(experiment.runs[1].spec)["optim_wrapper.optimizer.lr"])
    assert trials.lr[1] == lr
    choices = pd.read_csv(tmp_path / "search" / "choices.csv")
    assert choices.default.tolist() == [0.5, 0.5]
    assert choices.validation.tolist() == [0.7, 0.8]
    assert (
        tool.main(["search", "--out", str(tmp_path), "--trials", "--show-target"]) == 0
    )
    said = capsys.readouterr().out
    assert "12.34" in said and "it chose nothing" in said
    # The grid of the chosen ones, as the command line reads it.
    grid = Grid.read(str(tmp_path / "search" / "final.yaml"))
    assert [s.variant for s in grid.specs(CONFIGS)] == ["", ""]
    with pytest.raises(SystemExit):
        tool.main(["table", "--out", str(tmp_path)])
    assert "is a search, whose trials are no result" in capsys.readouterr().err


def test_a_search_that_goes_on_withdraws_its_choice(tmp_path, capsys, undrawn):
    experiment = search_of(tmp_path, dict(erm=[[0.5], [0.7]]), search=dict(budget=2))
    assert tool.main(["search", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "search" / "final.yaml").exists()
    experiment.runs[1].folder.note(state="interrupted")
    assert tool.main(["search", "--out", str(tmp_path)]) == 0
    assert "1 trials have not ended" in capsys.readouterr().out
    assert not (tmp_path / "search" / "final.yaml").exists()
    for run in experiment.runs:
        run.folder.note(state="waiting")
    assert tool.main(["search", "--out", str(tmp_path)]) == 0  # nothing to draw
    assert "0/2" in capsys.readouterr().out


@pytest.mark.long
def test_a_real_search_and_what_it_chose(repo, tiny_data, tmp_path, capsys, undrawn):
    out, final = tmp_path / "search", tmp_path / "final"
    options = {f"{x}_dataloader.num_workers": 0 for x in ("train", "val", "test")}
    options |= {f"{x}_dataloader.persistent_workers": False for x in cli.SPLITS}
    content = dict(
        datasets=["synth_action"], methods=["erm", "mbcd"], targets=["sketch"],
        data_root=str(tiny_data), select=["source"], search=dict(budget=2),
        options=options | {"train_cfg.max_epochs": 1, "train_cfg.val_interval": 1},
        modalities=[["audio", "flow"]],
    )  # fmt: skip
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(content))
    assert tool.main(["run", str(path), "--out", str(out), "--jobs", "1"]) == 0
    assert tool.main(["search", "--out", str(out)]) == 0
    trials = pd.read_csv(out / "search" / "trials.csv")
    assert trials.validation.between(0, 1).all() and trials.state.eq("finished").all()
    for run in Experiment.open(out, ROOT).runs:  # the drawn values arrived
        config = run.folder.known["config"]
        for key, value in settings_of(run.spec).items():
            if key.endswith((".lr", ".beta", "weight_decay")):
                assert value_in(config, key) == float(value)
    grid = str(out / "search" / "final.yaml")
    assert tool.main(["run", grid, "--out", str(final), "--jobs", "1"]) == 0
    capsys.readouterr()
    assert tool.main(["table", "--out", str(final)]) == 0
    said = capsys.readouterr().out
    assert "MBCD" in said and "trial" not in said
