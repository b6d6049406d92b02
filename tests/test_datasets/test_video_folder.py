"""A folder of videos with one table."""

import json

import pytest
from mmengine.registry import init_default_scope

from media import pipelines, write_own
from mmaction_mbcd.datasets import VideoFolderDataset, video_folder
from mmaction_mbcd.datasets.video_folder import read_annotations


@pytest.fixture(autouse=True)
def _scope():
    init_default_scope("mmaction")


def table(tmp_path, text):
    path = tmp_path / "annotations.csv"
    path.write_text(text)
    return str(path)


def many(count, label="wave", domain="garden"):
    return "".join(f"{domain}/{label}_{i}.mp4,{label},{domain}\n" for i in range(count))


def test_given_splits_extra_columns_and_order(tmp_path):
    path = table(
        tmp_path,
        "\ufeffdomain, split ,note,label,file\r\n"
        "b,train,x,run,one.mp4\r\n"
        "\r\n"
        'a,test,,"sit, down",sub/two.avi\r\n',
    )
    rows = read_annotations(path)
    assert [(r.file, r.label, r.domain, r.split, r.line) for r in rows] == [
        ("one.mp4", "run", "b", "train", 2),
        ("sub/two.avi", "sit, down", "a", "test", 4),
    ]


@pytest.mark.parametrize(("count", "held_out"), [(1, 0), (2, 1), (5, 1), (10, 2)])
def test_a_fifth_of_every_class_is_held_out(tmp_path, count, held_out):
    text = "file,label,domain\n" + many(count) + many(count, "jump")
    rows = read_annotations(table(tmp_path, text))
    for label in ("wave", "jump"):
        splits = [r.split for r in rows if r.label == label]
        assert splits.count("test") == held_out


def test_held_out_clips_do_not_depend_on_order_or_on_others(tmp_path):
    lines = many(20).splitlines(keepends=True)
    header = "file,label,domain\n"

    def held(some):
        rows = read_annotations(table(tmp_path, header + "".join(some)))
        return {r.file for r in rows if r.split == "test"}

    all_of_them = held(lines)
    assert held(lines[::-1]) == all_of_them
    assert held([*lines, many(3, "jump")]) >= all_of_them
    assert len(all_of_them - held(lines[:19])) <= 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na.mp4,x\n", r"lacks the column domain; its first line names"),
        ("a.mp4,x,y\n", r"lacks the columns file, label, domain"),
        ("file,label,domain\na.mp4,,d\n", "line 2: label is ''"),
        ("file,label,domain\na.mp4,NaN,d\n", "line 2: label is 'NaN'"),
        ("file,label,domain\n,x,d\n", "line 2: file is ''"),
        ("file,label,domain\n../a.mp4,x,d\n", "'../a.mp4' is not a path below videos"),
        ("file,label,domain\n/a.mp4,x,d\n", "'/a.mp4' is not a path below videos"),
        ("file,label,domain\nb/../../a.mp4,x,d\n", "is not a path below videos"),
        ("file,label,domain\n..\\a.mp4,x,d\n", "is not a path below videos"),
        ("file,label,domain\na.mp4,x,b/d\n", "the domain 'b/d' holds a slash"),
        (
            "file,label,domain,split\na.mp4,x,d,val\n",
            "line 2: split is 'val'; it must be train or test",
        ),
        (
            "file,label,domain\na.mp4,x,d\na.avi,x,d\n",
            "line 3: 'a.avi' stands in line 2 already",
        ),
        ("file,label,domain\n", "it has no rows"),
    ],
)
def test_faults(tmp_path, text, message):
    with pytest.raises(ValueError, match=message.replace("\\", "\\\\")):
        read_annotations(table(tmp_path, text))


def test_faults_come_together(tmp_path):
    text = "file,label,domain\n" + "a.mp4,,d\n" * 30
    with pytest.raises(ValueError) as error:
        read_annotations(table(tmp_path, text))
    lines = str(error.value).splitlines()
    assert len(lines) == 22 and lines[-1] == "  and 39 more"  # 30 labels, 29 repeated


def test_missing_table(tmp_path):
    with pytest.raises(FileNotFoundError, match="with the columns file, label, domain"):
        read_annotations(str(tmp_path / "annotations.csv"))


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    return write_own(tmp_path_factory.mktemp("own"))


def build(root, use="train", **kwargs):
    kwargs.setdefault("target", "studio")
    return VideoFolderDataset(
        data_root=str(root),
        use=use,
        pipelines=dict(video=pipelines(train=use == "train")["video"]),
        **kwargs,
    )


def test_dataset(own):
    data = build(own)
    assert data.metainfo["classes"] == ("jump", "wave")
    assert data.metainfo["domains"] == ("kitchen", "garden", "studio")
    # Two clips of each class of each domain, one of the two held out.
    assert data.counts == {"kitchen": 2, "garden": 2}
    assert build(own, "val").counts == {"kitchen": 2, "garden": 2}
    assert build(own, "test").counts == {"studio": 4}
    names = {build(own, "test").get_data_info(i)["sample_id"] for i in range(4)}
    assert names == {f"studio/clip {i}" for i in range(4)}
    info = data.get_data_info(0)
    stem = info["sample_id"]
    assert info["files"] == dict(
        video=f"{own}/videos/{stem}.mp4",
        flow=(f"{own}/flow/{stem}_flow_x.mp4", f"{own}/flow/{stem}_flow_y.mp4"),
        audio=f"{own}/audio/{stem}.wav",
    )
    sample = data[0]["data_samples"]
    assert int(sample.gt_label) == int(stem[-1]) % 2  # odd clips wave


def test_numbers_are_ordered_by_value(tmp_path):
    rows = "".join(f"{i}.mp4,{i},{'ab'[i % 2]}\n" for i in (10, 9, 2, 11))
    table(tmp_path, "file,label,domain\n" + rows)
    data = build(tmp_path, target="a", absent_ok="video")
    assert data.metainfo["classes"] == ("2", "9", "10", "11")


def test_given_classes(own):
    data = build(own, metainfo=dict(classes=["wave", "jump", "sit"]))
    assert data.metainfo["classes"] == ["wave", "jump", "sit"]
    with pytest.raises(ValueError, match=r"labels \['jump'\] that are none of"):
        build(own, metainfo=dict(classes=["wave"]))


def test_a_domain_without_held_out_clips_is_named(tmp_path):
    table(tmp_path, "file,label,domain,split\na.mp4,x,d,train\nb.mp4,x,e,test\n")
    with pytest.raises(ValueError, match="empty split: .*rows of 'd'"):
        build(tmp_path, "val", sources="d", target="e")


@pytest.mark.parametrize(
    ("settings", "kwargs", "said"),
    [
        (dict(short_side=256), {}, None),
        (dict(short_side=128), dict(flow_short_side=128), None),
        (dict(short_side=480), dict(flow_short_side=None), None),
        (dict(short_side=480), dict(modalities=["video"]), None),
        (dict(short_side=480), dict(use="val"), None),
        (dict(short_side=480), {}, "at a short side of 480 pixels"),
        (dict(short_side=None), {}, "at each video's own size"),
        ([], {}, "flow_settings.json does not say at which size"),
        (None, {}, "flow_settings.json does not say at which size"),
    ],
)
def test_flow_of_another_size_is_said(tmp_path, monkeypatch, settings, kwargs, said):
    lines = []
    monkeypatch.setattr(video_folder, "print_log", lambda text, **_: lines.append(text))
    table(tmp_path, "file,label,domain\n" + many(5) + many(5, "wave", "kitchen"))
    if settings is not None:
        (tmp_path / "flow").mkdir()
        (tmp_path / "flow/flow_settings.json").write_text(json.dumps(settings))
    kwargs = dict(target="kitchen", use="train") | kwargs
    VideoFolderDataset(
        str(tmp_path), pipelines=dict(video=[], flow=[]), lazy_init=True, **kwargs
    )
    if said is None:
        assert not lines
    else:
        (line,) = lines
        assert said in line and "--short-side 256 --overwrite" in line
