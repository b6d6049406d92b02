import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from helpers.forked import run_script
from mmaction_mbcd import compat

ROOT = Path(__file__).parents[1]


def run_python(code, *args, **env):
    """Runs ``code`` in a fresh process that finds the package."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
    )


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
        {"torch": "2.6.0"},
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
        ("torch", "2.5.1", ">= 2.6, < 2.14"),
        ("torch", "2.14.0", ">= 2.6, < 2.14"),
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


TORCHVISIONS = [
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
]
# A process that has imported torch alone forks for each of them.
IMPORTS_TORCHVISION = """
import importlib.util, os, sys, torch, warnings

path, *folders = sys.argv[1:]
for folder in folders:
    if os.fork():
        os.wait()
        continue
    sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location("compat", path)
    compat = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(compat)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        compat.declare_torchvision_ops()
    ours = [w for w in caught if "MMPretrain" in str(w.message)]
    said = "warned" if ours else "fine"
    print(folder, said, "torchvision" in sys.modules, flush=True)
    os._exit(0)
"""


def test_torchvision_without_its_binary_is_imported(tmp_path):
    expected = []
    for i, (body, outcome) in enumerate(TORCHVISIONS):
        package = tmp_path / str(i) / "torchvision"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(f"import torch\n{body}\n")
        expected.append(f"{package.parent} {outcome} {outcome == 'fine'}")
    folders = [line.split()[0] for line in expected]
    result = run_python(IMPORTS_TORCHVISION, compat.__file__, *folders)
    assert result.returncode == 0 and result.stdout.splitlines() == expected, (
        result.stdout + result.stderr
    )


# --- start_cpu_process_group ---


def test_gloo_starts_from_torchruns_variables(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = tmp_path / "starts.py"
    script.write_text(
        "from mmaction_mbcd import compat\n"
        "import torch.distributed as dist\n"
        "compat.start_cpu_process_group()\n"
        "compat.start_cpu_process_group()\n"
        "print(dist.get_backend(), dist.get_world_size())"
    )
    variables = dict(
        CUDA_VISIBLE_DEVICES="",
        RANK="0",
        LOCAL_RANK="0",
        WORLD_SIZE="1",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    result = run_script(script, cwd=tmp_path, env=variables)
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
