"""Checkpoint files: no code is run, damage is named, the newest intact one is used."""

import functools
import http.server
import os
import pickle
import re
import shutil
import threading
import zipfile

import mmengine.runner
import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.model import BaseModule
from mmengine.runner import CheckpointLoader, load_checkpoint
from torch import nn

from mmaction_mbcd import checkpoint_files
from mmaction_mbcd.errors import CheckpointError


def find_latest_checkpoint(folder):
    # Looked up now: it was exchanged when the package was imported.
    return mmengine.runner.find_latest_checkpoint(str(folder))


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint with the types that MMEngine's hold."""
    hub = MessageHub("test_compat")
    for value, count in ((0.5, 2), (0.25, 3)):
        hub.update_scalar("train/loss", value, count)
    hub.update_info("best_ckpt", "best.pth")
    hub.update_info("best_score", np.float64(0.75))
    hub.update_info("epoch", np.int64(3))
    path = tmp_path / "epoch_3.pth"
    torch.save(
        {
            "meta": {"seed": 3, "epoch": 3},
            "state_dict": {"weight": torch.arange(6.0).reshape(2, 3)},
            "message_hub": hub.state_dict(),
        },
        path,
    )
    return path


def assert_loads(path):
    loaded = torch.load(path)
    assert torch.equal(loaded["state_dict"]["weight"], torch.arange(6.0).reshape(2, 3))
    hub = loaded["message_hub"]
    history = hub["log_scalars"]["train/loss"]
    assert isinstance(history, HistoryBuffer)
    values, counts = history.data
    np.testing.assert_array_equal(values, [0.5, 0.25])
    np.testing.assert_array_equal(counts, [2, 3])
    # MMEngine divides the sum of the values by the sum of the counts: 0.75 / 5.
    assert history.statistics("mean") == pytest.approx(0.15)
    assert hub["runtime_info"]["best_score"] == 0.75
    assert hub["runtime_info"]["epoch"] == 3


def test_mmengine_checkpoint_loads_by_default(checkpoint):
    assert_loads(checkpoint)


@pytest.mark.parametrize("module", ["numpy.core", "numpy._core"])
def test_checkpoints_of_both_numpy_generations_load(checkpoint, tmp_path, module):
    renamed = tmp_path / "renamed.pth"
    replaced = 0
    with zipfile.ZipFile(checkpoint) as old, zipfile.ZipFile(renamed, "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            if entry.filename.endswith("data.pkl"):
                data, replaced = re.subn(
                    rb"cnumpy\._?core\.", f"c{module}.".encode(), data
                )
            new.writestr(entry.filename, data)
    assert replaced >= 2  # _reconstruct and scalar
    assert_loads(renamed)


class Reduced:
    """Pickles as a call of ``function(*args)``."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    path, marker = tmp_path / "evil.pth", tmp_path / "marker"
    torch.save({"meta": Reduced(os.system, f"touch {marker}")}, path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (HistoryBuffer, "__init__"),
        (HistoryBuffer, "__subclasses__"),
        (HistoryBuffer, "update"),
        (np.ndarray, "tofile"),
        (np.ndarray, "min"),
    ],
)
def test_getattr_reaches_nothing_but_the_statistics(tmp_path, owner, name):
    path = tmp_path / "evil.pth"
    torch.save(Reduced(getattr, owner, name), path)
    with pytest.raises(ValueError, match=f"attribute {name!r} .* not loaded"):
        torch.load(path)


def test_getattr_result_cannot_be_called(tmp_path):
    path = tmp_path / "evil.pth"

    class Call:
        def __reduce__(self):
            return HistoryBuffer.min, (HistoryBuffer([1], [1]),)

    torch.save(Call(), path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path)


@pytest.fixture
def run(tmp_path):
    """A work directory with two checkpoints, of which the second is the latest."""
    folder = tmp_path / "run"
    folder.mkdir()
    for age, name in ((20, "epoch_9.pth"), (10, "epoch_10.pth"), (0, "best_x.pth")):
        weights = dict(weight=torch.arange(500.0), bias=torch.ones(3))
        torch.save(dict(name=name, **weights), folder / name)
        when = 1_700_000_000 - age
        os.utime(folder / name, (when, when))
    (folder / "last_checkpoint").write_text(str(folder / "epoch_10.pth"))
    return folder


def test_named_checkpoint_is_found(run):
    (run / "last_checkpoint").write_text(str(run / "epoch_9.pth"))
    assert find_latest_checkpoint(run) == str(run / "epoch_9.pth")


@pytest.mark.parametrize("original_stays", [True, False])
def test_copied_run_resumes_from_its_own_checkpoint(run, tmp_path, original_stays):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    if not original_stays:
        shutil.rmtree(run)
    assert find_latest_checkpoint(copy) == str(copy / "epoch_10.pth")


@pytest.mark.parametrize("kept", ["", "{run}", "{run}/epoch_1", "/gone/epoch_11.pth"])
def test_unusable_name_falls_back_to_the_newest_file(run, kept):
    (run / "last_checkpoint").write_text(kept.format(run=run))
    assert find_latest_checkpoint(run) == str(run / "epoch_10.pth")


def test_same_age_is_decided_by_the_number(run):
    (run / "last_checkpoint").unlink()
    for name in ("epoch_9.pth", "epoch_10.pth"):
        os.utime(run / name, (1_700_000_000, 1_700_000_000))
    assert find_latest_checkpoint(run) == str(run / "epoch_10.pth")


def test_unfinished_file_is_not_taken(run):
    (run / "last_checkpoint").unlink()
    (run / "epoch_11.pth.tmp").touch()
    assert find_latest_checkpoint(run) == str(run / "epoch_10.pth")


def test_nothing_to_resume_from(tmp_path):
    assert find_latest_checkpoint(tmp_path) is None
    assert find_latest_checkpoint(tmp_path / "missing") is None


@pytest.mark.parametrize(
    "where", ["s3://bucket/run/epoch_12.pth", "http://localhost/x.pth", "{elsewhere}"]
)
def test_a_checkpoint_elsewhere_is_refused(run, tmp_path, where):
    elsewhere = tmp_path / "elsewhere.pth"
    elsewhere.touch()
    (run / "last_checkpoint").write_text(where.format(elsewhere=elsewhere))
    with pytest.raises(CheckpointError, match="not in its folder.*--resume"):
        find_latest_checkpoint(run)


def test_a_binary_last_checkpoint_is_passed_over(run):
    (run / "last_checkpoint").write_bytes(bytes(range(128, 256)))
    assert find_latest_checkpoint(run) == str(run / "epoch_10.pth")


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 4
    path.write_bytes(content)


def tensor_position(path):
    """Where the bytes of a tensor lie in the file."""
    return path.read_bytes().index(np.arange(500, dtype=np.float32).tobytes()) + 700


def directory_entry(path, name):
    """Where an entry's record begins in the archive's directory."""
    with zipfile.ZipFile(path) as archive:
        start, stem = archive.start_dir, archive.namelist()[0].split("/")[0]
    whole = f"{stem}/{name}".encode()
    # Its name stands 46 bytes behind its beginning.
    return path.read_bytes().index(whole, start) - 46


def rename(path):
    """One bit makes data/1 another data/0: nobody looks at the first one then."""
    content = bytearray(path.read_bytes())
    place = directory_entry(path, "data/1")
    length = int.from_bytes(content[place + 28 : place + 30], "little")
    content[place + 46 + length - 1] ^= 1
    path.write_bytes(content)


def mark_as_folder(path):
    """torch reads nothing of it, and leaves what was in memory."""
    content = bytearray(path.read_bytes())
    content[directory_entry(path, "data/0") + 38] ^= 0x10
    path.write_bytes(content)


DAMAGES = {
    "differ": rename,
    "marked as a folder": mark_as_folder,
    "it is empty": lambda path: path.write_bytes(b""),
    "not a checkpoint": lambda path: path.write_text("<html>404</html>"),
    "ends after": lambda path: path.write_bytes(path.read_bytes()[:-400]),
    "checksum of": lambda path: flip(path, tensor_position(path)),
}


@pytest.mark.parametrize("reason", DAMAGES)
def test_the_newest_intact_checkpoint_is_used(run, reason, caplog):
    newest = run / "epoch_10.pth"
    assert checkpoint_files.damage(str(newest)) == ""
    DAMAGES[reason](newest)
    assert reason in checkpoint_files.damage(str(newest))
    assert find_latest_checkpoint(run) == str(run / "epoch_9.pth")
    with pytest.raises(CheckpointError, match=f"{newest} .*{reason}"):
        CheckpointLoader.load_checkpoint(str(newest))
    DAMAGES[reason](run / "epoch_9.pth")
    with pytest.raises(CheckpointError, match="no checkpoint in .* is intact"):
        find_latest_checkpoint(run)


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder and the address under which it is served; downloads are kept apart."""
    folder = tmp_path / "served"
    folder.mkdir()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))

    class Silent(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Silent, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


WAYS_IN = {
    "CheckpointLoader": lambda name: CheckpointLoader.load_checkpoint(name),
    "load_checkpoint": lambda name: load_checkpoint(nn.Linear(1, 1), name),
    "init_cfg": lambda name: BaseModule(
        init_cfg=dict(type="Pretrained", checkpoint=name)
    ).init_weights(),
}


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("way", WAYS_IN)
def test_no_way_in_runs_code(served, tmp_path, way, remote):
    folder, address = served
    marker = tmp_path / "marker"
    evil = dict(state_dict=Reduced(os.system, f"touch {marker}"))
    torch.save(evil, folder / "evil.pth")
    name = f"{address}/evil.pth" if remote else str(folder / "evil.pth")
    with pytest.raises(CheckpointError, match="it holds (posix|os).system"):
        WAYS_IN[way](name)
    assert not marker.exists()
    fine = dict(state_dict=nn.Linear(1, 1).state_dict())
    torch.save(fine, folder / "fine.pth")
    WAYS_IN[way](name.replace("evil", "fine"))


def test_an_old_pickle_is_checked_too(tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "old.pth"
    content = dict(x=Reduced(os.system, f"touch {marker}"))
    torch.save(content, path, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="could run code"):
        CheckpointLoader.load_checkpoint(str(path))
    torch.save(dict(x=1), path, _use_new_zipfile_serialization=False)
    assert CheckpointLoader.load_checkpoint(str(path)) == dict(x=1)
    assert not marker.exists()


def test_a_config_in_a_checkpoint_is_not_executed(tmp_path):
    """MMEngine executes meta['config'] as Python when it resumes."""
    path = tmp_path / "epoch_1.pth"
    torch.save(dict(meta=dict(config="import os", seed=1), state_dict={}), path)
    assert CheckpointLoader.load_checkpoint(str(path))["meta"] == dict(seed=1)


def test_the_runner_uses_it():
    from mmengine.runner import checkpoint, runner

    ours = mmengine.runner.find_latest_checkpoint
    assert ours is checkpoint_files.newest_intact
    assert runner.find_latest_checkpoint is ours
    assert checkpoint.find_latest_checkpoint is ours
