"""Checkpoint files: reading them runs no code, damage is named, the newest intact one.

:func:`install` puts this under every loader of MMEngine, and so under all of MMAction2
and MMPretrain: ``load_from``, ``resume``, ``init_cfg``, a backbone's ``pretrained``.
"""

from __future__ import annotations

import logging
import os
import os.path as osp
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .errors import CheckpointError

_NAME = re.compile(r"(?:timed_iter|epoch|iter)_(\d+)\.pth")
_REMOTE = "://"

_FOLDER = 0x10
"""MS-DOS's attribute; of what bears it torch reads nothing, and says nothing."""


def damage(path: str) -> str:
    """What is wrong with a checkpoint file of torch's archive format; '' if nothing.

    Reads the file once (about a second per GB): the archive keeps a checksum of every
    tensor, which ``torch.load`` does not look at.
    """
    size = osp.getsize(path)
    if size == 0:
        return "it is empty"
    if not _is_archive(path):
        with open(path, "rb") as file:
            begins = file.read(4)
        if begins.startswith(b"PK"):
            return f"it ends after {size:,} bytes, within the archive"
        return f"it is not a checkpoint (it begins with {begins!r})"
    import torch

    name = ""
    try:
        with zipfile.ZipFile(path) as archive:
            # By entry, which compares both of its names: testzip() goes by name, and
            # does not look at an entry whose name became another's.
            for entry in archive.infolist():
                name = entry.filename
                if entry.external_attr & _FOLDER and not name.endswith("/"):
                    return f"{name} in it is marked as a folder"
                with archive.open(entry) as content:
                    while content.read(1 << 20):
                        pass
        # torch's own reader looks at the headers, and not at the checksums.
        reader = torch._C.PyTorchFileReader(path)
        for name in reader.get_all_records():
            reader.get_record(name)
    except Exception as error:  # a damaged directory raises anything
        if isinstance(error, zipfile.BadZipFile) and "CRC" in str(error):
            return f"the checksum of {name} in it does not fit"
        return f"its archive cannot be read ({type(error).__name__}: {error})"
    return ""


def _is_archive(path: str) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # one, of which something is wrong
        return True


def _old_format(path: str) -> bool:
    """Whether a file is a pickle or tar, as torch wrote before 1.6: no checksums."""
    with open(path, "rb") as file:
        head = file.read(512)
    return head[:1] == b"\x80" or head[257:262] == b"ustar"


@contextmanager
def weights_only() -> Iterator[None]:
    """Within it ``torch.load`` admits weights only, whatever its caller wants."""
    import torch

    stock = torch.load

    def load(*args: object, **kwargs: object) -> object:
        return stock(*args, **{**kwargs, "weights_only": True})

    torch.load = load
    try:
        yield
    finally:
        torch.load = stock


def refused(path: str, error: Exception) -> CheckpointError:
    """What to say of a file that ``torch.load`` did not read."""
    lines = str(error).splitlines() or ["it ends early"]
    # torch says first how to turn its check off, and then what it found.
    asked = re.search(r"(?:GLOBAL|Unsupported class) (\w[\w.]*)", str(error))
    if asked or isinstance(error, pickle.UnpicklingError):
        found = asked[1] if asked else lines[-1]
        return CheckpointError(
            f"{path} is not loaded: it holds {found}, which could run code. Tensors, "
            "numbers, texts and MMEngine's log histories are admitted. If it is a "
            "file that you trust, load it where that does no harm and save its "
            "weights alone"
        )
    return CheckpointError(
        f"{path} cannot be loaded ({type(error).__name__}: {lines[0]})"
    )


def load(path: str, loader: Callable[[], object]) -> object:
    """What a checkpoint holds.

    Args:
        path: Path or URL.
        loader: Reads it, by ``torch.load`` somewhere below.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If it is damaged, or holds more than weights.
    """
    local = _REMOTE not in path
    if local and osp.isfile(path) and not _old_format(path):
        if wrong := damage(path):
            raise CheckpointError(f"{path} is damaged: {wrong}; use another one")
    try:
        with weights_only():
            content = loader()
    except (FileNotFoundError, CheckpointError):
        raise
    except Exception as error:  # also no network, no permission
        raise refused(path, error) from error
    meta = content.get("meta") if isinstance(content, dict) else None
    if isinstance(meta, dict):
        # MMEngine would execute it when it resumes (Config.fromstring).
        meta.pop("config", None)
    return content


def checkpoints_in(folder: str) -> list[str]:
    """Checkpoints from which a run can go on, the newest first.

    Raises:
        CheckpointError: If ``last_checkpoint`` names a file elsewhere.
    """
    found = []
    for name in os.listdir(folder) if osp.isdir(folder) else ():
        if match := _NAME.fullmatch(name):
            path = osp.join(folder, name)
            found.append((osp.getmtime(path), int(match[1]), path))
    ordered = [path for _, _, path in sorted(found, reverse=True)]
    named = _last_saved(folder)
    return [named, *(p for p in ordered if p != named)] if named else ordered


def _last_saved(folder: str) -> str | None:
    """The file that ``last_checkpoint`` names, if it is there.

    It holds an absolute path; in a copied folder the copy is meant.
    """
    try:
        with open(osp.join(folder, "last_checkpoint")) as file:
            named = file.read().strip()
    except (FileNotFoundError, UnicodeDecodeError):
        return None
    if not named or "\0" in named:
        return None
    local = osp.join(folder, osp.basename(named))
    if osp.isfile(local):
        return local
    inside = osp.realpath(osp.dirname(named)) == osp.realpath(folder)
    if _REMOTE in named or (osp.isfile(named) and not inside):
        raise CheckpointError(
            f"{osp.join(folder, 'last_checkpoint')} names {named}, which is not in its "
            "folder, so it is not followed. To go on from there, give it to --resume; "
            "to go on from the newest checkpoint of the folder, remove last_checkpoint"
        )
    return None


def newest_intact(folder: str) -> str | None:
    """The newest checkpoint of a folder that is not damaged; None if it has none.

    Raises:
        CheckpointError: If all are damaged, or ``last_checkpoint`` leads elsewhere.
    """
    from mmengine.logging import print_log

    damaged = []
    for path in checkpoints_in(folder):
        wrong = damage(path)
        if not wrong:
            for other, why in damaged:
                print_log(
                    f"{other} is damaged and passed over ({why}); the newest intact "
                    f"checkpoint is {path}",
                    logger="current",
                    level=logging.WARNING,
                )
            return path
        damaged.append((path, wrong))
    if damaged:
        every = "; ".join(f"{osp.basename(path)}: {why}" for path, why in damaged)
        raise CheckpointError(
            f"no checkpoint in {folder} is intact ({every}). Remove them to begin anew"
        )
    return None


def _trusted_types() -> list:
    """What MMEngine's checkpoints hold beside weights: log histories."""
    import numpy as np
    from mmengine.logging import HistoryBuffer

    try:
        from numpy._core.multiarray import _reconstruct, scalar
    except ImportError:  # numpy 1
        from numpy.core.multiarray import _reconstruct, scalar

    dtypes = {type(np.dtype(t)) for t in (np.float32, np.float64, np.int32, np.int64)}
    dtypes |= {type(np.dtype(np.uint8)), type(np.dtype(bool)), type(np.dtype("U1"))}
    admitted: list = [HistoryBuffer, np.ndarray, np.dtype, *dtypes]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        # Checkpoints of numpy 1 and numpy 2 name the same function differently.
        admitted += [
            (_reconstruct, f"{module}._reconstruct"),
            (scalar, f"{module}.scalar"),
        ]
    return [*admitted, (_statistics_getattr, "builtins.getattr")]


def _statistics_getattr(owner: object, name: str) -> object:
    """The only ``getattr`` a checkpoint may ask for: HistoryBuffer's statistics."""
    from mmengine.logging import HistoryBuffer

    if owner is HistoryBuffer and name in ("min", "max", "current", "mean"):
        return getattr(owner, name)
    raise ValueError(
        f"the checkpoint asks for attribute {name!r} of {owner!r}, which no "
        "MMEngine checkpoint needs; it is not loaded"
    )


def install() -> None:
    """Puts :func:`load` and :func:`newest_intact` in place of MMEngine's.

    MMEngine's loaders for URLs unpickle whatever they get, a resumed run goes wherever
    ``last_checkpoint`` says, and a damaged file is loaded as far as it goes.
    """
    import mmengine.runner as package
    import torch
    from mmengine.runner import CheckpointLoader, checkpoint, runner

    torch.serialization.add_safe_globals(_trusted_types())
    stock = CheckpointLoader.load_checkpoint
    if getattr(stock, "weights_only", False):
        return

    def load_checkpoint(filename, map_location=None, logger="current"):
        name = os.fspath(filename)
        return load(name, lambda: stock(name, map_location, logger))

    load_checkpoint.weights_only = True
    CheckpointLoader.load_checkpoint = staticmethod(load_checkpoint)
    for module in (package, checkpoint, runner):
        module.find_latest_checkpoint = newest_intact
