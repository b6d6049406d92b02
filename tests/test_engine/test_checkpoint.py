"""The atomic backend."""

import pytest
from mmengine.fileio import get_file_backend

from mmaction_mbcd.engine import AtomicLocalBackend


@pytest.fixture
def backend():
    found = get_file_backend(backend_args=dict(backend="atomic_local"))
    assert isinstance(found, AtomicLocalBackend)
    return found


def test_a_failed_write_leaves_the_old_file(tmp_path, backend, monkeypatch):
    path = tmp_path / "deep" / "a.pth"
    backend.put(b"old", path)
    monkeypatch.setattr("os.fsync", lambda *_: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError, match="disk"):
        backend.put(b"new and longer", path)
    assert path.read_bytes() == b"old"


def test_text(tmp_path, backend):
    backend.put_text("grüße", tmp_path / "t.txt")
    assert (tmp_path / "t.txt").read_text(encoding="utf-8") == "grüße"


def test_removals_come_last_and_only_if_nothing_failed(tmp_path, backend):
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(b"1")
    with backend.removals_last():
        backend.remove(old)
        with backend.removals_last():
            backend.put(b"2", new)
        assert old.exists()
    assert not old.exists() and new.exists()
    with pytest.raises(RuntimeError), backend.removals_last():
        backend.remove(new)
        raise RuntimeError
    assert new.exists()
    backend.remove(new)
    assert not new.exists()


def test_a_file_written_after_its_removal_stays(tmp_path, backend):
    path = tmp_path / "best.pth"
    path.write_bytes(b"1")
    with backend.removals_last():
        backend.remove(path)
        # MMEngine writes through another instance than it removes through.
        get_file_backend(backend_args=dict(backend="atomic_local")).put(b"2", path)
    assert path.read_bytes() == b"2"
