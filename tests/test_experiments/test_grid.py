"""A grid: what is read, what is refused, which runs it has, and what tools are told."""

import json

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mmaction_mbcd.errors import UsageError
from mmaction_mbcd.experiments.grid import (
    Grid,
    RunSpec,
    _flat,
    _settings,
)
from mmaction_mbcd.experiments.identity import command
from tests_support import ROOT, load_tool

CONFIGS = ROOT / "configs" / "mbcd"
HAC = dict(datasets=["hac"], methods=["erm"])
DOMAINS = ("human", "animal", "cartoon")
train, test = load_tool("train"), load_tool("test")


@pytest.fixture
def written(tmp_path):
    """Writes a grid file: text, bytes, or keys and values."""

    def write(content):
        path = tmp_path / "grid.yaml"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            text = content if isinstance(content, str) else yaml.safe_dump(content)
            path.write_text(text)
        return str(path)

    return write


def specs(**keys):
    return Grid.of(HAC | keys).specs(CONFIGS)


def said(content):
    with pytest.raises(UsageError) as error:
        Grid.of(content).specs(CONFIGS)
    return str(error.value)


# --- reading


def test_defaults_and_flags(written):
    path = written(HAC | dict(seeds=[0, 1], data_root="there"))
    grid = Grid.read(path, seeds=[5], methods=None)
    assert grid.seeds == [5] and grid.methods == ["erm"] and grid.data_root == "there"
    assert grid.select == ("source", "last") and grid.evaluate == ("target",)


def test_a_flag_wins_over_a_datasets_own_value(written):
    own = dict(
        hac=dict(seeds=[7], options={"train_cfg.max_epochs": 3, "a.b": 1}),
        epic_kitchens=dict(seeds=[8], data_root="D"),
        own_videos=None,
    )
    path = written(dict(datasets=own, methods=["erm"], options={"c": {"d": 1}, "e": 1}))
    flags = dict(seeds=[1], datasets=["epic_kitchens", "hac"], options={"c.d": 2})
    grid = Grid.read(path, **flags, targets=["human"])
    blocks = dict(grid.blocks())
    assert list(blocks) == ["epic_kitchens", "hac"]
    assert [b.seeds for b in blocks.values()] == [[1], [1]]
    assert blocks["epic_kitchens"].data_root == "D" and blocks["hac"].data_root is None
    assert blocks["epic_kitchens"].options == {"c.d": 2, "e": 1}
    assert blocks["hac"].options == {
        "c.d": 2, "e": 1, "train_cfg.max_epochs": 3, "a.b": 1,
    }  # fmt: skip
    # Also over an option of one dataset, whichever way that is written.
    path = written(
        dict(
            datasets=dict(epic_kitchens=dict(options=dict(c=dict(d=5, f=6)))),
            methods=["erm"],
        )
    )
    (block,) = Grid.read(path, options={"c.d": 2}).blocks()
    assert block[1].options == {"c.d": 2, "c.f": 6}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds NoneType, not keys and values"),
        ("- erm\n", "holds list, not keys and values"),
        ("erm", "holds str, not keys and values"),
        ("a: [1", "cannot be read: while parsing"),
        ("methods: [erm]".encode("utf-16"), "cannot be read: 'utf-8' codec"),
        (b"\x00\x01", "cannot be read: "),
        ("!!python/object/apply:os.getcwd []", "cannot be read: could not determine"),
    ],
)
def test_files_that_are_none(written, content, message):
    with pytest.raises(UsageError) as error:
        Grid.read(written(content))
    text = str(error.value)
    assert message in text and "grid.yaml" in text and "\n" not in text


def test_no_file(tmp_path):
    with pytest.raises(UsageError, match="grid file not found: .*nothing.yaml"):
        Grid.read(str(tmp_path / "nothing.yaml"))
    with pytest.raises(UsageError, match="cannot be read: .*directory"):
        Grid.read(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(method=["erm"]), "unknown key 'method'; did you mean 'methods'?"),
        ({1: 2}, "unknown key 1"),
        (dict(datasets=[]), "datasets names none"),
        (dict(datasets="hac"), "datasets must be a list of names, or names with"),
        (dict(datasets=dict(hac=[1])), "datasets must be a list of names, or names"),
        (dict(methods="erm"), "methods must be a list of names, got 'erm'"),
        (dict(methods=[1]), "methods must be a list of names, got [1]"),
        (dict(methods=[]), "methods names none"),
        (dict(targets="cartoon"), "targets must be a list of names, got 'cartoon'"),
        (dict(targets=[False]), "targets must be a list of names, got [False]"),
        (dict(arguments="--sampling"), "arguments must be a list of words"),
        (dict(modalities=["video"]), "modalities must be a list of lists of names"),
        (dict(pairs=["human", "cartoon"]), "pairs must be a list of lists of names"),
        (dict(pairs=[["human"]]), "pairs: ['human'] is not [source, target]"),
        (dict(single_source="yes"), "single_source must be true or false, got 'yes'"),
        (dict(single_source=True, pairs=[["human", "animal"]]), "leave pairs out"),
        (dict(seeds=3), "seeds must be a list of whole numbers, got 3"),
        (dict(seeds="0-4"), "seeds must be a list of whole numbers, got '0-4'"),
        (dict(seeds=["0"]), "seeds: '0' is not a whole number"),
        (dict(seeds=[1.0]), "seeds: 1.0 is not a whole number"),
        (dict(seeds=[True]), "seeds: True is not a whole number"),
        (dict(seeds=[-1]), "seeds: -1 is not from 0 to 4294967295"),
        (dict(seeds=[2**32]), "seeds: 4294967296 is not from 0"),
        (dict(select=["sources"]), "is none of source, last, oracle, leave_one_source"),
        (dict(select=["sources"]), "; did you mean 'source'?"),
        (dict(select="source"), "select must be a list of names, got 'source'"),
        (dict(evaluate=["targt"]), "none of target, in_domain; did you mean 'target'?"),
        (dict(keep_checkpoints="some"), "keep_checkpoints must be best, all or none"),
        (dict(variants=["a"]), "variants must be names with keys and values"),
        (dict(variants=dict(a=[1])), "variants must be names with keys and values"),
        (dict(options=[1]), "options must be keys and values, got [1]"),
        (dict(data_root=3), "data_root must be a name, got 3"),
        (dict(arguments=["--amp"]), "arguments: unrecognized arguments: --amp"),
        (dict(arguments=["--sampling", "x"]), "invalid choice: 'x'"),
        (dict(arguments=["--target", "human"]), "grid's key targets is for"),
        (dict(arguments=["--cfg-options", "a=1"]), "grid's key options is for"),
        (dict(reference="mbcd"), "reference: no run is of 'mbcd'; there are erm"),
    ],
)  # fmt: skip
def test_wrong_values(change, message):
    assert message in said(HAC | change)


def test_all_problems_are_said_together():
    text = said(HAC | dict(seeds=[-1], select=["x"], keep_checkpoints="y"))
    assert all(word in text for word in ("seeds: -1", "select: 'x'", "got 'y'"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(datasets=["hack"]), "no configs of dataset 'hack' in "),
        (
            dict(datasets=["hack"]),
            "there are epic_kitchens, hac, own_videos, synth_action",
        ),
        (dict(methods=["ermm"]), "/hac/ermm.py; did you mean 'erm'?"),
        (dict(methods=["erm", "nosuch"]), "no config "),
        (dict(methods=["/nowhere/x.py"]), "no config /nowhere/x.py"),
        (dict(targets=["moon"]), "hac has no domain moon; it has human"),
        (dict(pairs=[["human", "moon"]]), "hac has no domain moon"),
        (dict(methods=["erm", "erm"]), "a run twice: hac erm to-human, seed"),
        (dict(seeds=[3, 3]), "names a run twice: hac erm to-human, seed 3"),
        (
            dict(methods=["erm", str(CONFIGS / "epic_kitchens" / "erm.py")]),
            "names a run twice: hac erm",
        ),
        (dict(datasets=dict(hac=dict(seed=[1]))), "did you mean 'seeds'?"),
        (
            dict(datasets=dict(hac=dict(select=["last"]))),
            "unknown key 'select' for one dataset; it can have methods, targets",
        ),
        (
            dict(datasets=dict(hac=dict(seeds=[-1]))),
            "grid of datasets.hac: seeds: -1",
        ),
    ],
)
def test_what_does_not_exist(change, message):
    assert message in said(HAC | change)


# --- runs


def test_order_and_number_of_runs():
    found = specs(
        methods=["erm", "mbcd"],
        targets=["cartoon", "human"],
        seeds=[3, 1],
        modalities=[["video"], ["video", "audio"]],
        variants={"": {}, "slow": {"optim_wrapper.optimizer.lr": 0.1}},
    )
    assert len(found) == 2 * 2 * 2 * 2 * 2
    told = [(s.modalities, s.target, s.name, s.seed) for s in found]
    assert told[:5] == [
        (("video",), ("cartoon",), "erm", 3),
        (("video",), ("cartoon",), "erm", 1),
        (("video",), ("cartoon",), "erm+slow", 3),
        (("video",), ("cartoon",), "erm+slow", 1),
        (("video",), ("cartoon",), "mbcd", 3),
    ]
    assert told[8][1] == ("human",) and told[16][0] == ("video", "audio")
    assert found[2].settings == ("optim_wrapper.optimizer.lr=0.1",)
    assert found[0].settings == () and found[0].data_root is None


def test_every_domain_is_a_target_by_default():
    found = specs()
    assert [s.target for s in found] == [(d,) for d in DOMAINS]
    assert {s.sources for s in found} == {()} and {s.seed for s in found} == {0}
    assert [s.place for s in found] == ["to-human", "to-animal", "to-cartoon"]


def test_single_sources_and_pairs():
    found = specs(single_source=True, targets=["animal", "human"])
    assert [(s.sources, s.target) for s in found] == [
        (("animal",), ()),
        (("human",), ()),
    ]
    assert found[0].place == "animal-to-all"
    assert len(specs(single_source=True)) == 3
    found = specs(pairs=[["animal", "human"], ["human", "cartoon"]])
    assert [s.place for s in found] == ["animal-to-human", "human-to-cartoon"]
    assert found[0].options() == ["--sources", "animal", "--target", "human"]


def test_a_dataset_has_values_of_its_own():
    found = Grid.of(
        dict(
            datasets=dict(epic_kitchens=dict(targets=["D2"], seeds=[4]), hac=None),
            methods=["erm"],
            seeds=[0, 1],
        )
    ).specs(CONFIGS)
    assert [(s.dataset, s.place, s.seed) for s in found] == [
        ("epic_kitchens", "to-D2", 4),
        *(("hac", f"to-{d}", seed) for d in DOMAINS for seed in (0, 1)),
    ]


def test_leave_one_source_out_runs_come_first():
    """Three domains: each target has two sources, so two runs choose its epoch."""
    select = ["source", "leave_one_source_out"]
    found = specs(select=select, seeds=[0, 1])
    chosen, asked = found[:12], found[12:]
    assert {s.purpose for s in chosen} == {"leave_one_source_out"}
    assert {s.purpose for s in asked} == {"grid"} and len(asked) == 6
    # Every ordered pair of different domains, once per seed.
    assert {(s.sources, s.target, s.seed) for s in chosen} == {
        ((a,), (b,), seed)
        for a in DOMAINS
        for b in DOMAINS
        if a != b
        for seed in (0, 1)
    }
    grid = Grid.of(HAC | dict(select=select))
    (own,) = [s for s in asked if s.target == ("cartoon",) and s.seed == 1]
    assert [(s.sources, s.target, s.seed) for s in grid.left_out(own, CONFIGS)] == [
        (("animal",), ("human",), 1),
        (("human",), ("animal",), 1),
    ]
    # One source: there is nothing to leave out.
    assert len(specs(select=select, single_source=True)) == 3


def test_a_config_in_a_folder_below_and_a_path(tmp_path, monkeypatch):
    grid = dict(datasets=["hac"], targets=["human"])
    names = {p.stem for p in (CONFIGS / "hac" / "published").glob("*.py")}
    methods = ["erm", f"published/{sorted(names)[0]}"]
    found = Grid.of(grid | dict(methods=methods)).specs(CONFIGS)
    assert [s.name for s in found] == methods  # two rows of a table
    (tmp_path / "mine.py").write_text(f"_base_ = {str(CONFIGS / 'hac/erm.py')!r}\n")
    monkeypatch.chdir(tmp_path)
    (spec,) = Grid.of(grid | dict(methods=["mine.py"])).specs(CONFIGS)
    assert spec.method == "mine" and spec.config == str(tmp_path / "mine.py")


def test_a_config_that_cannot_be_read(tmp_path):
    (tmp_path / "broken.py").write_text("model = (")
    text = said(HAC | dict(methods=[str(tmp_path / "broken.py")]))
    assert "broken.py cannot be read: " in text


def test_specs_survive_json():
    for spec in specs(
        modalities=[["video", "audio"]], options=dict(a=[1, "b"]), data_root="d",
        select=["leave_one_source_out"], arguments=["--sampling", "repaired"],
    ):  # fmt: skip
        again = RunSpec.read(json.loads(json.dumps(spec.describe())))
        assert again == spec and hash(again) == hash(spec)


# --- what the tools are told


def test_both_tools_read_the_options():
    (spec,) = specs(
        targets=["cartoon"], modalities=[["video", "audio"]], data_root="/data",
        options={"train_cfg.max_epochs": 2}, arguments=["--sampling", "repaired"],
        variants=dict(v={"model.head": dict(dropout=0.5)}),
    )  # fmt: skip
    line = command(spec, ["val_dataloader.num_workers=1"])
    config, *options = line
    for args in (
        train.parse_args(line),
        test.parse_args([config, "a.pth", *options]),
    ):
        assert args.config == str(CONFIGS / "hac" / "erm.py")
        assert args.data_root == "/data" and args.target == ["cartoon"]
        assert args.modalities == ["video", "audio"] and args.sources is None
        assert args.sampling == "repaired"
        assert args.cfg_options == {
            "train_cfg.max_epochs": 2,
            "model.head.dropout": 0.5,
            "val_dataloader.num_workers": 1,
        }


def arrives(value):
    """What ``tools/train.py`` makes of an option's value."""
    args = train.parse_args(["c.py", "--cfg-options", *_settings({"key": value})])
    return args.cfg_options["key"]


@pytest.mark.parametrize(
    "value",
    [
        1, -2, 0.5, 1e-05, -3.25e10, True, False, None, "word", "a/b.c-d", "", 10**20,
        [1, 2.5, "a", True, None], ["source/top1"], [], [[1, 2], ["a"]], [(0.9, 0.999)],
        (1, 2), ("a",), ("a", [1, (2, 3)]), "(not", float("inf"),
    ],
)  # fmt: skip
def test_values_arrive_as_they_are(value):
    got = arrives(value)
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ("1e-3", 0.001),  # a word for YAML, which wants 1.0e-3
        ("None", None), ("true", True), ("007", 7),
        ("[1,2]", [1, 2]), ("(56,56)", (56, 56)),
    ],
)  # fmt: skip
def test_words_are_read_as_on_a_command_line(value, read):
    assert arrives(value) == read


@pytest.mark.parametrize(
    "value",
    [
        "a,b", "two words", "'quoted'", ["a,b"], ["a b"], [""], [dict(type="A")], {},
        "[a,", [object], float("nan"), {1, 2},
    ],
    ids=repr,
)  # fmt: skip
def test_what_a_command_line_would_change_is_refused(value):
    with pytest.raises(UsageError, match="options: key: .* cannot be said on a com"):
        arrives(value)


def test_a_key_with_an_equals_sign_is_refused():
    with pytest.raises(UsageError, match="cannot be said"):
        _settings({"a=b": 1})


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False)
    | st.from_regex(r"[a-z][a-z_/.]{0,5}", fullmatch=True),
    lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple),
    max_leaves=6,
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(VALUES)
def test_any_value_arrives_or_is_refused(value):
    try:
        got = arrives(value)
    except UsageError:
        return
    assert repr(got) == repr(value) or isinstance(value, str)


def test_nested_keys_are_dotted():
    nested = {"a": {"b": {"c": 1}, "d": [2]}, "e.f": {"g": 3}, "h": {}}
    assert list(_flat(nested)) == [("a.b.c", 1), ("a.d", [2]), ("e.f.g", 3), ("h", {})]
    (spec,) = specs(
        targets=["cartoon"], options=dict(a=dict(b=1, c=2)),
        variants=dict(v={"a.b": 3}),
    )  # fmt: skip
    assert spec.settings == ("a.b=3", "a.c=2")
