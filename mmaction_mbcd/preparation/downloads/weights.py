"""The pretrained weights that the configs start from."""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from .files import File, digest

_MMACTION = "https://download.openmmlab.com/mmaction/recognition"

WEIGHTS = {
    "video": f"{_MMACTION}/slowfast/slowfast_r101_8x8x1_256e_kinetics400_rgb/"
    "slowfast_r101_8x8x1_256e_kinetics400_rgb_20210218-0dd54025.pth",
    "flow": f"{_MMACTION}/slowonly/slowonly_r50_8x8x1_256e_kinetics400_flow/"
    "slowonly_r50_8x8x1_256e_kinetics400_flow_20200704-6b384243.pth",
    "audio": "http://www.robots.ox.ac.uk/~vgg/data/vggsound/models/H.pth.tar",
}
"""The files that the configs look for in ``checkpoints/``, by modality. The servers
could not be tried."""


def weight_files(
    folder: Path, modalities: Sequence[str] = tuple(WEIGHTS)
) -> list[File]:
    """One file per modality; its SHA-256 is printed when it is there.

    MMAction2 ends the name of a checkpoint with the first eight digits of its SHA-256.
    None is published for VGGSound's ``H.pth.tar``.
    """
    files = []
    for modality in dict.fromkeys(modalities):
        url = WEIGHTS[modality]
        path = folder / url.rpartition("/")[2]
        match = re.search(r"-([0-9a-f]{8})\.pth$", path.name)
        sha256 = match[1] if match else ""
        finish = partial(_checksum, path, sha256)
        files.append(File(path.name, (url,), path, sha256=sha256, finish=finish))
    return files


def _checksum(path: Path, published: str) -> str:
    return f"sha256 {digest(path)}, published: {published or 'none'}"
