import stat
import tarfile
import zipfile

import pytest

from download_support import data, free, left, make_tar, make_zip, tree
from mmaction_mbcd.preparation.downloads.archives import safe_name, unpack
from mmaction_mbcd.preparation.downloads.common import (
    DamagedArchiveError,
    DownloadError,
)

CONTENT = {"a/b.txt": b"1" * 9, "./c d.bin": data(3000), "e": b""}
TREE = {"a/b.txt": b"1" * 9, "c d.bin": data(3000), "e": b""}


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz", "x.tgz", "x.tar.xz", "x.zip"])
def test_unpack(tmp_path, name):
    path = tmp_path / name
    if name == "x.zip":
        make_zip(path, **CONTENT)
    else:
        mode = {"gz": "w:gz", "gz2": "w:gz", "xz": "w:xz", "tgz": "w:gz"}
        make_tar(path, mode=mode.get(name.rpartition(".")[2], "w"), **CONTENT)
    result = unpack(path, tmp_path / "out")
    assert tree(tmp_path / "out") == TREE
    assert sorted(result.names) == sorted(TREE)
    assert (result.size, result.left) == (3009, [])


def info(name, kind=tarfile.REGTYPE, target="", size=0):
    result = tarfile.TarInfo(name)
    result.type, result.linkname, result.size = kind, target, size
    return result


@pytest.mark.parametrize(
    "members",
    [
        [info("../evil", size=1)],
        [info("a/../../evil", size=1)],
        [info("{}/evil", size=1)],
        [info("..\\evil", size=1)],
        [info("link", tarfile.SYMTYPE, ".."), info("link/evil", size=1)],
        [info("link", tarfile.SYMTYPE, "{}"), info("link/evil", size=1)],
        [info("link", tarfile.SYMTYPE, "{}/secret")],
        [info("link", tarfile.SYMTYPE, "../secret")],
        [info("link", tarfile.LNKTYPE, "{}/secret")],
        [info("link", tarfile.LNKTYPE, "../secret")],
        [info("link", tarfile.SYMTYPE, "nothing")],
        [info("link", tarfile.SYMTYPE, "link")],
        [info("pipe", tarfile.FIFOTYPE)],
        [info("disk", tarfile.BLKTYPE)],
        [info("tty", tarfile.CHRTYPE)],
        [info("new\nline", size=1)],
    ],
)
def test_malicious_tar(tmp_path, members):
    out = tmp_path / "out"
    (tmp_path / "secret").write_text("secret")
    for member in members:
        member.name = member.name.format(tmp_path)
        member.linkname = member.linkname.format(tmp_path)
    make_tar(tmp_path / "x.tar", *members, good=b"1")
    with pytest.raises(DownloadError, match="refused"):
        unpack(tmp_path / "x.tar", out)
    assert left(tmp_path) == ["out", "secret", "x.tar"]
    assert (tmp_path / "secret").read_text() == "secret"
    assert tree(out) == {"good": b"1"}
    assert not any(p.is_symlink() for p in out.iterdir())


def test_link_inside_a_tar_becomes_a_copy(tmp_path):
    links = [info("b", tarfile.SYMTYPE, "a"), info("c", tarfile.LNKTYPE, "a")]
    make_tar(tmp_path / "x.tar", *links, a=b"123")
    unpack(tmp_path / "x.tar", tmp_path / "out")
    assert tree(tmp_path / "out") == dict(a=b"123", b=b"123", c=b"123")


def zip_info(name, mode=0, flag=0):
    result = zipfile.ZipInfo(name)
    result.external_attr = mode << 16
    result.flag_bits |= flag
    return result


@pytest.mark.parametrize(
    "member, text",
    [
        (zip_info("../evil"), "leads out of its folder"),
        (zip_info("a/../../evil"), "leads out of its folder"),
        (zip_info("/evil"), "leads out of its folder"),
        (zip_info("..\\evil"), "leads out of its folder"),
        (zip_info("\\evil"), "leads out of its folder"),
        (zip_info("C:\\evil"), "leads out of its folder"),
        (zip_info("link", stat.S_IFLNK | 0o777), "has the link 'link'"),
    ],
)
def test_malicious_zip(tmp_path, member, text):
    make_zip(tmp_path / "x.zip", member, good=b"1")
    with pytest.raises(DownloadError, match=f"{text}.*refused"):
        unpack(tmp_path / "x.zip", tmp_path / "out")
    assert left(tmp_path) == ["out", "x.zip"]
    assert tree(tmp_path / "out") == {"good": b"1"}


def test_locked_zip(tmp_path):
    path = make_zip(tmp_path / "x.zip", a=b"1")
    content = bytearray(path.read_bytes())
    for start in (b"PK\x03\x04", b"PK\x01\x02"):
        content[content.index(start) + (6 if start[2] == 3 else 8)] |= 1
    path.write_bytes(content)
    with pytest.raises(DownloadError, match="x.zip needs a password"):
        unpack(path, tmp_path / "out")


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz", "x.tar.xz", "x.zip"])
@pytest.mark.parametrize("keep", [0, 0.3, 0.9])
def test_damaged_archive(tmp_path, name, keep):
    path = tmp_path / name
    test_unpack(tmp_path, name)
    path.write_bytes(path.read_bytes()[: int(keep * 3000)])
    with pytest.raises(DamagedArchiveError, match=f"{name} is no complete tar or zip"):
        unpack(path, tmp_path / "again")
    # No half file under a final name.
    assert tree(tmp_path / "again").items() <= TREE.items()


def test_wrong_bytes_in_a_zip(tmp_path):
    path = make_zip(tmp_path / "x.zip", a=b"0123456789" * 9)
    content = bytearray(path.read_bytes())
    content[33] ^= 255
    path.write_bytes(content)
    with pytest.raises(DamagedArchiveError):
        unpack(path, tmp_path / "out")
    assert tree(tmp_path / "out") == {}


def test_one_place_for_two_members(tmp_path):
    make_zip(tmp_path / "x.zip", **{"a/f": b"1", "b/f": b"2"})
    with pytest.raises(DownloadError, match="'a/f' and 'b/f' for the same place 'f'"):
        unpack(tmp_path / "x.zip", tmp_path / "out", lambda name: name[-1])


def test_no_room_for_a_member(tmp_path, monkeypatch):
    make_zip(tmp_path / "x.zip", a=bytes(5000))
    free(monkeypatch, 4999)
    with pytest.raises(DownloadError, match="needs 5.0 kB, but .* has 5.0 kB free"):
        unpack(tmp_path / "x.zip", tmp_path / "out")
    assert left(tmp_path / "out") == []


@pytest.mark.parametrize("name", ["", ".", "./", "a/..", "/", "\\\\x\\y", "a\0b"])
def test_unsafe_name(name):
    with pytest.raises(DownloadError, match="refused"):
        safe_name(name)


@pytest.mark.parametrize(
    "name, safe",
    [("a//b/./c", "a/b/c"), ("./...", "..."), ("a\\b", "a/b"), ("x..y", "x..y")],
)
def test_safe_name(name, safe):
    assert safe_name(name) == safe
