import json

import pytest

from helpers.download_server import left, load_tool, sha, tar_bytes, tree, zip_bytes
from mmaction_mbcd.preparation.downloads import archives
from mmaction_mbcd.preparation.downloads import hac as lib

hac_tool = load_tool("hac")

LISTING = "/api/datasets/o/hac/tree/main?recursive=true&expand=false"

CLIPS = dict(human=["h1", "h2"], animal=["a1"], cartoon=["drinking_54 "])


def hac_files(folder=""):
    """A layout with one clip that has no sound; h1 stands in both splits."""
    files = {}
    for domain, clips in CLIPS.items():
        for clip in clips:
            base = f"{folder}{domain}"
            files[f"{base}/videos/{clip}.mp4"] = f"{clip} video".encode()
            for axis in "xy":
                name = f"{base}/flow/{clip}_flow_{axis}.mp4"
                files[name] = f"{clip} flow {axis}".encode()
            if clip != "h2":
                files[f"{base}/audio/{clip}.wav"] = f"{clip} audio".encode()
        for split in ("train", "test"):
            lines = clips if split == "train" else clips[:1]
            text = "".join(f"{clip}.mp4,0\r\n" for clip in lines)
            name = f"{folder}HAC_Splits/HAC_{split}_only_{domain}.csv"
            files[name] = text.encode()
    return files


def publish(server, files, pages=1, blob=None):
    """Serves a repository; ``blob`` is the server that its files redirect to."""
    entries = [{"type": "directory", "oid": "0", "path": "human", "size": 0}]
    for path, body in files.items():
        entry = dict(type="file", oid=sha(body)[:40], size=len(body), path=path)
        if path.endswith(archives.ARCHIVES):
            entry["lfs"] = dict(oid=sha(body), size=len(body), pointerSize=134)
        entries.append(entry)
        url = f"/datasets/o/hac/resolve/main/{path}"
        if blob:
            target = blob.put(f"/blob/{path}", body)
            server.put(url, script=[f"redirect {target.replace(' ', '%20')}"] * 9)
        else:
            server.put(url, body)
    step = -(-len(entries) // pages)
    for i in range(pages):
        link = None
        if i + 1 < pages:
            link = f'<{server.url}{LISTING}&cursor={i + 1}>; rel="next"'
        text = json.dumps(entries[i * step : (i + 1) * step]).encode()
        path = f"{LISTING}&cursor={i}" if i else LISTING
        server.put(path, text, headers=dict(Link=link))


def hac_main(server, root, *more):
    arguments = [str(root), "--repo", "o/hac", "--endpoint", server.url, "--quiet"]
    return hac_tool.main([*arguments, *more])


def packed():
    """One repository, packed in as many ways as are thinkable."""
    files = hac_files()
    human = {n: b for n, b in files.items() if n.startswith("human/")}
    animal = {n[7:]: b for n, b in files.items() if n.startswith("animal/")}
    cartoon = {n[8:]: b for n, b in files.items() if n.startswith("cartoon/")}
    flow = {n: b for n, b in cartoon.items() if n.startswith("flow/")}
    repository = {n: b for n, b in files.items() if n.startswith("HAC_Splits")}
    repository |= {
        "README.md": b"read",
        ".gitattributes": b"git",
        "EPIC-KITCHENS-audio.zip": b"not wanted",
        "HAC/human.zip": zip_bytes({f"HAC/{n}": b for n, b in human.items()}),
        "animal.tar.gz": tar_bytes(
            {f"./{n}": b for n, b in animal.items()}, mode="w:gz"
        ),
        "cartoon/flow.zip": zip_bytes({n[5:]: b for n, b in flow.items()}),
    }
    for name, body in cartoon.items():
        if name not in flow:
            repository[f"cartoon/{name}"] = body
    return repository


def test_hac(server, other, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    archives = packed()  # once: a zip holds the time
    publish(server, archives, pages=3, blob=other)
    root = tmp_path / "hac"
    assert hac_main(server, root) == 0
    found = tree(root)
    markers = {n: found.pop(n) for n in list(found) if n.endswith(".unpacked")}
    assert found == {**hac_files(), "README.md": b"read", ".gitattributes": b"git"}
    flow = archives["cartoon/flow.zip"]
    assert markers["archives/cartoon/flow.zip.unpacked"] == sha(flow).encode()
    # What is left to do is named.
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == (
        "to check it: python tools/data/check.py configs/mbcd/hac/mbcd.py --quick "
        f"--data-root {root}"
    )
    # The token never left the endpoint.
    assert server.tokens() == {"Bearer hf_secret"}
    assert other.tokens() == {None} and len(other.log) > 9
    pages = [s.path for s in server.log if "/api/" in s.path]
    assert pages == [LISTING, f"{LISTING}&cursor=1", f"{LISTING}&cursor=2"]
    # A second run fetches the listing only.
    other.log.clear()
    assert hac_main(server, root) == 0
    assert other.log == []


def test_hac_changed_archive_is_unpacked_again(server, tmp_path):
    files = packed()
    publish(server, files)
    root = tmp_path / "hac"
    assert hac_main(server, root) == 0
    assert "Authorization" not in server.log[0].headers
    files["cartoon/flow.zip"] = zip_bytes({"drinking_54 _flow_x.mp4": b"new flow"})
    publish(server, files)
    assert hac_main(server, root, "--keep-archives") == 0
    flow = root / "cartoon/flow"
    assert (flow / "drinking_54 _flow_x.mp4").read_bytes() == b"new flow"
    assert (flow / "drinking_54 _flow_y.mp4").read_bytes() == b"drinking_54  flow y"
    kept = root / "archives/cartoon/flow.zip"
    assert kept.read_bytes() == files["cartoon/flow.zip"]
    # A third version fails half-way: the second one is unpacked again.
    half = zip_bytes({"drinking_54 _flow_x.mp4": b"third", "../evil": b""})
    publish(server, files | {"cartoon/flow.zip": half})
    assert hac_main(server, root) == 1
    assert (flow / "drinking_54 _flow_x.mp4").read_bytes() == b"third"
    publish(server, files)
    assert hac_main(server, root) == 0
    assert (flow / "drinking_54 _flow_x.mp4").read_bytes() == b"new flow"


def test_hac_interrupted_while_unpacking(server, tmp_path, monkeypatch, capsys):
    publish(server, packed())
    root, write = tmp_path / "hac", archives._write

    def full(opened, path):
        if path.name == "h1_flow_y.mp4":
            raise OSError(28, "No space left on device")
        write(opened, path)

    with monkeypatch.context() as patch:
        patch.setattr(archives, "_write", full)
        assert hac_main(server, root, "--workers", "1") == 1
    assert "human.zip: OSError: [Errno 28] No space" in capsys.readouterr().err
    assert not (root / "archives/HAC/human.zip.unpacked").exists()
    assert (root / "human/videos/h1.mp4").exists()
    assert (root / "archives/HAC/human.zip").exists()
    server.log.clear()
    assert hac_main(server, root) == 0
    assert [s.path for s in server.log] == [LISTING]
    # Twelve files were there, one archive was unpacked.
    assert "13 files: 1 fetched, 12 there already\n" in capsys.readouterr().out
    assert {n: b for n, b in tree(root).items() if n in hac_files()} == hac_files()


def test_hac_archive_goes_on_in_the_next_run(server, tmp_path):
    body = tar_bytes({"animal/x.bin": bytes(9000)})
    publish(server, {"animal.tar": body})
    url = "/datasets/o/hac/resolve/main/animal.tar"
    server.files[url].script = ["drop 4000", "status 404"]
    root = tmp_path / "hac"
    assert hac_main(server, root, "--keep-archives") == 1
    assert hac_main(server, root, "--keep-archives") == 1  # no split files came
    assert server.ranges(url) == [None, *["bytes=4000-"] * 2]
    assert (root / "archives/animal.tar").read_bytes() == body


def test_hac_wrong_checksum(server, tmp_path, capsys):
    files = packed()
    publish(server, files)
    url = "/datasets/o/hac/resolve/main/animal.tar.gz"
    good = files["animal.tar.gz"]
    bad = bytes([good[0] ^ 1]) + good[1:]
    server.files[url].body = bad
    root = tmp_path / "hac"
    assert hac_main(server, root) == 1
    err = capsys.readouterr().err
    assert f"its sha256 is {sha(bad)}, but {sha(good)} is published" in err
    assert err.count("failed") == 1
    assert not (root / "archives/animal.tar.gz").exists()
    assert not (root / "animal").exists()


def test_hac_without_splits(server, tmp_path, capsys):
    files = {n: b for n, b in hac_files().items() if "Splits" not in n}
    publish(server, files)
    assert hac_main(server, tmp_path / "hac") == 1
    err = capsys.readouterr().err
    assert f"failed: {tmp_path}/hac/HAC_Splits is missing" in err
    assert "SimMMDG has it, in dataset/HAC_Splits" in err


def test_hac_dry_run(server, tmp_path, capsys):
    publish(server, packed())
    root = tmp_path / "hac"
    assert hac_main(server, root, "--dry-run", "--exclude") == 0
    out = capsys.readouterr().out
    url = f"{server.url}/datasets/o/hac/resolve/main"
    archive = f"{url}/cartoon/flow.zip -> {root}/archives/cartoon/flow.zip -> {root} ("
    assert archive in out
    assert f"{url}/EPIC-KITCHENS-audio.zip -> " in out
    name = "cartoon/videos/drinking_54"
    assert f"{url}/{name}%20.mp4 -> {root}/{name} .mp4 (18 bytes)" in out
    assert [s.method for s in server.log] == ["GET"] and not root.exists()


@pytest.mark.parametrize(
    "path", ["../evil", "/etc/evil", "a/../../evil", "..\\evil", "", "a\nb"]
)
def test_hac_paths_that_lead_out(server, tmp_path, capsys, path):
    publish(server, {path: b"evil"})
    assert hac_main(server, tmp_path / "hac") == 1
    err = capsys.readouterr().err
    assert err.startswith("failed: no list of the files") and err.count("\n") == 1
    assert "refused" in err and left(tmp_path) == [] and len(server.log) == 1


@pytest.mark.parametrize(
    "body", [b'{"error": "x"}', b"<html>", b"[1]", b'[{"type": "file"}]']
)
def test_hac_malformed_listing(server, tmp_path, capsys, body):
    server.put(LISTING, body)
    assert hac_main(server, tmp_path / "hac") == 1
    err = capsys.readouterr().err
    assert err.startswith("failed: no list of the files of o/hac, revision main, from")
    assert err.count("\n") == 1 and left(tmp_path) == []


def test_hac_misuse(server, tmp_path, capsys):
    assert hac_main(server, tmp_path / "hac") == 1
    err = capsys.readouterr().err
    assert "404" in err and err.count("\n") == 1
    for more in (["--repo", "../x"], ["--endpoint", "hub.co"]):
        assert hac_main(server, tmp_path / "hac", *more) == 1
        assert capsys.readouterr().err.startswith("failed: no list of the files of")


@pytest.mark.parametrize(
    "name, archive, place",
    [
        ("HAC/human/videos/x.mp4", "", "human/videos/x.mp4"),
        ("videos/x.mp4", "human.zip", "human/videos/x.mp4"),
        ("x.mp4", "human_videos.zip", "human/videos/x.mp4"),
        ("x_flow_x.mp4", "animal/flow.tar.gz", "animal/flow/x_flow_x.mp4"),
        ("a/x.wav", "data/Cartoon.zip", "cartoon/audio/x.wav"),
        (
            "HAC_train_only_human.csv",
            "splits.zip",
            "HAC_Splits/HAC_train_only_human.csv",
        ),
        ("animal/videos/x.mp4", "Human-Animal-Cartoon.zip", "animal/videos/x.mp4"),
        ("x.mp4", "Human-Animal-Cartoon.zip", "x.mp4"),
        ("read/me.txt", "docs/human.zip", "docs/read/me.txt"),
        ("README.md", "", "README.md"),
    ],
)
def test_hac_place(name, archive, place):
    assert lib.hac_place(name, archive) == place
