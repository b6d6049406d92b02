"""The grids of the paper's tables, and that of the synthetic data."""

import re
from collections import Counter

import pytest

from mmaction_mbcd.experiments.grid import Grid
from tests_support import ROOT

GRIDS = sorted((ROOT / "configs" / "grids").glob("*.yaml"))


@pytest.mark.parametrize("path", GRIDS, ids=[path.stem for path in GRIDS])
def test_every_run_exists_and_their_number_is_the_one_said(path, tiny_data):
    # The domains of the synthetic data are those that were made.
    made = {"data_root": str(tiny_data)} if path.stem == "synthetic" else {}
    grid = Grid.read(str(path), **made)
    specs = grid.specs(ROOT / "configs" / "mbcd")
    said = re.search(r"(\d+) runs", path.read_text())[1]
    assert len(specs) == int(said)
    assert grid.reference in {spec.method for spec in specs}
    assert {spec.seed for spec in specs} == {0, 1, 2}


def test_table_1_has_the_papers_cells():
    specs = Grid.read(str(ROOT / "configs/grids/table1.yaml")).specs(
        ROOT / "configs" / "mbcd"
    )
    cells = Counter((s.dataset, s.modalities, s.method, s.target) for s in specs)
    assert set(cells.values()) == {3}  # seeds
    # Six methods, four sets of modalities, three targets of each data set.
    assert len(cells) == 2 * 6 * 4 * 3
    targets = {(dataset, target) for dataset, _, _, target in cells}
    assert ("hac", ("cartoon",)) in targets and ("epic_kitchens", ("D2",)) in targets
