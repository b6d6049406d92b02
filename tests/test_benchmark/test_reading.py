"""What is measured of reading: the same clips in every way."""

import json

import pytest
import torch

from mmaction_mbcd.benchmark import reading
from mmaction_mbcd.benchmark.clips import write_hac_clips
from mmaction_mbcd.cli import read_config, set_datasets
from mmaction_mbcd.datasets import SampleIndex
from tests_support import ROOT, load_tool

CONFIG = ROOT / "configs" / "mbcd" / "hac" / "erm.py"


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Config, stores, and the data set in every way."""
    root = tmp_path_factory.mktemp("reading")
    write_hac_clips(root / "clips", clips=2, frames=40, size=(170, 128))
    cfg = read_config(str(CONFIG))
    set_datasets(cfg, data_root=str(root / "clips"))
    stores = reading.stores_of(cfg, root, ["pnm", "jpeg"])
    paths = {codec: store for codec, (store, *_) in stores.items()}
    return stores, reading.ways_of_reading(cfg, paths, stock=True)


def test_every_way_reads_the_same_clips(measured):
    _, ways = measured
    assert list(ways) == [reading.STOCK, reading.SOURCES, "pnm", "jpeg"]
    index = SampleIndex(1, (0, 5))
    files, pnm, jpeg = (ways[name][index]["inputs"] for name in list(ways)[1:])
    stock = ways[reading.STOCK][index]["inputs"]
    for modality, tensor in files.items():
        assert torch.equal(tensor, pnm[modality])
        assert tensor.shape == jpeg[modality].shape
    assert not torch.equal(files["video"], jpeg["video"])
    # As many frames, of the same size: what is compared is the same work.
    assert stock["video"].shape == files["video"].shape == (3, 32, 224, 224)
    assert stock["flow_x"].shape == stock["flow_y"].shape == (3, 8, 224, 224)
    assert files["flow"].shape == (2, 8, 224, 224)
    assert stock["audio"].shape == files["audio"].shape == (1, 257, 1004)


def test_sizes_and_seconds_are_of_a_clip(measured):
    stores, ways = measured
    root, size, seconds = stores["pnm"]
    entries = list(root.rglob("*.zip"))
    assert len(entries) == 8  # two of human, one of each other domain, with flow
    assert size == sum(path.stat().st_size for path in entries) / 4
    # 40 frames of 170 x 128: colour, and two components of flow.
    assert size == pytest.approx(40 * 170 * 128 * (3 + 2), rel=0.03)
    assert 0 < stores["jpeg"][1] < size / 3
    assert 0 < seconds < 10
    rows = reading.compare_readings(ways, clips=2, pairs=2)
    assert [row.name for row in rows] == list(ways)
    for row in rows:
        pairs = zip(rows[0].seconds, row.seconds, strict=True)
        assert row.ratios == [base / own for base, own in pairs]


def test_the_tool(tmp_path, capsys):
    tool, out = load_tool("benchmark/pipeline"), tmp_path / "found.json"
    size = ["--clips", "1", "--frames", "40", "--size", "64", "48"]
    effort = ["--pairs", "1", "--codecs", "pnm", "--profile", "--json", str(out)]
    assert tool.main([*size, *effort]) == 0
    found = json.loads(out.read_text())
    ways = found["results"][0]["ways"]
    assert [way["name"] for way in ways] == [reading.STOCK, reading.SOURCES, "pnm"]
    entries = {each["title"]: each["entries"] for each in found["results"][1:]}
    assert len(entries["profile of pnm"]) == 10
    assert "Reading a clip" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        tool.main(["--config", str(CONFIG)])
    assert "--config needs --data-root" in capsys.readouterr().err
