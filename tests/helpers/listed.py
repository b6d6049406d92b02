"""A dataset whose rows are given, and a transform that behaves badly when told to."""

import os
import signal
import time
from pathlib import Path

from mmaction.registry import DATASETS, TRANSFORMS

from mmaction_mbcd.datasets import MultiModalDataset


@DATASETS.register_module()
class ListedDataset(MultiModalDataset):
    """One domain ``d``, the source; its rows are the argument ``listed``."""

    METAINFO = dict(classes=("jump",), domains=("d",))

    def __init__(self, listed, **kwargs):
        self.listed = listed
        super().__init__(data_root="", sources=["d"], **kwargs)

    def rows(self, domain, split):
        return [dict(row, sample_id=f"d/{i}") for i, row in enumerate(self.listed)]


@TRANSFORMS.register_module()
class Misbehave:
    """Does what a word in the file's name says."""

    def __call__(self, results):
        name = str(results["filename"])
        if "crash" in name:
            os.kill(os.getpid(), signal.SIGSEGV)
        if "memory" in name:
            raise MemoryError("much")
        if "hang" in name:
            Path(f"{name}.pid").write_text(str(os.getpid()))
            time.sleep(600)
        return results
