import stat
import tarfile
import zipfile

import pytest

from helpers.download_server import data, free, left, tar_bytes, tree, zip_bytes
from mmaction_mbcd.preparation.downloads import archives as lib
from mmaction_mbcd.preparation.downloads.files import DownloadError

CONTENT = {"a/b.txt": b"1" * 9, "./c d.bin": data(3000), "e": b""}
TREE = {"a/b.txt": b"1" * 9, "c d.bin": data(3000), "e": b""}
NAMES = ["x.tar", "x.tar.gz", "x.tgz", "x.tar.bz2", "x.tar.xz", "x.zip"]


def pack(path, files, *members):
    mode = {"gz": "w:gz", "tgz": "w:gz", "xz": "w:xz", "bz2": "w:bz2"}
    if path.suffix == ".zip":
        path.write_bytes(zip_bytes(files, *members))
    else:
        kind = mode.get(path.suffix[1:], "w")
        path.write_bytes(tar_bytes(files, *members, mode=kind))
    return path


def unpack(archive, folder, place=lambda name: name):
    return lib.unpack(archive, folder, place)


def tar_info(name, kind=tarfile.REGTYPE, target="", size=0, pax=None):
    result = tarfile.TarInfo(name)
    result.type, result.linkname, result.size = kind, target, size
    result.pax_headers = pax or {}
    return result


def zip_info(name, mode=0):
    result = zipfile.ZipInfo(name)
    result.external_attr = mode << 16
    return result


@pytest.mark.parametrize("name", NAMES)
def test_unpack(tmp_path, name):
    pack(tmp_path / name, CONTENT)
    names = unpack(tmp_path / name, tmp_path / "out")
    assert tree(tmp_path / "out") == TREE and sorted(names) == sorted(TREE)


# A sparse file of 1 MB that is one byte in the archive.
SPARSE = dict(major="0", minor="1", size=str(1 << 20), map="0,1", numblocks="1")
SPARSE = {f"GNU.sparse.{key}": value for key, value in SPARSE.items()}

HOSTILE_TARS = {
    "up": [tar_info("../evil", size=1)],
    "up from below": [tar_info("a/../../evil", size=1)],
    "absolute": [tar_info("/evil", size=1)],
    "backslash": [tar_info("..\\evil", size=1)],
    "through a link": [
        tar_info("link", tarfile.SYMTYPE, ".."),
        tar_info("link/evil", size=1),
    ],
    "symlink": [tar_info("link", tarfile.SYMTYPE, "../secret")],
    "hard link": [tar_info("link", tarfile.LNKTYPE, "../secret")],
    "link to itself": [tar_info("link", tarfile.SYMTYPE, "link")],
    "pipe": [tar_info("pipe", tarfile.FIFOTYPE)],
    "device": [tar_info("disk", tarfile.BLKTYPE)],
    "control character": [tar_info("new\nline", size=1)],
    "sparse": [tar_info("sparse", size=1, pax=SPARSE)],
    "file as folder": [tar_info("good/evil", size=1)],
}
HOSTILE_ZIPS = {
    "up": zip_info("../evil"),
    "up from below": zip_info("a/../../evil"),
    "absolute": zip_info("/evil"),
    "absolute backslash": zip_info("\\evil"),
    "link": zip_info("link", stat.S_IFLNK | 0o777),
    "file as folder": zip_info("good/evil"),
}
HOSTILE = [("x.tar", name) for name in HOSTILE_TARS]
HOSTILE += [("x.tar.xz", name) for name in ("up", "symlink", "hard link")]
HOSTILE += [("x.zip", name) for name in HOSTILE_ZIPS]


@pytest.mark.parametrize("archive, kind", HOSTILE)
def test_hostile_archive(tmp_path, monkeypatch, archive, kind):
    """It is refused, and nothing is outside of its folder."""
    (tmp_path / "secret").write_text("secret")
    members = [HOSTILE_ZIPS[kind]] if archive == "x.zip" else HOSTILE_TARS[kind]
    if kind == "absolute" and archive != "x.zip":
        members = [members[0].replace(name=f"{tmp_path}/evil")]
    path, out = pack(tmp_path / archive, {"good": b"1"}, *members), tmp_path / "out"
    free(monkeypatch, 10_000)
    with pytest.raises((DownloadError, OSError)) as error:
        unpack(path, out)
    texts = {"sparse": "'sparse' needs 1.0 MB", "file as folder": "File exists"}
    assert texts.get(kind, "refused") in str(error.value)
    assert left(tmp_path) == ["out", "secret", archive]
    assert (tmp_path / "secret").read_text() == "secret"
    assert tree(out) == {"good": b"1"}
    assert not any(p.is_symlink() for p in out.rglob("*"))


@pytest.mark.parametrize("name", ["", ".", "./", "a/..", "/", "\\\\x\\y", "a\0b"])
def test_unsafe_name(name):
    with pytest.raises(DownloadError, match="refused"):
        lib.safe_name(name)


@pytest.mark.parametrize(
    "name, safe",
    [("a//b/./c", "a/b/c"), ("./...", "..."), ("a\\b", "a/b"), ("x..y", "x..y")],
)
def test_safe_name(name, safe):
    assert lib.safe_name(name) == safe


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("keep", [0, 0.3, 0.9])
def test_damaged_archive(tmp_path, name, keep):
    path = pack(tmp_path / name, CONTENT)
    path.write_bytes(path.read_bytes()[: int(keep * 3000)])
    with pytest.raises(DownloadError, match=f"{name} is not a complete archive"):
        unpack(path, tmp_path / "out")
    # No half file under a final name.
    assert tree(tmp_path / "out").items() <= TREE.items()


def test_wrong_bytes_in_a_zip(tmp_path):
    path = pack(tmp_path / "x.zip", {"a": b"0123456789" * 9})
    content = bytearray(path.read_bytes())
    content[33] ^= 255
    path.write_bytes(content)
    with pytest.raises(DownloadError, match="not a complete archive"):
        unpack(path, tmp_path / "out")
    assert tree(tmp_path / "out") == {}


def test_one_place_for_two_members(tmp_path):
    path = pack(tmp_path / "x.zip", {"a/f": b"1", "b/f": b"2"})
    with pytest.raises(DownloadError, match="'a/f' and 'b/f' have one place 'f'"):
        unpack(path, tmp_path / "out", lambda name: name[-1])


def test_bomb(tmp_path, monkeypatch):
    """A member is not begun that the disk cannot hold."""
    path = pack(tmp_path / "x.zip", {"a": bytes(5000)})
    free(monkeypatch, 4999)
    with pytest.raises(DownloadError, match="'a' needs 5.0 kB, but 5.0 kB are free"):
        unpack(path, tmp_path / "out")
    assert left(tmp_path / "out") == []
