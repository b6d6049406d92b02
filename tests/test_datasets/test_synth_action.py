import json

import pytest
import torch
from mmaction.registry import DATASETS
from mmengine.registry import init_default_scope

from media import pipelines, write_clip, write_split
from mmaction_mbcd.datasets import SynthActionDataset
from mmaction_mbcd.datasets.synth import SynthConfig, generate

ALL = ("video", "flow", "audio")
COMMAND = "python tools/data/make_synth_action.py"


def describe(root, **kwargs):
    made = dict(classes=["swing", "spin"], domains=["studio", "street", "sketch"])
    (root / "synth.json").write_text(json.dumps({**made, **kwargs, "seed": 0}))


def build(root, **kwargs):
    kwargs = {"target": "sketch", "pipelines": pipelines(), **kwargs}
    return SynthActionDataset(data_root=str(root), **kwargs)


def test_classes_and_domains_come_from_the_description(tmp_path):
    describe(tmp_path)
    for domain in ("studio", "street"):
        write_split(tmp_path, domain, "train", [("a.mp4", 1)], prefix="Synth")
    data = build(tmp_path, absent_ok=ALL)
    assert data.metainfo["classes"] == ("swing", "spin")
    assert data.metainfo["domains"] == ("studio", "street", "sketch")
    assert data.sources == ("studio", "street") and data.counts == dict(
        studio=1, street=1
    )
    # Another dataset in the same process keeps its own.
    describe(tmp_path, classes=["a", "b", "c"])
    assert build(tmp_path, absent_ok=ALL).metainfo["classes"] == ("a", "b", "c")
    assert data.metainfo["classes"] == ("swing", "spin")


def test_one_sample(tmp_path):
    init_default_scope("mmaction")
    describe(tmp_path)
    write_split(tmp_path, "studio", "train", [("a.mp4", 1)], prefix="Synth")
    write_clip(tmp_path, "studio", "a")
    sample = build(tmp_path, sources="studio")[0]["data_samples"]
    assert sample.gt_label.tolist() == [1] and sample.sample_id == "studio/a"


def test_no_description(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        build(tmp_path)
    assert f"{COMMAND} {tmp_path}`" in str(error.value)


@pytest.mark.parametrize("content", ["{", "[]", '{"classes": ["a"]}', '{"classes": 3}'])
def test_wrong_description(tmp_path, content):
    (tmp_path / "synth.json").write_text(content)
    with pytest.raises(ValueError, match="does not describe.*Generate it again with"):
        build(tmp_path)


def test_missing_split(tmp_path):
    describe(tmp_path)
    with pytest.raises(FileNotFoundError, match="Synth_train_only_studio.*Generate"):
        build(tmp_path)


def test_generated_dataset(tmp_path):
    config = SynthConfig(
        train_per_class=1, test_per_class=1, num_classes=2, missing_audio=0.5
    )
    generate(tmp_path, config, workers=1, progress=False)
    init_default_scope("mmaction")
    chain = pipelines(train=False, clip_len=8, interval=2, size=56)
    data = DATASETS.build(
        dict(
            type="SynthActionDataset",
            data_root=str(tmp_path),
            target="sketch",
            use="test",
            pipelines=chain,
        )
    )
    items = [data[i] for i in range(len(data))]
    assert data.counts == {"sketch": 4}
    assert sorted(int(i["data_samples"].gt_label) for i in items) == [0, 0, 1, 1]
    assert {tuple(i["inputs"]["video"].shape) for i in items} == {(3, 8, 56, 56)}
    heard = [i["data_samples"].present["audio"] for i in items]
    assert sorted(heard) == [False, False, True, True]
    # Flow is mostly near its neutral value.
    flow = torch.cat([i["inputs"]["flow"].float() for i in items], 1)
    assert abs(flow.median().item() - 128) <= 1
