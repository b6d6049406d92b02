import os
from pathlib import Path

import pytest

from media import write_split
from mmaction_mbcd.datasets import HACDataset

SPLITS = Path(
    os.environ.get("MBCD_SPLITS")
    or Path(__file__).parents[2].parent / "shared" / "data" / "splits"
)
COUNTS = dict(human=(1111, 276), animal=(730, 176), cartoon=(870, 218))


def build(root, use="train", **kwargs):
    kwargs.setdefault("target", "human")
    kwargs.setdefault("absent_ok", "video")  # rows alone: there are no files
    return HACDataset(data_root=str(root), use=use, pipelines=dict(video=[]), **kwargs)


@pytest.fixture
def real(tmp_path):
    if not (SPLITS / "hac").is_dir():
        pytest.skip(f"the real split files are not in {SPLITS} (set MBCD_SPLITS)")
    (tmp_path / "HAC_Splits").symlink_to(SPLITS / "hac")
    return tmp_path


@pytest.mark.parametrize("target", COUNTS)
def test_published_counts(real, target):
    others = {d: n for d, n in COUNTS.items() if d != target}
    train = build(real, target=target)
    assert train.counts == {d: n[0] for d, n in others.items()}
    # The published steps per epoch at batch 16; the last, smaller batch is dropped.
    steps = dict(human=100, animal=123, cartoon=115)
    assert len(train) // 16 == steps[target]
    for use in ("val", "in_domain"):
        counts = build(real, use, target=target).counts
        assert counts == {d: n[1] for d, n in others.items()}
    assert len(build(real, "test", target=target)) == sum(COUNTS[target])
    only = build(real, "test", target=target, eval_split="test")
    assert len(only) == COUNTS[target][1]


def test_human_clips_in_both_splits(real):
    data = build(real, "test", target="human")
    names = [data.get_data_info(i)["sample_id"] for i in range(len(data))]
    assert len(names) == 1387 and len(set(names)) == 1363
    assert (data.metainfo["N"], data.metainfo["clips"]) == (1387, 1363)
    assert len(build(real, "test", target="human", overlap="drop")) == 1363
    sources = dict(target="animal", sources=["human", "cartoon"])
    assert build(real, **sources, overlap="drop").counts["human"] == 1111 - 24


def test_all_seven_labels(real):
    data = build(real)
    labels = {data.get_data_info(i)["label"] for i in range(len(data))}
    assert labels == set(range(7))


def test_file_name_with_a_space(real):
    data = build(real, sources="cartoon")
    infos = [data.get_data_info(i) for i in range(len(data))]
    (info,) = [i for i in infos if " " in i["sample_id"]]
    assert info["sample_id"] == "cartoon/drinking_54 " and info["label"] == 3
    folder = f"{real}/cartoon"
    assert info["files"] == dict(
        video=f"{folder}/videos/drinking_54 .mp4",
        flow=(
            f"{folder}/flow/drinking_54 _flow_x.mp4",
            f"{folder}/flow/drinking_54 _flow_y.mp4",
        ),
        audio=f"{folder}/audio/drinking_54 .wav",
    )


def test_crlf_blank_lines_and_byte_order_mark(tmp_path):
    path = write_split(tmp_path, "animal", "train", [("a.mp4", 6), ("b.mp4", 0)])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + b"\r\n")
    data = build(tmp_path, sources="animal")
    infos = [data.get_data_info(i) for i in range(len(data))]
    assert [(i["sample_id"], i["label"]) for i in infos] == [
        ("animal/a", 6),
        ("animal/b", 0),
    ]


@pytest.mark.parametrize("label", ["7", "-1", "cat", "1.5", ""])
def test_label_out_of_range(tmp_path, label):
    path = write_split(tmp_path, "animal", "train", [("a.mp4", 6), ("b.mp4", label)])
    with pytest.raises(ValueError) as error:
        build(tmp_path, sources="animal")
    text = str(error.value)
    assert text.startswith(f"{path}, line 2: label {label!r} is none of the 7 classes")
    assert "watching TV" in text


@pytest.mark.parametrize(
    "name", ["../b.mp4", "/etc/b.mp4", "x/b.mp4", "../../human/videos/b.mp4", "..", ""]
)
def test_paths_that_lead_elsewhere(tmp_path, name):
    path = write_split(tmp_path, "animal", "train", [("a.mp4", 6), (name, 1)])
    with pytest.raises(ValueError) as error:
        build(tmp_path, sources="animal")
    assert str(error.value) == (
        f"{path}, line 2: {name!r} is not the name of a file in animal/videos; paths "
        "that lead elsewhere are refused"
    )


def test_malformed_line(tmp_path):
    path = write_split(tmp_path, "animal", "train", [("a.mp4", "1,2")])
    with pytest.raises(ValueError, match=r"line 1: expected `file,label`, got 'a.mp4"):
        build(tmp_path, sources="animal")
    assert path.exists()


def test_missing_split_file(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        build(tmp_path)
    text = str(error.value)
    assert f"no split file {tmp_path}/HAC_Splits/HAC_train_only_animal.csv" in text
    assert "hdong51/Human-Animal-Cartoon" in text


def test_empty_split(tmp_path):
    path = write_split(tmp_path, "animal", "train", [])
    with pytest.raises(ValueError, match="empty split: .*train_only_animal.csv has no"):
        build(tmp_path, sources="animal")
    assert path.exists()
