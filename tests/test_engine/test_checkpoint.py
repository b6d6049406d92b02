"""The atomic backend, and which epoch is the best."""

import pytest
from mmaction.registry import METRICS
from mmengine.fileio import get_file_backend

from mmaction_mbcd.engine import AtomicLocalBackend
from toy_runner import ToyAccuracy, run_toy


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


@METRICS.register_module()
class Scripted(ToyAccuracy):
    """Answers with a list of accuracies, one after the other."""

    scores: list[float] = []  # noqa: RUF012  set by the test

    def compute_metrics(self, results):
        return {"source/top1": self.scores.pop(0)}


@pytest.mark.parametrize("stop", [None, 14])
def test_the_later_of_equal_epochs_is_the_best(tmp_path, stop):
    """As published; also where the earlier one was found before a kill."""
    Scripted.scores = [0.5, 0.75, 0.75, 0.25]
    options = dict(val_evaluator=dict(type="Scripted"))
    if stop:
        hooks = [
            dict(type="TeacherEMAHook", beta=0.9),
            dict(type="Trace", stop_at=stop),
        ]
        run_toy(tmp_path, custom_hooks=hooks, **options)
        assert (tmp_path / "best_source_top1_epoch_2.pth").is_file()
    runner = run_toy(tmp_path, resume=stop is not None, **options)
    found = [path.name for path in tmp_path.glob("best_*.pth")]
    assert found == ["best_source_top1_epoch_3.pth"]
    assert runner.message_hub.get_info("best_score") == 0.75
