import importlib.util
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import mmengine.runner
import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub

from mmaction_mbcd import compat

ROOT = Path(__file__).parents[1]


def run_python(code, *args, path=(), **env):
    """Runs ``code`` in a fresh process that finds the package and ``path``."""
    paths = os.pathsep.join(map(str, [*path, ROOT]))
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        env={**os.environ, "PYTHONPATH": paths, **env},
        capture_output=True,
        text=True,
    )


def find_latest_checkpoint(folder):
    # Looked up now: it was exchanged when the package was imported.
    return mmengine.runner.find_latest_checkpoint(str(folder))


# --- check_versions ---


@pytest.fixture
def installed(monkeypatch):
    """The versions that check_versions sees, all supported until changed."""
    versions = {
        "torch": "2.13.0+cpu",
        "mmengine": "0.10.7",
        "mmcv-lite": "2.1.0",
        "mmaction2": "1.2.0",
        "mmpretrain": "1.2.0",
        "setuptools": "80.9.0",
    }

    def version(name):
        if name not in versions:
            raise compat.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(compat, "version", version)
    return versions


def test_what_is_installed_is_supported():
    compat.check_versions()


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"torch": "2.4.0"},
        {"torch": "2.6.0a0+ecf3bae40a.nv25.1"},
        {"mmengine": None, "onedl-mmengine": "0.10.12"},
        {"mmcv-lite": None, "mmcv": "2.0.0"},
        {"setuptools": "60.0"},
    ],
)
def test_supported_combinations_pass(installed, change):
    installed.update(change)
    for name in [name for name, found in installed.items() if found is None]:
        del installed[name]
    compat.check_versions()


@pytest.mark.parametrize(
    ("package", "found", "supported"),
    [
        ("torch", "2.3.1", ">= 2.4, < 2.14"),
        ("torch", "2.14.0", ">= 2.4, < 2.14"),
        ("mmengine", "0.9.1", ">= 0.10, < 0.11"),
        ("mmengine", "0.11.0", ">= 0.10, < 0.11"),
        ("mmaction2", "1.1.0", ">= 1.2, < 1.3"),
        ("mmpretrain", "1.0.2", ">= 1.2, < 1.3"),
        ("mmpretrain", "1.3.0", ">= 1.2, < 1.3"),
        ("setuptools", "82.0.0", ">= 60, < 82"),
    ],
)
def test_each_unsupported_version_is_named(installed, package, found, supported):
    installed[package] = found
    with pytest.raises(compat.UnsupportedVersionError) as error:
        compat.check_versions()
    (line,) = str(error.value).splitlines()[1:]
    assert line.strip().startswith(f"{package} {found} (supported: {supported})")
    assert "pip install" in line


@pytest.mark.parametrize("name", ["mmcv", "mmcv-lite"])
def test_mmcv_of_either_kind_has_one_range(installed, name):
    del installed["mmcv-lite"]
    installed[name] = "2.2.0"
    with pytest.raises(compat.UnsupportedVersionError, match="mmcv 2.2.0 .*< 2.2"):
        compat.check_versions()


def test_missing_mmcv_says_what_to_install(installed):
    del installed["mmcv-lite"]
    with pytest.raises(
        compat.UnsupportedVersionError,
        match="mmcv is not installed: pip install mmcv-lite==2.1.0",
    ):
        compat.check_versions()


def test_python_is_checked(installed, monkeypatch):
    monkeypatch.setattr(compat, "sys", SimpleNamespace(version_info=(3, 13, 0)))
    with pytest.raises(compat.UnsupportedVersionError, match=r"Python 3\.13 .*3\.13\)"):
        compat.check_versions()


def test_all_problems_are_reported_together(installed):
    installed.clear()
    installed["torch"] = "1.13.1"
    with pytest.raises(compat.UnsupportedVersionError) as error:
        compat.check_versions()
    lines = str(error.value).splitlines()[1:]
    assert [line.split()[0] for line in lines] == list(compat.SUPPORTED)


def test_an_unsupported_host_gives_one_error_at_import():
    result = run_python(
        "import importlib.metadata as metadata\n"
        "stock = metadata.version\n"
        "metadata.version = lambda n: '0.9.1' if n == 'mmengine' else stock(n)\n"
        "import mmaction_mbcd"
    )
    assert result.returncode == 1
    assert result.stderr.count("Traceback") == 1
    assert "UnsupportedVersionError: mmaction_mbcd cannot work" in result.stderr
    assert result.stderr.splitlines()[-1].strip().startswith("mmengine 0.9.1 (supp")


# --- missing and broken parts of MMAction2 and MMPretrain ---


def test_the_package_makes_the_host_importable():
    result = run_python(
        "import mmaction_mbcd, mmaction.models\n"
        "from mmaction.models.localizers import DRN\n"
        "try: DRN()\n"
        "except ImportError as error: print(error)"
    )
    assert result.returncode == 0, result.stderr
    assert "DRN is missing from the installed mmaction2 wheel" in result.stdout


def test_complete_wheel_is_not_stubbed(monkeypatch, tmp_path):
    name = "mmaction.models.localizers.drn"
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.delitem(sys.modules, f"{name}.drn", raising=False)
    folder = tmp_path / "models" / "localizers" / "drn"
    folder.mkdir(parents=True)
    (folder / "drn.py").touch()
    spec = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    compat.stub_missing_drn()
    assert name not in sys.modules


@pytest.mark.parametrize("present", [True, False])
def test_text_models_are_skipped_where_transformers_is(monkeypatch, present):
    import mmaction.utils.dependency as dependency

    monkeypatch.setattr(dependency, "WITH_MULTIMODAL", present)
    spec = object() if present else None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    compat.skip_text_models()
    assert dependency.WITH_MULTIMODAL is False


def test_absent_torchvision_is_left_alone(monkeypatch, recwarn):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    compat.declare_torchvision_ops()
    assert not recwarn


def test_unimportable_torchvision_warns(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.warns(UserWarning, match="torchvision cannot be imported"):
        compat.declare_torchvision_ops()


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        # What torchvision does when its binary did not load.
        ("torch.library.register_fake('torchvision::nms', lambda d, s, t: d)", "fine"),
        ("raise RuntimeError('of another kind')", "warned"),
        ("raise ImportError('no image library')", "warned"),
        # The binary loaded, and something else fails.
        (
            "lib = torch.library.Library('torchvision', 'DEF'); torch.keep = lib\n"
            "lib.define('nms(Tensor d) -> Tensor')\n"
            "raise RuntimeError('of another kind')",
            "warned",
        ),
    ],
)
def test_torchvision_without_its_binary_is_imported(tmp_path, body, outcome):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(f"import torch\n{body}\n")
    result = run_python(
        "import importlib.util, sys, warnings\n"
        "spec = importlib.util.spec_from_file_location('compat', sys.argv[1])\n"
        "compat = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(compat)\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    compat.declare_torchvision_ops()\n"
        "    ours = [w for w in caught if 'MMPretrain' in str(w.message)]\n"
        "print('warned' if ours else 'fine', 'torchvision' in sys.modules)",
        compat.__file__,
        path=[tmp_path],
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [outcome, str(outcome == "fine")]


# --- trust_checkpoint_types ---


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


def test_torch_before_2_6_is_left_alone(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    monkeypatch.setattr(torch.serialization, "add_safe_globals", None)
    compat.trust_checkpoint_types()


# --- resume_within_work_dir ---


@pytest.fixture
def run(tmp_path):
    """A work directory with two checkpoints, of which the second is the latest."""
    folder = tmp_path / "run"
    folder.mkdir()
    for age, name in ((20, "epoch_9.pth"), (10, "epoch_10.pth"), (0, "best_x.pth")):
        (folder / name).touch()
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


def test_checkpoint_kept_elsewhere_is_found(run, tmp_path):
    elsewhere = tmp_path / "elsewhere.pth"
    elsewhere.touch()
    (run / "last_checkpoint").write_text(str(elsewhere))
    assert find_latest_checkpoint(run) == str(elsewhere)


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


def test_remote_checkpoint_is_kept(run):
    (run / "last_checkpoint").write_text("s3://bucket/run/epoch_12.pth")
    assert find_latest_checkpoint(run) == "s3://bucket/run/epoch_12.pth"


def test_nothing_to_resume_from(tmp_path):
    assert find_latest_checkpoint(tmp_path) is None
    assert find_latest_checkpoint(tmp_path / "missing") is None


def test_the_runner_uses_it():
    from mmengine.runner import checkpoint, runner

    ours = mmengine.runner.find_latest_checkpoint
    assert ours.within_work_dir
    assert runner.find_latest_checkpoint is ours
    assert checkpoint.find_latest_checkpoint is ours


# --- start_cpu_process_group ---


def test_gloo_starts_from_torchruns_variables():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    result = run_python(
        "from mmaction_mbcd import compat\n"
        "import torch.distributed as dist\n"
        "compat.start_cpu_process_group()\n"
        "compat.start_cpu_process_group()\n"
        "print(dist.get_backend(), dist.get_world_size())",
        CUDA_VISIBLE_DEVICES="",
        RANK="0",
        LOCAL_RANK="0",
        WORLD_SIZE="1",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["gloo", "1"]


@pytest.mark.parametrize(("gpu", "started"), [(True, False), (False, True)])
def test_machine_with_a_gpu_is_left_to_mmengine(monkeypatch, gpu, started):
    groups = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: started)
    monkeypatch.setattr(torch.distributed, "init_process_group", groups.append)
    compat.start_cpu_process_group()
    assert groups == []


# --- apply ---


def test_apply_twice_changes_nothing():
    from mmengine.runner import runner

    admitted = set(torch.serialization.get_safe_globals())
    found = runner.find_latest_checkpoint
    compat.apply()
    assert set(torch.serialization.get_safe_globals()) == admitted
    assert runner.find_latest_checkpoint is found


def test_a_long_config_is_broken_into_lines():
    from mmengine.config import Config

    numbers = [1e-4 * i for i in range(12)]
    cfg = Config(
        dict(
            a=1, numbers=numbers, by={"x y": dict(z=(1,), text="t" * 40), "w": numbers}
        )
    )
    lines = [f"{x!r}," for x in numbers]
    expected = [
        "a = 1",
        "by = dict(",
        "    {",
        "        'w': [",
        *(" " * 12 + line for line in lines),
        "        ],",
        f"        'x y': dict(text='{'t' * 40}', z=(1,)),",
        "    },",
        ")",
        "numbers = [",
        *(" " * 4 + line for line in lines),
        "]",
    ]
    assert cfg.pretty_text.splitlines() == expected
