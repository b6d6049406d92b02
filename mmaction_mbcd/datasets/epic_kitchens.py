"""EPIC-Kitchens: eight actions in three kitchens."""

import os
from collections.abc import Sequence
from os import path as osp

from mmaction.registry import DATASETS

from .epic_splits import CLASSES, PARTICIPANTS, EpicSegment, read_split
from .errors import AnnotationError, MissingFileError
from .multimodal_dataset import MultiModalDataset

FPS = 60
"""RGB frames per second; flow has half of it."""


@DATASETS.register_module()
class EPICKitchensDataset(MultiModalDataset):
    """EPIC-Kitchens with the splits of MM-SADA (Munro and Damen, CVPR 2020).

    ::

        MM-SADA_Domain_Adaptation_Splits/D{1,2,3}_{train,test}.csv
        rgb/{train,test}/D1/P08_01/frame_0000000245.jpg
        rgb/{train,test}/D1/P08_01.wav                      (the whole video)
        flow/{train,test}/D1/P08_01/{u,v}/frame_0000000123.jpg

    A newer repack keeps the frames under ``video/`` and the sound under ``audio/``, and
    the newest benchmark (arXiv 2605.06643) has one file per segment instead of frames::

        EPIC-mp4/video/{train,test}/D1/D1_P08_02_11_150_2.mp4
        EPIC-mp4/flow/{train,test}/D1/D1_P08_02_6_75_2_u.mp4, ..._v.mp4

    with domain, video, first and stop frame (of flow: at its rate) and label in the
    name. Such a file is the segment: its own number of frames counts. Each of these
    is found, below the data root or the split folder, with ``EPIC-mp4`` or without;
    where a modality has both, images are read. Sound is one file per video in all.

    Rows of the train split are looked for under ``train/``, those of
    the test split under ``test/``, so a whole target has files under both. The split
    files are published as pickles: ``tools/data/epic/convert_splits.py`` makes the CSV
    files, once.

    A row is a segment ``[start_frame, stop_frame)`` of a video at 60 frames per
    second. Flow is sampled at half the rate: it starts at ``ceil(start_frame / 2)``
    and has ``floor((stop_frame - start_frame) / 2)`` frames. Frame numbers are those
    of the files. The pipelines are ``OpenVideo``, ``SampleClip`` and ``DecodeFrames``
    for video, ``OpenFlowPair``, ``SampleClip`` and ``DecodeFlowFrames`` for flow, and
    ``LoadWaveform(span='segment', max_seconds=10)`` for audio, which reads from
    ``start`` to ``stop`` (seconds).

    Args are those of :class:`MultiModalDataset`.

    Raises:
        FileNotFoundError: If an annotation file is missing.
        ValueError: For a faulty row, see :func:`.epic_splits.read_split`, or one of
            another domain's kitchen.
    """

    METAINFO = dict(classes=CLASSES, domains=tuple(PARTICIPANTS))

    SPLIT_FOLDER = "MM-SADA_Domain_Adaptation_Splits"
    FRAME = "frame_{:010d}.jpg"

    PLACES = ("", "EPIC-mp4", SPLIT_FOLDER, f"{SPLIT_FOLDER}/EPIC-mp4")
    """Folders of the data root that may hold the modalities' folders."""

    ROOTS = dict(
        video=("rgb", "video"), flow=("flow",), audio=("audio", "rgb", "video")
    )
    """A modality's folders in each place, in the order of search."""

    def annotation_file(self, domain: str, split: str) -> str:
        """The split's CSV file."""
        return osp.join(self.data_root, self.SPLIT_FOLDER, f"{domain}_{split}.csv")

    def rows(self, domain: str, split: str) -> list[dict]:
        """Reads the split's annotation file."""
        path = self.annotation_file(domain, split)
        if not osp.isfile(path):
            raise MissingFileError(
                f"no annotation file {path} for the {split} split of {domain!r}. "
                f"{self._missing_help(path)}"
            )
        segments = read_split(path, self._metainfo["classes"])
        kitchen = PARTICIPANTS.get(domain)
        for segment in segments:
            if kitchen and segment.participant_id != kitchen:
                raise AnnotationError(
                    f"{path}: uid {segment.uid} is of participant "
                    f"{segment.participant_id}, but {domain} is {kitchen}: the file "
                    "belongs to another domain"
                )
        # A video has hundreds of segments: look for its files once.
        videos = dict.fromkeys(segment.video_id for segment in segments)
        files = {video: self._files(domain, split, video) for video in videos}
        folders = {m: self._clip_folder(m, domain, split) for m in ("video", "flow")}
        return [self._row(domain, s, files[s.video_id], folders) for s in segments]

    def _missing_help(self, path: str) -> str:
        folder = osp.dirname(path)
        if osp.isfile(f"{osp.splitext(path)[0]}.pkl"):
            return (
                "The published pickles lie there: convert them once, by `python "
                f"tools/data/epic/convert_splits.py {folder} {folder}`"
            )
        return (
            "Download the MM-SADA splits, convert them by `python "
            f"tools/data/epic/convert_splits.py DOWNLOADED_SPLITS {folder}` and set "
            f"data_root to the folder that holds {self.SPLIT_FOLDER}"
        )

    def _row(
        self,
        domain: str,
        segment: EpicSegment,
        files: dict[str, str | tuple[str, str]],
        folders: dict[str, str | None],
    ) -> dict:
        start, length = segment.start_frame, segment.stop_frame - segment.start_frame
        ranges = dict(
            video=(start, length, FPS), flow=(-(-start // 2), length // 2, FPS / 2)
        )
        files, extras = dict(files), {}
        for modality, (first, count, fps) in ranges.items():
            folder = folders[modality]
            if folder is not None and not self._any_exists(files[modality]):
                name = f"{domain}_{segment.video_id}_{first}_{first + count}"
                stem = osp.join(folder, f"{name}_{segment.verb_class}")
                clips = dict(
                    video=f"{stem}.mp4", flow=(f"{stem}_u.mp4", f"{stem}_v.mp4")
                )
                files[modality] = clips[modality]
            else:
                extras[modality] = dict(
                    start_index=first,
                    total_frames=count,
                    avg_fps=fps,
                    filename_tmpl=self.FRAME,
                )
        if not length // 2:
            # A segment of one frame has no flow, and cannot be sampled.
            del files["flow"]
        return dict(
            sample_id=f"{domain}/{segment.video_id}/{segment.uid}",
            label=segment.verb_class,
            start=segment.start,
            stop=segment.stop,
            files=files,
            extras=extras,
        )

    def _roots(self, modality: str) -> list[str]:
        places = [osp.join(self.data_root, place) for place in self.PLACES]
        return [osp.join(p, root) for p in places for root in self.ROOTS[modality]]

    def _files(
        self, domain: str, split: str, video: str
    ) -> dict[str, str | tuple[str, str]]:
        def find(modality: str, name: str) -> str:
            roots = self._roots(modality)
            return self._first([osp.join(r, split, domain, name) for r in roots], roots)

        flow = find("flow", video)
        return dict(
            video=find("video", video),
            flow=(osp.join(flow, "u"), osp.join(flow, "v")),
            audio=find("audio", f"{video}.wav"),
        )

    def _clip_folder(self, modality: str, domain: str, split: str) -> str | None:
        """The folder with one file per segment, if there is one."""
        for root in self._roots(modality):
            folder = osp.join(root, split, domain)
            if osp.isdir(folder):
                with os.scandir(folder) as entries:
                    if any(entry.name.endswith(".mp4") for entry in entries):
                        return folder
        return None

    @staticmethod
    def _any_exists(names: str | tuple[str, str]) -> bool:
        return any(
            osp.exists(n) for n in ((names,) if isinstance(names, str) else names)
        )

    @staticmethod
    def _first(paths: Sequence[str], roots: Sequence[str]) -> str:
        """The first that exists; else the first whose root does, for the error."""
        there = [p for p, r in zip(paths, roots, strict=True) if osp.isdir(r)]
        return next(filter(osp.exists, there), (there or paths)[0])
