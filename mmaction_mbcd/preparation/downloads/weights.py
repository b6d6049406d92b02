"""The pretrained weights that the configs start from."""

import re
from collections.abc import Sequence
from pathlib import Path

from .common import Options
from .files import Download, digest
from .runs import Job, dry_run, run_and_report

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


def weight_jobs(folder: Path, modalities: Sequence[str] = tuple(WEIGHTS)) -> list[Job]:
    """One job per modality.

    MMAction2 ends the name of a checkpoint with the first eight digits of its SHA-256.
    None is published for VGGSound's ``H.pth.tar``.

    Raises:
        ValueError: If a modality has no weights.
    """
    jobs = []
    for modality in dict.fromkeys(modalities):
        if modality not in WEIGHTS:
            raise ValueError(
                f"no weights for {modality!r}; there are some for {list(WEIGHTS)}"
            )
        url = WEIGHTS[modality]
        name = url.rpartition("/")[2]
        prefix = re.search(r"-([0-9a-f]{8})\.pth$", name)
        checksum = f"sha256:{prefix[1]}" if prefix else None
        jobs.append(Job(Download((url,), folder / name, name, checksum=checksum)))
    return jobs


def download_weights(
    folder: Path, options: Options, modalities: Sequence[str] = tuple(WEIGHTS)
) -> int:
    """Fetches the pretrained weights and prints their SHA-256.

    Args:
        folder: ``checkpoints``, where the configs look.
        options: How; with ``dry_run`` it is only printed.
        modalities: Some of ``video``, ``flow``, ``audio``.

    Returns:
        int: 0, or 1 if something failed (it is named).

    Raises:
        ValueError: If a modality has no weights.
    """
    jobs = weight_jobs(folder, modalities)
    if options.dry_run:
        return dry_run(jobs, options)
    code, outcomes = run_and_report(jobs, options)
    for job, outcome in zip(jobs, outcomes, strict=True):
        if not outcome.failed:
            published = (job.download.checksum or "sha256:none")[7:]
            sha256 = digest(job.download.path)
            print(f"sha256 {sha256}  {job.download.name} (published: {published})")
    return code
