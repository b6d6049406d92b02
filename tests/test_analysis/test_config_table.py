"""What the configs resolve to, against the numbers that were published."""

import os
from pathlib import Path

import pytest

from mmaction_mbcd.analysis.config_table import find_configs, protocol, settings
from tests_support import ROOT, load_tool

CONFIGS = ROOT / "configs" / "mbcd"
SPLITS = Path(os.environ.get("MBCD_SPLITS") or ROOT.parent / "shared/data/splits")


@pytest.fixture
def real(tmp_path):
    if not SPLITS.is_dir():
        pytest.skip(f"the real split files are not in {SPLITS} (set MBCD_SPLITS)")
    (tmp_path / "HAC_Splits").symlink_to(SPLITS / "hac")
    (tmp_path / "MM-SADA_Domain_Adaptation_Splits").symlink_to(SPLITS / "epic")
    return str(tmp_path)


def rows(table, columns):
    return [tuple(row) for row in table[columns].itertuples(index=False)]


@pytest.mark.parametrize(
    ("dataset", "multi", "single"),
    [
        (
            "hac",
            # target, train, source validation, whole target, steps at batch 16
            [
                ("human", 1600, 394, 1387, 100),
                ("animal", 1981, 494, 906, 123),
                ("cartoon", 1841, 452, 1088, 115),
            ],
            {"human": (1111, 69), "animal": (730, 45), "cartoon": (870, 54)},
        ),
        (
            "epic_kitchens",
            [
                ("D1", 6392, 1724, 1978, 399),
                ("D2", 5440, 1409, 3245, 340),
                ("D3", 4038, 1185, 4871, 252),
            ],
            {"D1": (1543, 96), "D2": (2495, 155), "D3": (3897, 243)},
        ),
    ],
)
def test_the_published_protocol(real, dataset, multi, single):
    table = protocol(CONFIGS / dataset / "erm.py", real)
    columns = ["target", "N_train", "N_val", "N_test", "steps"]
    assert rows(table[:3], columns) == multi
    assert (table["N_in_domain"] == table["N_val"]).all()
    assert len(table) == 9
    for row in table[3:].to_dict("records"):
        assert (row["N_train"], row["steps"]) == single[row["sources"]]
        assert row["target"] != row["sources"]
        whole = {name: n for name, _, _, n, _ in multi}
        assert row["N_test"] == whole[row["target"]]


def test_one_protocol_for_all_and_the_published_ones():
    table = settings(find_configs(CONFIGS)).set_index("config")
    paper = table[table.index.str.match("(hac|epic_kitchens)/")]
    assert len(paper) == 24 + 19  # of EPIC-Kitchens and of HAC
    for column, value in dict(epochs=20, batch=16, lr=1e-4, weight_decay=1e-4).items():
        assert (paper[column] == value).all(), column
    assert (paper["schedule"] == "constant").all()
    published = table[table.index.str.startswith("published/")]
    assert len(published) == 2 * 9
    short = published[published["epochs"] == 15]
    assert set(short["method"]) == {"JAT", "GMP", "NEL", "CMRF"}
    undecayed = published[published["weight_decay"] == 0]
    assert set(undecayed["method"]) == {"JAT", "GMP"}
    assert published.loc[published["method"] == "NEL", "schedule"].eq(
        "CosineAnnealingLR"
    ).all()  # fmt: skip
    assert (table.loc[table["method"] == "NEL", "views"] == 2).all()
    assert (table.loc[table["method"] == "CMRF", "evaluated"] == "student").all()
    assert (table.loc[table["method"] == "MBCD", "evaluated"] == "teacher").all()


def test_the_tool_prints_and_writes(real, tmp_path, capsys):
    tool = load_tool("list_configs")
    csv = tmp_path / "protocol.csv"
    config = str(CONFIGS / "hac" / "erm.py")
    options = ["--protocol", config, "--data-root", real, "--csv", str(csv)]
    assert tool.main(options) == 0
    out = capsys.readouterr().out
    assert "human cartoon" in out and "1981" in out and "906" in out
    assert csv.read_text().splitlines()[1].startswith("animal cartoon,human,1600,394")


def test_the_tool_lists_a_folder(capsys):
    tool = load_tool("list_configs")
    assert tool.main([str(CONFIGS / "own_videos")]) == 0
    out = capsys.readouterr().out
    assert "20 configs" in out and "own_videos/mbcd" in out


def test_the_tool_s_errors(tmp_path, capsys):
    tool = load_tool("list_configs")
    assert tool.main([str(tmp_path)]) == 2
    config = str(CONFIGS / "hac" / "erm.py")
    assert tool.main(["--protocol", config, "--data-root", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert "no configs below" in err and "no split file" in err
