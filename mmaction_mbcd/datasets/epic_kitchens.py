"""EPIC-Kitchens: eight actions in three kitchens."""

from collections.abc import Sequence
from os import path as osp

from mmaction.registry import DATASETS

from .epic_splits import CLASSES, PARTICIPANTS, EpicSegment, read_split, split_file
from .multimodal_dataset import MultiModalDataset

FPS = 60
"""RGB frames per second; flow has half of it."""


@DATASETS.register_module()
class EPICKitchensDataset(MultiModalDataset):
    """EPIC-Kitchens with the splits of MM-SADA (Munro and Damen, CVPR 2020).

    ::

        MM-SADA_Domain_Adaptation_Splits/D{1,2,3}_{train,test}.{csv,pkl}
        rgb/{train,test}/D1/P08_01/frame_0000000245.jpg
        rgb/{train,test}/D1/P08_01.wav                      (the whole video)
        flow/{train,test}/D1/P08_01/{u,v}/frame_0000000123.jpg

    A newer repack keeps the frames under ``video/`` and the sound under ``audio/``;
    either is found. Rows of the train split are looked for under ``train/``, those of
    the test split under ``test/``, so a whole target has files under both. A CSV that
    ``tools/data/epic/convert_splits.py`` made is preferred to its pickle.

    A row is a segment ``[start_frame, stop_frame)`` of a video at 60 frames per
    second. Flow is sampled at half the rate: it starts at ``ceil(start_frame / 2)``
    and has ``floor((stop_frame - start_frame) / 2)`` frames. Frame numbers are those
    of the files. The pipelines are ``SampleClip`` and ``DecodeFrames`` for video,
    ``SampleClip`` and ``DecodeFlowFrames`` for flow, and
    ``LoadWaveform(span='segment', max_seconds=10)`` for audio, which reads from
    ``start`` to ``stop`` (seconds).

    Args are those of :class:`MultiModalDataset`.

    Raises:
        FileNotFoundError: If an annotation file is missing.
        pickle.UnpicklingError: If one is a pickle that holds more than a table.
        ValueError: For a faulty row, see :func:`.epic_splits.read_split`, or one of
            another domain's kitchen.
    """

    METAINFO = dict(classes=CLASSES, domains=tuple(PARTICIPANTS))

    SPLIT_FOLDER = "MM-SADA_Domain_Adaptation_Splits"
    FRAME = "frame_{:010d}.jpg"

    ROOTS = dict(
        video=("rgb", "video"), flow=("flow",), audio=("audio", "rgb", "video")
    )
    """Folders of the data root that may hold a modality, in the order of search."""

    def annotation_file(self, domain: str, split: str) -> str:
        """The split's CSV file, or the pickle if there is none."""
        return split_file(osp.join(self.data_root, self.SPLIT_FOLDER), domain, split)

    def rows(self, domain: str, split: str) -> list[dict]:
        """Reads the split's annotation file."""
        path = self.annotation_file(domain, split)
        if not osp.isfile(path):
            raise FileNotFoundError(
                f"no annotation file {path} (nor a .csv beside it) for the {split} "
                f"split of {domain!r}. Download the MM-SADA splits and set data_root "
                f"to the folder that holds {self.SPLIT_FOLDER}"
            )
        segments = read_split(path, self._metainfo["classes"])
        kitchen = PARTICIPANTS.get(domain)
        for segment in segments:
            if kitchen and segment.participant_id != kitchen:
                raise ValueError(
                    f"{path}: uid {segment.uid} is of participant "
                    f"{segment.participant_id}, but {domain} is {kitchen}: the file "
                    "belongs to another domain"
                )
        # A video has hundreds of segments: look for its files once.
        videos = dict.fromkeys(segment.video_id for segment in segments)
        files = {video: self._files(domain, split, video) for video in videos}
        return [self._row(domain, s, files[s.video_id]) for s in segments]

    def _row(
        self, domain: str, segment: EpicSegment, files: dict[str, str | tuple[str, str]]
    ) -> dict:
        start, length = segment.start_frame, segment.stop_frame - segment.start_frame
        ranges = dict(
            video=(start, length, FPS), flow=(-(-start // 2), length // 2, FPS / 2)
        )
        if not length // 2:
            # A segment of one frame has no flow, and cannot be sampled.
            files = {key: files[key] for key in files if key != "flow"}
        return dict(
            sample_id=f"{domain}/{segment.video_id}/{segment.uid}",
            label=segment.verb_class,
            start=segment.start,
            stop=segment.stop,
            files=files,
            extras={
                modality: dict(
                    start_index=first,
                    total_frames=count,
                    avg_fps=fps,
                    filename_tmpl=self.FRAME,
                )
                for modality, (first, count, fps) in ranges.items()
            },
        )

    def _files(
        self, domain: str, split: str, video: str
    ) -> dict[str, str | tuple[str, str]]:
        def find(modality: str, name: str) -> str:
            roots = [osp.join(self.data_root, r) for r in self.ROOTS[modality]]
            return self._first([osp.join(r, split, domain, name) for r in roots], roots)

        flow = find("flow", video)
        return dict(
            video=find("video", video),
            flow=(osp.join(flow, "u"), osp.join(flow, "v")),
            audio=find("audio", f"{video}.wav"),
        )

    @staticmethod
    def _first(paths: Sequence[str], roots: Sequence[str]) -> str:
        """The first that exists; else the first whose root does, for the error."""
        there = [p for p, r in zip(paths, roots, strict=True) if osp.isdir(r)]
        return next(filter(osp.exists, there), (there or paths)[0])
