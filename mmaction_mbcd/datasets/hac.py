"""Human-Animal-Cartoon: seven actions in three domains."""

import csv
import io
from os import path as osp

from mmaction.registry import DATASETS

from .annotation_text import read_text
from .errors import AnnotationError, MissingFileError
from .multimodal_dataset import MultiModalDataset


@DATASETS.register_module()
class HACDataset(MultiModalDataset):
    """Human-Animal-Cartoon (Dong et al., SimMMDG, NeurIPS 2023).

    ::

        HAC_Splits/HAC_{train,test}_only_{human,animal,cartoon}.csv
        {human,animal,cartoon}/videos/X.mp4
        {human,animal,cartoon}/flow/X_flow_x.mp4, X_flow_y.mp4
        {human,animal,cartoon}/audio/X.wav

    The split files have no header; a line is ``X.mp4,label``. Some clips have no
    sound. 24 human clips stand in both splits, so the full human target has 1387 rows
    of 1363 clips.

    Args are those of :class:`MultiModalDataset`.
    """

    METAINFO = dict(
        classes=(
            "sleeping",
            "watching TV",
            "eating",
            "drinking",
            "swimming",
            "running",
            "opening door",
        ),
        domains=("human", "animal", "cartoon"),
    )

    SPLIT_FILE = "HAC_Splits/HAC_{split}_only_{domain}.csv"
    """Where a split lies under the data root."""

    MISSING_HELP = (
        "Download the dataset (Hugging Face: hdong51/Human-Animal-Cartoon) and set "
        "data_root to the folder that holds HAC_Splits"
    )

    def annotation_file(self, domain: str, split: str) -> str:
        """The split's CSV file."""
        return osp.join(
            self.data_root, self.SPLIT_FILE.format(split=split, domain=domain)
        )

    def rows(self, domain: str, split: str) -> list[dict]:
        """Reads the split's CSV file."""
        path = self.annotation_file(domain, split)
        if not osp.isfile(path):
            raise MissingFileError(
                f"no split file {path} for the {split} split of {domain!r}. "
                f"{self.MISSING_HELP}"
            )
        rows, first = [], {}
        reader = csv.reader(io.StringIO(read_text(path), newline=""))
        for fields in reader:
            if not fields:
                continue
            line = reader.line_num
            if len(fields) != 2:
                raise AnnotationError(
                    f"{path}, line {line}: expected `file,label`, got "
                    f"{','.join(fields)!r}"
                )
            name, label = fields
            row = dict(
                # A name may hold spaces, before the dot too: keep them.
                sample_id=f"{domain}/{osp.splitext(name)[0]}",
                label=self.check_label(label, path, line),
                files=self._files(domain, name, path, line),
            )
            earlier, known = first.setdefault(row["sample_id"], (line, row["label"]))
            if known != row["label"]:
                raise AnnotationError(
                    f"{path}, line {line}: {name!r} has the label {row['label']}, and "
                    f"in line {earlier} the label {known}; a clip has one"
                )
            rows.append(row)
        return rows

    def _files(
        self, domain: str, name: str, split_file: str, line: int
    ) -> dict[str, str | tuple[str, str]]:
        stem = osp.splitext(name)[0]
        if not stem or name != osp.basename(name) or stem in (".", ".."):
            raise AnnotationError(
                f"{split_file}, line {line}: {name!r} is not the name of a file in "
                f"{domain}/videos; paths that lead elsewhere are refused"
            )
        folder = osp.join(self.data_root, domain)
        return dict(
            video=osp.join(folder, "videos", name),
            flow=(
                osp.join(folder, "flow", f"{stem}_flow_x.mp4"),
                osp.join(folder, "flow", f"{stem}_flow_y.mp4"),
            ),
            audio=osp.join(folder, "audio", f"{stem}.wav"),
        )
