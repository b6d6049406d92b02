"""--per-target-values and --sampling: what they set, and where it ends up."""

import functools

import pytest
from mmengine.config import Config

from mmaction_mbcd import cli
from tests_support import load_tool

train, test = load_tool("train"), load_tool("test")
SETS = {"va": "video audio", "vf": "video flow", "af": "flow audio"}
SETS["vaf"] = "video audio flow"
TARGETS = dict(epic_kitchens=("D1", "D2", "D3"), hac=("human", "animal", "cartoon"))
# Of upstream's commands, per target: epochs; mask ratio; entropy weight.
MOOSA = {
    ("epic_kitchens", "va"): ("5/10/20", ".7/.7/.7", ".001/1.0/.001"),
    ("epic_kitchens", "vf"): ("15/20/15", ".7/.7/.7", ".001/1.0/.001"),
    ("epic_kitchens", "af"): ("25/10/10", ".3/.3/.3", ".001/.001/.001"),
    ("epic_kitchens", "vaf"): ("15/20/20", ".7/.7/.3", ".001/.1/.1"),
    ("hac", "va"): ("5/10/10", ".3/.7/.3", ".001/.001/.001"),
    ("hac", "vf"): ("20/20/20", ".3/.3/.3", ".001/.001/.001"),
    ("hac", "af"): ("10/10/10", ".3/.3/.7", ".001/.001/.001"),
    ("hac", "vaf"): ("10/10/20", ".7/.7/.7", ".001/.001/.001"),
}
SIMMMDG = {
    ("epic_kitchens", "va"): "20/20/25",
    ("epic_kitchens", "vf"): "15/15/15",
    ("epic_kitchens", "af"): "10/20/20",
    ("epic_kitchens", "vaf"): "10/20/15",
    ("hac", "va"): "10/10/10",
    ("hac", "vf"): "20/20/20",
    ("hac", "af"): "15/15/20",
    ("hac", "vaf"): "15/10/15",
}


def resolve(repo, config, *options, tool=train):
    middle = ["x.pth"] if tool is test else []
    path = str(repo / "configs" / "mbcd" / config)
    return tool.build_config(tool.parse_args([path, *middle, *options]))


@functools.cache
def chosen(repo, method, dataset, names, target):
    options = ["--modalities", *SETS[names].split(), "--target", target]
    config = f"{dataset}/{method}.py"
    return resolve(repo, config, *options, "--per-target-values")


def objective(cfg, kind):
    (found,) = [o for o in cfg.model.objectives if o.type == kind]
    return found


@pytest.mark.parametrize(("dataset", "names"), MOOSA)
def test_moosa(repo, dataset, names):
    rows = [text.split("/") for text in MOOSA[dataset, names]]
    for target, epochs, mask, entropy in zip(TARGETS[dataset], *rows, strict=True):
        cfg = chosen(repo, "moosa", dataset, names, target)
        assert cfg.train_cfg.max_epochs == int(epochs)
        translation = objective(cfg, "TranslationLoss")
        jigsaw = objective(cfg, "JigsawLoss")
        assert translation.mask_ratio == float(mask)
        weight = objective(cfg, "EntropyWeightedClassification").entropy_weight
        assert weight == float(entropy)
        odd = (names, target)
        assert translation.weight == (0.5 if odd == ("vaf", "cartoon") else 0.1)
        assert jigsaw.permutations == (64 if odd == ("vaf", "animal") else 128)


@pytest.mark.parametrize(("dataset", "names"), SIMMMDG)
def test_simmmdg(repo, dataset, names):
    for target, epochs in zip(
        TARGETS[dataset], SIMMMDG[dataset, names].split("/"), strict=True
    ):
        cfg = chosen(repo, "simmmdg", dataset, names, target)
        assert cfg.train_cfg.max_epochs == int(epochs)
        translation = objective(cfg, "TranslationLoss")
        odd = (names, target)
        assert translation.weight == (1.0 if odd == ("vaf", "D3") else 0.1)
        assert translation.hidden_channels == (1024 if odd == ("vaf", "D1") else 2048)


def test_without_the_option_nothing_is_chosen_by_target(repo):
    for target in TARGETS["hac"]:
        cfg = resolve(repo, "hac/moosa.py", "--target", target)
        assert cfg.train_cfg.max_epochs == 20
        assert objective(cfg, "TranslationLoss").mask_ratio == 0.3


def test_the_tested_model_has_them_too(repo, monkeypatch):
    """The translator of EPIC's D1 is half as wide: its checkpoint needs the option."""
    monkeypatch.setattr(cli, "require_file", lambda *_: None)
    options = ["--target", "D1", "--per-target-values"]
    cfg = resolve(repo, "epic_kitchens/simmmdg.py", *options, tool=test)
    assert objective(cfg, "TranslationLoss").hidden_channels == 1024


def test_they_survive_the_dumped_config(repo, tmp_path):
    cfg = chosen(repo, "moosa", "hac", "vaf", "animal")
    cfg.dump(str(tmp_path / "dumped.py"))
    again = Config.fromfile(str(tmp_path / "dumped.py"))
    assert again.to_dict() == cfg.to_dict()


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        ("hac/mbcd.py", [], "MBCD has one set of values for all targets"),
        (
            "hac/moosa.py",
            ["--sources", "human"],
            "MOOSA has no values for target .'animal', 'cartoon'.* it has D1, D2, D3, "
            "human, animal, cartoon with video audio, or video flow",
        ),
        (
            "hac/moosa.py",
            ["--modalities", "audio"],
            "no values for target cartoon with audio",
        ),
    ],
)
def test_where_there_are_none(repo, config, options, message):
    with pytest.raises(cli.UsageError, match=message):
        resolve(repo, config, *options, "--per-target-values")


def test_sampling_reaches_every_split(repo):
    for options, expected in (((), "published"), (("--sampling", "repaired"),) * 2):
        cfg = resolve(repo, "hac/published/erm.py", *options)
        found = {cfg[f"{s}_dataloader"].dataset.sampling for s in cli.SPLITS}
        assert found == {expected[-1] if options else expected}


def test_the_documented_table_is_the_applied_one(repo):
    """docs/tables.md against the configs, cell by cell."""
    text = (repo / "docs" / "tables.md").read_text()
    lines = text[text.index("| dataset | modalities |") :].splitlines()[2:]
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in lines[:8]]
    dataset, seen = "", 0
    for first, names, simmmdg, *moosa in rows:
        if first:
            dataset = {"EPIC": "epic_kitchens", "HAC": "hac"}[first.split()[0]]
        wanted = frozenset(names.split())
        (short,) = [s for s, m in SETS.items() if frozenset(m.split()) == wanted]
        columns = [
            [cell.split()[0] for cell in column.split("/")]
            for column in (simmmdg, *moosa)
        ]
        for target, own, epochs, mask, entropy in zip(
            TARGETS[dataset], *columns, strict=True
        ):
            cfg = chosen(repo, "simmmdg", dataset, short, target)
            assert cfg.train_cfg.max_epochs == int(own)
            cfg = chosen(repo, "moosa", dataset, short, target)
            assert cfg.train_cfg.max_epochs == int(epochs)
            assert objective(cfg, "TranslationLoss").mask_ratio == float(mask)
            weight = objective(cfg, "EntropyWeightedClassification").entropy_weight
            assert weight == float(entropy)
            seen += 1
    assert seen == 24
