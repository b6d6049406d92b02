"""The help that MMAction2, MMPretrain and MMEngine need, in one place.

MMAction2 1.2 and MMPretrain 1.2 date from 2023; MMEngine 0.10 is newer but was
written before torch 2.6. Each function below removes one fault of an installed
package without touching its files, is safe to call twice, and says when it can go.
:func:`apply` runs all of them and is called before the package imports
``mmaction.models``.
"""

from __future__ import annotations  # an old Python, too, must reach check_versions

import ast
import importlib
import importlib.util
import os
import os.path as osp
import signal
import sys
import types
import warnings
from importlib.metadata import PackageNotFoundError, version

SUPPORTED = {
    # package: (lowest version admitted, first version refused)
    "torch": ((2, 6), (2, 14)),  # 2.6 is the first to load weights only by default
    "mmengine": ((0, 10), (0, 11)),
    "mmcv": ((2, 0), (2, 2)),
    "mmaction2": ((1, 2), (1, 3)),
    "mmpretrain": ((1, 2), (1, 3)),
    # MMEngine resolves `_base_ = 'mmaction::...'` with pkg_resources, which 82 dropped.
    "setuptools": ((60,), (82,)),
}
"""The supported versions. README.md and requirements/pins.txt follow it."""

PYTHON = ((3, 10), (3, 13))

# Each package may be installed under a second name that provides the same module.
_ALIASES = {"mmengine": ("onedl-mmengine",), "mmcv": ("mmcv-lite",)}

LAUNCHER = "MBCD_LAUNCHER"
"""Where tools/dist_launch.py leaves its process id to the processes that it starts."""

_INSTALL_HELP = {
    "mmcv": "pip install mmcv-lite==2.1.0 (or the full mmcv 2.1, which builds "
    "from source)",
}


class UnsupportedVersionError(ImportError):
    """A package is missing or outside the supported range."""


def _release(text: str) -> tuple[int, ...]:
    """``'2.13.0+cpu'`` -> ``(2, 13, 0)``."""
    from packaging.version import Version

    return Version(text).release


def _installed(package: str) -> str | None:
    for name in (package, *_ALIASES.get(package, ())):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def _dotted(parts: tuple[int, ...]) -> str:
    return ".".join(map(str, parts))


def check_versions() -> None:
    """Compare every package with :data:`SUPPORTED`.

    Raises:
        UnsupportedVersionError: Naming all unsupported packages at once, with what
            was found, what is supported and what to install.
    """
    problems = []
    python = sys.version_info[:2]
    if not PYTHON[0] <= python < PYTHON[1]:
        problems.append(
            f"Python {_dotted(python)} (supported: >= {_dotted(PYTHON[0])}, "
            f"< {_dotted(PYTHON[1])})"
        )
    for package, (low, high) in SUPPORTED.items():
        found = _installed(package)
        help_ = _INSTALL_HELP.get(
            package, f"pip install '{package}>={_dotted(low)},<{_dotted(high)}'"
        )
        if found is None:
            problems.append(f"{package} is not installed: {help_}")
        elif not low <= _release(found) < high:
            problems.append(
                f"{package} {found} (supported: >= {_dotted(low)}, "
                f"< {_dotted(high)}): {help_}"
            )
    if problems:
        raise UnsupportedVersionError(
            "mmaction_mbcd cannot work with what is installed:\n  "
            + "\n  ".join(problems)
        )


def stub_missing_drn() -> None:
    """MMAction2 1.2.0's wheel lacks ``mmaction.models.localizers.drn``.

    ``mmaction.models`` imports it unconditionally. The localizer is unrelated to
    recognition; a stub that refuses to be built is put in its place. Goes when a
    wheel with the package is published (open upstream since 2023).
    """
    name = "mmaction.models.localizers.drn"
    if f"{name}.drn" in sys.modules:
        return
    mmaction = importlib.util.find_spec("mmaction")
    folder = osp.join(osp.dirname(mmaction.origin), "models", "localizers", "drn")
    if osp.isfile(osp.join(folder, "drn.py")):
        return

    class DRN:
        """Stands for the localizer that the installed wheel lacks."""

        def __init__(self, *args, **kwargs) -> None:
            raise ImportError(
                "DRN is missing from the installed mmaction2 wheel; install "
                "MMAction2 from its repository to use it"
            )

    package, module = types.ModuleType(name), types.ModuleType(f"{name}.drn")
    package.__path__, package.DRN, package.drn, module.DRN = [], DRN, module, DRN
    sys.modules[name], sys.modules[f"{name}.drn"] = package, module


def skip_text_models() -> None:
    """``transformers`` >= 4.57 breaks MMAction2's optional text models.

    They are imported whenever ``transformers`` is installed and use names that it
    removed. Nothing here needs them.
    """
    if importlib.util.find_spec("transformers") is None:
        return
    import mmaction.utils.dependency as dependency

    dependency.WITH_MULTIMODAL = False


def declare_torchvision_ops() -> None:
    """Lets a CUDA build of torchvision be imported beside a CPU torch.

    Its import registers fakes for ``torchvision::nms``, which the missing binary
    would have defined, and fails with a RuntimeError that MMAction2's optional
    imports do not catch.
    """
    if importlib.util.find_spec("torchvision") is None:
        return
    import torch

    try:
        import torchvision  # noqa: F401

        return
    except ImportError as error:
        reason: Exception = error
    except RuntimeError as error:
        reason = error
        if not hasattr(torch.ops.torchvision, "nms"):
            library = torch.library.Library("torchvision", "FRAGMENT")
            signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            library.define(f"nms{signature}")
            library.define(f"qnms{signature}")
            # The library must outlive this call, or its definitions are withdrawn.
            declare_torchvision_ops.library = library
            for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
                del sys.modules[name]
            try:
                import torchvision  # noqa: F401

                return
            except (RuntimeError, ImportError) as second:
                reason = second
    warnings.warn(
        f"torchvision cannot be imported ({reason}); MMPretrain's models need it",
        stacklevel=2,
    )


def format_configs_fast() -> None:
    """MMEngine formats the whole config with yapf: seconds at each start of a run.

    A config's text holds nothing but assignments of dicts, lists and constants, which
    are laid out here in milliseconds. It is formatted anew for every checkpoint too.
    """
    from mmengine.config import config

    def format_code(text: str, **kwargs: object) -> tuple[str, bool]:
        return _laid_out(text), True

    config.FormatCode = format_code


def _laid_out(text: str) -> str:
    """Assignments, one item a line where a line would be too long.

    Raises:
        SyntaxError: If ``text`` is not Python.
    """
    lines = []
    for statement in ast.parse(text).body:
        if isinstance(statement, ast.Assign):
            head = " = ".join(map(ast.unparse, statement.targets)) + " = "
            lines.append(head + _broken(statement.value, 0, len(head)))
        else:
            lines.append(ast.unparse(statement))
    return "\n".join(lines) + "\n"


def _broken(node: ast.expr, indent: int, used: int, width: int = 88) -> str:
    """An expression, broken into lines where it does not fit.

    Args:
        node: The expression.
        indent: Spaces before its lines but for the first.
        used: Characters that stand before it in its first line.
        width: Longest line; one character is kept for a comma.
    """
    line = ast.unparse(node)
    if used + len(line) < width:
        return line
    if isinstance(node, ast.Call):
        ends = f"{ast.unparse(node.func)}(", ")"
        items = [("", each) for each in node.args]
        items += [(f"{k.arg}=" if k.arg else "**", k.value) for k in node.keywords]
    elif isinstance(node, ast.Dict) and all(node.keys):
        ends = "{", "}"
        keys = [f"{ast.unparse(key)}: " for key in node.keys]
        items = list(zip(keys, node.values, strict=True))
    elif isinstance(node, (ast.List, ast.Tuple)) and node.elts:
        ends = ("[", "]") if isinstance(node, ast.List) else ("(", ")")
        items = [("", each) for each in node.elts]
    else:
        return line
    inner = indent + 4
    lines = [f"{h}{_broken(each, inner, inner + len(h), width)}," for h, each in items]
    return "\n".join(
        [ends[0], *(" " * inner + each for each in lines), " " * indent + ends[1]]
    )


def start_cpu_process_group() -> None:
    """Starts gloo from torchrun's variables on a machine without a GPU.

    MMEngine's ``init_dist`` sets a CUDA device first and dies; a group that is
    already there it leaves alone.
    """
    import torch
    import torch.distributed as dist

    if torch.cuda.is_available() or dist.is_initialized():
        return
    dist.init_process_group("gloo")


def end_with_launcher() -> None:
    """Processes that torchrun started outlive its kill, and hold GPUs and memory.

    Linux kills this process when its parent dies. Its data workers notice within
    seconds. A checkpoint that is being written then is not lost: the old one is there.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    if sys.platform.startswith("linux"):
        import ctypes

        # As processes.end_with_parent, which this module, read alone, has not.
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    launcher = os.environ.get(LAUNCHER)
    if launcher is not None and not osp.exists(f"/proc/{launcher}"):
        os._exit(128 + signal.SIGKILL)  # it died before this process could ask


def apply() -> None:
    """Checks the versions, then applies every fix above that always applies."""
    check_versions()
    with warnings.catch_warnings():
        # MMEngine needs pkg_resources, whose import warns with setuptools 80.
        warnings.filterwarnings("ignore", message=".*pkg_resources.*")
        # mmcv-lite says at import that it lacks an operator that nobody asked for.
        warnings.filterwarnings("ignore", message="Fail to import ``MultiScaleDef")
        importlib.import_module("mmcv.cnn.bricks.transformer")
        stub_missing_drn()
        skip_text_models()
        declare_torchvision_ops()
        from . import checkpoint_files

        checkpoint_files.install()
        format_configs_fast()
        end_with_launcher()
