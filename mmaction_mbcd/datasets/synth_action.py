"""A small dataset that is generated, for tests, demos and continuous integration."""

import json
from os import path as osp

from mmaction.registry import DATASETS

from .errors import AnnotationError, MissingFileError
from .hac import HACDataset


@DATASETS.register_module()
class SynthActionDataset(HACDataset):
    """Generated clips in the layout of :class:`HACDataset`.

    Classes and domains are read from ``synth.json`` in the data root, which
    ``tools/data/make_synth_action.py`` writes beside the clips; the split files are
    ``Synth_Splits/Synth_{train,test}_only_{domain}.csv``.

    Args:
        data_root: Folder that the generator filled.
        kwargs: Of :class:`MultiModalDataset`.

    Raises:
        FileNotFoundError: If ``synth.json`` is missing.
        ValueError: If it is not JSON with ``classes`` and ``domains``.
    """

    METAINFO: dict = {}
    SPLIT_FILE = "Synth_Splits/Synth_{split}_only_{domain}.csv"
    MISSING_HELP = (
        "Generate the dataset again with `python tools/data/make_synth_action.py "
        "DATA_ROOT --overwrite`"
    )

    @classmethod
    def describe(cls, data_root: str) -> dict:
        """What ``synth.json`` says.

        Raises:
            FileNotFoundError: If it is missing.
            ValueError: If it is not JSON with ``classes`` and ``domains``.
        """
        path = osp.join(data_root, "synth.json")
        command = f"`python tools/data/make_synth_action.py {data_root}`"
        try:
            with open(path, encoding="utf-8") as file:
                made = json.load(file)
            return {key: tuple(made[key]) for key in ("classes", "domains")}
        except FileNotFoundError:
            raise MissingFileError(
                f"no synthetic dataset in {data_root} ({path} is missing). Generate "
                f"it with {command}"
            ) from None
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise AnnotationError(
                f"{path} does not describe a synthetic dataset ({error!r}). Generate "
                f"it again with {command}"
            ) from error
