"""Loading pretrained weights into a backbone, with a report and no silence."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader
from torch import nn

from ..errors import CheckpointError

DOWNLOAD = "python tools/data/weights/download.py"
"""Fetches the pretrained files into ``checkpoints/``."""

_STATE_KEYS = ("state_dict", "model_state_dict", "model")


@dataclass
class LoadReport:
    """What :func:`load_backbone` matched.

    Attributes:
        matched: Keys of the backbone that were filled.
        missing: Keys of the backbone that the file lacks.
        unexpected: Keys of the file, after renaming, that the backbone lacks and
            has no part for, such as VGGSound's ``fc.weight``.
        left_out: Keys of the file without the prefix, such as MMAction2's
            ``cls_head.fc_cls.weight``.
    """

    matched: list[str]
    missing: list[str]
    unexpected: list[str]
    left_out: list[str]


def _shortened(keys: list[str], limit: int = 5) -> str:
    rest = len(keys) - limit
    return ", ".join(keys[:limit]) + (f" and {rest} more" if rest > 0 else "")


def _content(checkpoint: str) -> dict:
    """The dict that a checkpoint file or URL holds."""
    remote = re.match("https?://", checkpoint)
    try:
        content = CheckpointLoader.load_checkpoint(checkpoint, map_location="cpu")
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"there is no weights file {checkpoint}: fetch it with `{DOWNLOAD}`, or "
            "set the encoder's `pretrained` to another file, or to None for random "
            "weights"
        ) from error
    except CheckpointError as error:
        kept = f", after deleting it in {torch.hub.get_dir()}/checkpoints"
        raise CheckpointError(
            f"{error}. If it is damaged, fetch it again{kept if remote else ''}"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{checkpoint} holds a {type(content).__name__}; expected a dict of weights"
        )
    return content


def load_backbone(
    backbone: nn.Module,
    checkpoint: str,
    prefix: str = "backbone.",
    rename: Sequence[tuple[str, str]] = (),
    skip: str | None = None,
) -> LoadReport:
    """Loads a checkpoint file or URL into a backbone.

    Args:
        backbone: Filled in place.
        checkpoint: Path or URL. The weights may lie under ``state_dict``,
            ``model_state_dict`` or ``model``, or be the whole file.
        prefix: Only keys that start with it are read; it is cut off. The rest of
            the file (a classification head, say) is left out, and reported.
        rename: ``(pattern, replacement)`` regular expressions applied, in order,
            to what follows the prefix.
        skip: Regular expression; keys of the backbone that match it stay as they
            were initialised. ``'layer4'`` for audio is what the published code of
            SimMMDG, MOOSA and CMRF does in effect.

    Returns:
        What matched, which is also logged.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If it cannot be read, or holds more than weights.
        ValueError: If the backbone has a parameter or statistic
            that the file does not fill, or of another shape (a half-loaded backbone
            would be a silent random layer); or if the file has more of a part that
            the backbone has, so that it was made for a deeper network. The backbone
            is then unchanged.
    """
    content = _content(checkpoint)
    for key in _STATE_KEYS:
        if isinstance(content.get(key), dict):
            content = content[key]
            break
    state, left_out = {}, []
    for key, value in content.items():
        key = re.sub(r"^module\.", "", key)
        if not key.startswith(prefix):
            left_out.append(key)
        else:
            key = key[len(prefix) :]
            for pattern, replacement in rename:
                key = re.sub(pattern, replacement, key)
            state[key] = value
    own = {
        key: value
        for key, value in backbone.state_dict().items()
        if skip is None or not re.search(skip, key)
    }
    if skip is not None:
        state = {key: v for key, v in state.items() if not re.search(skip, key)}
    wrong_shape = [
        f"{key} (file {tuple(state[key].shape)}, model {tuple(own[key].shape)})"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    missing = [
        key
        for key in own
        if key not in state and not key.endswith("num_batches_tracked")
    ]
    report = LoadReport(
        matched=[key for key in own if key in state],
        missing=missing,
        unexpected=[key for key in state if key not in own],
        left_out=left_out,
    )
    parts = {name for name, _ in backbone.named_children()}
    surplus = [
        key
        for key in report.unexpected
        if key.partition(".")[0] in parts and not key.endswith("num_batches_tracked")
    ]
    summary = (
        f"{checkpoint}: {len(report.matched)} of {len(own)} keys of "
        f"{type(backbone).__name__} matched, {len(missing)} missing, "
        f"{len(report.unexpected)} unexpected, {len(left_out)} left out"
    )
    if missing or wrong_shape or surplus:
        sample = _shortened(list(content))
        raise ValueError(
            f"wrong weights. {summary}."
            + (f" Missing: {_shortened(missing)}." if missing else "")
            + (f" Other shape: {_shortened(wrong_shape)}." if wrong_shape else "")
            + (f" Not in the model: {_shortened(surplus)}." if surplus else "")
            + f" The file has keys such as {sample}; the prefix looked for is "
            f"{prefix!r}. Give the file made for this backbone, or set prefix, rename "
            "and skip of the encoder's `pretrained`."
        )
    backbone.load_state_dict(state, strict=False)
    if rest := report.unexpected + left_out:
        summary += f" (not loaded: {_shortened(rest)})"
    print_log(summary, logger="current")
    return report
