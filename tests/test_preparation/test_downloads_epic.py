import os
from pathlib import Path

import pytest

from helpers.download_server import Served, left, load_tool, tar_bytes, tree, zip_bytes
from mmaction_mbcd.datasets.epic_kitchens import EPICKitchensDataset
from mmaction_mbcd.datasets.epic_splits import EpicSegment, write_csv
from mmaction_mbcd.preparation.downloads import archives
from mmaction_mbcd.preparation.downloads import epic as lib
from mmaction_mbcd.preparation.downloads.epic import EPIC_PARTS, EPIC_URL
from mmaction_mbcd.preparation.epic_splits import read_splits

ROOT = Path(__file__).parents[2]
SPLITS = (
    Path(os.environ.get("MBCD_SPLITS") or ROOT.parent / "shared" / "data" / "splits")
    / "epic"
)
epic_tool = load_tool("epic")


def test_published_videos():
    if not SPLITS.is_dir():
        pytest.skip(f"the real split files are not in {SPLITS} (set MBCD_SPLITS)")
    videos = lib.epic_videos(read_splits(str(SPLITS)), ["D1", "D2", "D3"])
    counts = {d: [v for v in videos if v.domain == d] for d in ("D1", "D2", "D3")}
    assert {d: len(v) for d, v in counts.items()} == dict(D1=28, D2=19, D3=17)
    train = {d: sum(v.split == "train" for v in vs) for d, vs in counts.items()}
    assert train == dict(D1=22, D2=14, D3=13)
    # No video is used by both splits.
    assert len({v.video for v in videos}) == 64
    assert lib.EpicVideo("D1", "train", "P08_01") in videos
    assert {v.video[:3] for v in counts["D3"]} == {"P22"}
    files = lib.epic_files(Path("epic"), videos, EPIC_PARTS, EPIC_URL)
    assert len(files) == 128 and len({file.path for file in files}) == 128
    base = "https://data.bris.ac.uk/datasets/3h91syskeag572hl6tvuovwv4d/frames_rgb_flow"
    (file,) = (file for file in files if file.name == "flow/P22_17.tar")
    assert file.urls == (
        f"{base}/flow/train/P22/P22_17.tar",
        f"{base}/flow/test/P22/P22_17.tar",
    )
    assert file.path == Path("epic/archives/train/flow/P22_17.tar")
    assert file.folder == Path("epic/flow/train/D3/P22_17")


def segment(uid, video, start=2):
    return EpicSegment(
        uid=uid,
        participant_id=video[:3],
        video_id=video,
        narration="open door",
        start_timestamp="00:00:01.00",
        stop_timestamp="00:00:02.00",
        start_frame=start,
        stop_frame=start + 4,
        verb="open",
        verb_class=2,
    )


@pytest.fixture
def splits(tmp_path):
    folder = tmp_path / "splits"
    folder.mkdir()
    videos = dict(
        D1_train=["P08_01", "P08_02"],
        D1_test=["P08_03"],
        D2_train=["P01_01"],
        D2_test=["P01_02"],
        D3_train=["P22_01"],
        D3_test=["P22_02"],
    )
    uid = 0
    for name, used in videos.items():
        rows = []
        for video in used:
            uid += 1
            rows.append(segment(uid, video))
        write_csv(rows, str(folder / f"{name}.csv"))
    return folder


def frame(i):
    return f"frame_{i:010d}.jpg"


def rgb_tar(video, style="./"):
    names = {f"{style}{frame(i)}": f"{video} rgb {i}".encode() for i in range(1, 8)}
    return tar_bytes(names)


def flow_tar(video, style=""):
    return tar_bytes(
        {
            f"{style}{side}/{frame(i)}": f"{video} {side} {i}".encode()
            for side in "uv"
            for i in range(1, 5)
        }
    )


@pytest.fixture
def epic(server):
    """The D1 videos; P08_03 is in the official test folder."""
    folders = dict(P08_01="train", P08_02="train", P08_03="test")
    for video, folder in folders.items():
        style = dict(P08_01="./", P08_02="", P08_03="home/P08_03/")[video]
        place = f"{folder}/P08/{video}.tar"
        server.put(f"/e/rgb/{place}", rgb_tar(video, style))
        server.put(f"/e/flow/{place}", flow_tar(video, style))
    return server


def epic_main(server, root, splits, *more):
    arguments = [root, "--splits", splits, "--base-url", f"{server.url}/e/", "--quiet"]
    return epic_tool.main([*map(str, arguments), "--domains", "D1", *more])


def test_epic(epic, splits, tmp_path, capsys):
    root = tmp_path / "epic"
    assert epic_main(epic, root, splits) == 0
    assert "6 files: 6 fetched\n" in capsys.readouterr().out
    expected = {}
    for place in ("train/D1/P08_01", "train/D1/P08_02", "test/D1/P08_03"):
        video = place[-6:]
        for i in range(1, 8):
            expected[f"rgb/{place}/{frame(i)}"] = f"{video} rgb {i}".encode()
        for side in "uv":
            for i in range(1, 5):
                name = f"flow/{place}/{side}/{frame(i)}"
                expected[name] = f"{video} {side} {i}".encode()
    assert tree(root) == expected  # the archives are gone
    # Official train first, then test.
    asked = [(s.method, s.path) for s in epic.log if "rgb" in s.path]
    base = "/e/rgb/{}/P08/P08_03.tar"
    assert [s for s in asked if "P08_03" in s[1]] == [
        ("HEAD", base.format("train")),
        ("HEAD", base.format("test")),
        ("GET", base.format("test")),
    ]
    # Nothing is fetched twice.
    epic.log.clear()
    assert epic_main(epic, root, splits) == 0
    assert epic.log == []
    assert capsys.readouterr().out == "6 files: 6 there already\n"


def test_epic_is_what_the_dataset_reads(epic, splits, tmp_path):
    root = tmp_path / "epic"
    root.mkdir()
    splits.rename(root / "MM-SADA_Domain_Adaptation_Splits")
    arguments = ["--base-url", f"{epic.url}/e", "--quiet", "--domains", "D1"]
    assert epic_tool.main([str(root), *arguments]) == 0
    dataset = EPICKitchensDataset(
        data_root=str(root),
        pipelines=dict(video=[], flow=[]),
        target="D1",
        use="test",
        lazy_init=True,
    )
    rows = [row for split in ("train", "test") for row in dataset.rows("D1", split)]
    assert len(rows) == 3
    for row in rows:
        video = Path(row["files"]["video"])
        assert (video / frame(2)).read_bytes() == f"{video.name} rgb 2".encode()
        u, v = map(Path, row["files"]["flow"])
        assert (u / frame(1)).read_bytes() == f"{video.name} u 1".encode()
        assert (v / frame(1)).read_bytes() == f"{video.name} v 1".encode()


def test_epic_dry_run(epic, splits, tmp_path, capsys):
    root = tmp_path / "epic"
    more = ["--parts", "rgb", "--dry-run"]
    assert epic_main(epic, root, splits, *more) == 0
    lines = capsys.readouterr().out.splitlines()
    size = len(rgb_tar("P08_03", "home/P08_03/"))
    assert lines.pop().startswith("dry run: 3 files, ") and len(lines) == 3
    assert (
        f"{epic.url}/e/rgb/test/P08/P08_03.tar -> {root}/archives/test/rgb/P08_03.tar "
        f"-> {root}/rgb/test/D1/P08_03 ({size / 1000:.1f} kB)"
    ) in lines
    del epic.files["/e/rgb/train/P08/P08_01.tar"]
    assert epic_main(epic, root, splits, *more) == 1
    out, err = capsys.readouterr()
    total = len(rgb_tar("P08_02", "")) + size
    assert f"3 files, {total / 1000:.1f} kB; nothing written" in out
    url = f"{epic.url}/e/rgb/{{}}/P08/P08_01.tar".format
    urls = f"{url('train')} or {url('test')}"
    assert err == f"failed: rgb/P08_01.tar: {urls}: 404 Not Found\n"
    assert {s.method for s in epic.log} == {"HEAD"} and not root.exists()


def test_epic_keep_archives_and_the_resumption(epic, splits, tmp_path):
    root = tmp_path / "epic"
    path = "/e/rgb/train/P08/P08_01.tar"
    epic.files[path].script = ["drop 4000", "status 400"]
    more = ["--parts", "rgb", "--keep-archives"]
    assert epic_main(epic, root, splits, *more) == 1
    assert not (root / "rgb/train/D1/P08_01").exists()
    assert epic_main(epic, root, splits, *more) == 0
    assert epic.ranges(path) == [None, *["bytes=4000-"] * 2]
    kept = root / "archives/train/rgb/P08_01.tar"
    assert kept.read_bytes() == rgb_tar("P08_01", "./")
    assert len(list((root / "rgb/train/D1/P08_01").glob("frame_*.jpg"))) == 7


class KilledError(Exception):
    pass


@pytest.mark.parametrize("count", [0, 1, 4, 7])
def test_epic_killed_while_unpacking(tmp_path, count, monkeypatch):
    """There is no folder until it is whole, and the next run does it again."""
    (tmp_path / "P08_01.tar").write_bytes(flow_tar("P08_01"))
    folder = tmp_path / "flow" / "P08_01"
    arguments = ("flow", folder, tmp_path / "P08_01.tar")
    done, write = [], archives._write

    def killed(*args):
        if len(done) == count:
            raise KilledError
        done.append(write(*args))

    with monkeypatch.context() as patch:
        patch.setattr(archives, "_write", killed)
        with pytest.raises(KilledError):
            lib._unpack(*arguments)
    assert len(done) == count and left(folder.parent) == [".P08_01.part"]
    (folder.parent / ".P08_01.part" / "rest").touch()
    assert not lib._has_frames("flow", folder)
    lib._unpack(*arguments)
    assert left(folder.parent) == ["P08_01"] and left(folder) == ["u", "v"]
    assert lib._has_frames("flow", folder)


@pytest.mark.parametrize(
    "part, files, text",
    [
        ("rgb", {"readme.txt": b"1"}, "lacks frame_*.jpg: delete it, run it again"),
        ("flow", {frame(1): b"1"}, "lacks u/frame_*.jpg and v/frame_*.jpg"),
        ("flow", {f"u/{frame(1)}": b"1"}, "lacks u/frame_*.jpg and v/frame_*.jpg"),
        ("rgb", None, "is not a complete archive"),
    ],
)
def test_epic_tar_without_frames(epic, splits, tmp_path, capsys, part, files, text):
    """No folder is made of it, and the archive is kept to be looked at."""
    root, path = tmp_path / "epic", f"/e/{part}/train/P08/P08_01.tar"
    good = epic.files[path].body
    page = b"<!DOCTYPE html><p>please log in</p>" * 99
    epic.files[path].body = page if files is None else tar_bytes(files)
    assert epic_main(epic, root, splits, "--parts", part) == 1
    archive = root / "archives/train" / part / "P08_01.tar"
    error = f"failed: {part}/P08_01.tar: {archive} {text}"
    assert capsys.readouterr().err.startswith(error)
    assert not (root / part / "train/D1/P08_01").exists()
    archive.unlink()
    epic.files[path] = Served(good, etag='"v2"')
    assert epic_main(epic, root, splits, "--parts", part) == 0


@pytest.mark.parametrize(
    "part, name, place",
    [
        ("rgb", "frame_0000000001.jpg", frame(1)),
        ("rgb", "x/y/frame_0000000012.jpg", frame(12)),
        ("rgb", "._frame_0000000001.jpg", None),
        ("rgb", "frame_0000000001.png", None),
        ("flow", "u/frame_0000000001.jpg", f"u/{frame(1)}"),
        ("flow", "u/P08_01/v/frame_0000000001.jpg", f"v/{frame(1)}"),
        ("flow", "frame_0000000001.jpg", None),
    ],
)
def test_epic_place(part, name, place):
    assert lib.epic_place(part, name) == place


def test_epic_keeps_what_the_user_has(epic, splits, tmp_path, capsys):
    root = tmp_path / "epic"
    mine, other = root / "rgb/train/D1/P08_01" / frame(1), root / "rgb/train/D1/P08_02"
    for file in (mine, other / "notes.txt"):
        file.parent.mkdir(parents=True)
        file.write_bytes(b"mine")
    assert epic_main(epic, root, splits, "--parts", "rgb") == 1
    out, err = capsys.readouterr()
    assert "3 files: 1 failed, 1 fetched, 1 there already" in out
    assert tree(mine.parent) == {frame(1): b"mine"}
    # Something else is in the way.
    assert err.startswith("failed: rgb/P08_02.tar: ") and f"-> '{other}'" in err
    assert tree(other) == {"notes.txt": b"mine"}


def test_epic_audio(epic, splits, tmp_path, capsys):
    root, archive = tmp_path / "epic", tmp_path / "audio.zip"
    wavs = {
        "EPIC/D1/P08_01.wav": b"one",
        "EPIC/D1/P08_02.wav": b"two",
        "__MACOSX/._P08_02.wav": b"mac",
        "EPIC/P30_01.wav": b"other",
    }
    archive.write_bytes(zip_bytes(wavs))
    more = ["--parts", "--audio-zip", str(archive)]
    assert epic_main(epic, root, splits, *more) == 1
    out, err = capsys.readouterr()
    assert out == f"2 wavs from {archive}\n"
    assert "no wav of P08_03; tools/data/extract_audio.py" in err
    folder = root / "rgb"
    assert tree(root) == {
        "rgb/train/D1/P08_01.wav": b"one",
        "rgb/train/D1/P08_02.wav": b"two",
    }
    assert epic.log == []
    # What is there is kept.
    (folder / "train/D1/P08_01.wav").write_bytes(b"mine")
    (folder / "test/D1").mkdir(parents=True)
    (folder / "test/D1/P08_03.wav").write_bytes(b"three")
    assert epic_main(epic, root, splits, *more) == 0
    assert (folder / "train/D1/P08_01.wav").read_bytes() == b"mine"
    assert capsys.readouterr().out == f"0 wavs from {archive}\n"


def test_epic_misuse(epic, splits, tmp_path, capsys):
    root = tmp_path / "epic"
    cases = {
        ("--workers", "0"): "error: max_workers must be greater than 0",
        ("--splits", str(root)): f"{root} lacks D1_train.pkl",
        ("--audio-zip", str(splits / "D1_train.csv")): "D1_train.csv is not a zip file",
    }
    for more, text in cases.items():
        assert epic_main(epic, root, splits, *more) == 2
        assert text in capsys.readouterr().err
    for more in (("--domains", "D4"), ("--parts", "video")):
        with pytest.raises(SystemExit) as error:
            epic_main(epic, root, splits, *more)
        assert error.value.code == 2
    assert epic.log == []
    assert epic_main(epic, root, splits, "--base-url", "data/mirror") == 1
    assert "missing an 'http://' or 'https://' protocol" in capsys.readouterr().err
