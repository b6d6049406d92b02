"""Clips with several modalities, from domains that are sources or targets."""

import functools
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from mmaction.registry import TRANSFORMS
from mmaction.structures import ActionDataSample
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log
from torch.utils.data import get_worker_info

from .. import cores
from .config_checks import check_order, refuse_wrong_config
from .durations import ending_early, seconds_of
from .errors import AnnotationError, DataError, MissingFileError
from .frame_store import FrameStore, FrameStoreError
from .presence import (
    Presence,
    count_presence,
    is_there,
    refuse_absence,
    report_absence,
)
from .reading_notes import Note, ReadingNotes
from .sampler import SampleIndex
from .seeding import restored_generators, seed_generators
from .stored_sound import with_stored_spectrograms
from .transforms import MissingModalityError, UnreadableMediaError

SPLITS = {"full": ("train", "test"), "test": ("test",)}

MENTIONED = 3
"""Samples with an early end that a process mentions."""

# The row keys that every modality's pipeline does not get as they are.
_RESERVED = ("files", "extras", "role", "domain_index", "split")


class NoModalityError(DataError, ValueError):
    """A sample has none of the modalities in use."""


class MultiModalDataset(BaseDataset):
    """One row, one pipeline per modality, one data sample.

    A subclass says where the rows are (:meth:`rows`) and names its classes and
    domains in ``METAINFO``. This class chooses the rows for a use, runs the pipelines
    and marks what a sample lacks.

    ========== ==================================================================
    ``use``    rows
    ========== ==================================================================
    train      the train split of every source
    val        the test split of every source, for model selection; with
               ``watch_target`` also the target's rows, for curves only
    test       the target's rows: train and test split (``eval_split='full'``, the
               paper's Table 6) or its test split only
    in_domain  the test split of every source (the paper's Tables 3 and 10)
    held_out   as test, but only the clips of ``held_out_classes``
    ========== ==================================================================

    Each item is ``dict(inputs={modality: tensor}, data_samples=ActionDataSample)``.
    The data sample has ``gt_label`` ``(1,)`` and, as metainfo, ``sample_id``,
    ``domain``, ``domain_index`` (among the sources; -1 for a target), ``role``
    (``'source'`` or ``'target'``), ``present`` ``{modality: bool}``, ``view`` (0, or 1
    for a second view) and ``skipped`` (why the sample could not be read, or ``''``;
    then also ``fault``, ``'missing'`` or ``'damaged'``).
    The tensor of an absent modality is zero with one element per channel;
    ``stack_batch`` pads it to its batch.

    A pipeline gets a dict as MMAction2's transforms expect it: ``filename`` (a path,
    or a tuple of paths), ``label``, ``start_index``, ``modality`` (``'RGB'``,
    ``'Flow'`` or ``'Audio'``), and further ``modality_key`` (our name of it),
    ``sample_id``, ``domain``, ``sampling``, and ``others``, the results of the
    modalities that are finished. It leaves ``imgs`` or ``audios``.

    In training every draw of a sample is a function of (seed, epoch, index) if the
    index is a :class:`SampleIndex`; with a stock sampler it depends on the state of
    the process. In the other uses it is a function of the index.

    Args:
        data_root: Folder of the dataset.
        pipelines: ``{modality: [transforms]}``. A list within a list is spliced, so
            that pipelines may share pieces.
        modalities: Those in use, in this order: a subset of the pipelines' keys.
            ``None`` takes all, in their order.
        sources: Training domains. ``None``: every domain but the target.
        target: The unseen domain, or several. ``None`` needs ``sources``.
        use: See the table.
        eval_split: Which of the target's rows are evaluated, ``'full'`` or ``'test'``.
        watch_target: See the table; for ``use='val'`` only.
        joint_augment: Every modality's pipeline starts from the same random state, so
            that crop, flip and time agree where the transforms do. ``False``: each
            draws its own (as the published code does).
        optional_modalities: Those that a sample may lack. A sample without another
            one is an error.
        absent_ok: Those that all clips of a domain and split may lack, such as
            ``('audio',)`` where a domain was recorded without sound; a sample may
            lack them too. Any other modality that no clip of a domain and split has
            is an error as soon as the rows are read: it looks like a misspelt folder.
        absent_warning: A larger share of clips of a domain and split that lack a
            modality is logged, with numbers, when the rows are read.
        on_error: What a sample with a damaged or missing file does. ``'raise'`` stops
            the run with an error that names the file. ``'skip'`` warns, names the
            file, and leaves the sample out of losses and of accuracies: it keeps its
            place in the batch with every modality absent, and no other sample takes
            its place. ``DomainAccuracy`` and the log report how many. A fault in an
            annotation file always raises.
        max_skipped: With ``on_error='skip'``, the share of the samples of one pass
            (an epoch, a validation, a test) that may be skipped. A run in which more
            are, and at least three, stops and lists them by kind; so does one in
            which no sample could be read. The training and evaluation loops of
            :mod:`mmaction_mbcd.engine` count, each process its own samples.
        read_timeout: Seconds that a data worker may take for one sample, all its
            modalities and views together; then the loops end it, and the run with it,
            by an error that names the sample and the file. ``None``: no limit. Without
            data workers the log names it, and the run goes on waiting.
        overlap: What happens to clips that stand in both splits of a domain (24 of
            HAC's human clips do; they are always reported). ``'keep'`` takes the rows
            as published. ``'drop'`` leaves them out of training, and counts them once
            in a target's full split.
        sampling: Which frames of a file and which sound are a sample, for the
            transforms that choose them (:class:`.OpenVideo`, :class:`.LoadWaveform`).
            ``'repaired'``: any of the file's N frames, and the sound of their time by
            the file's own rate. ``'published'``: as the loaders of the published code
            of HAC (SimMMDG's and the benchmark's, arXiv 2605.06643): a file counts as
            N - 1 frames, the frame before each sampled one is decoded, and sound is
            cut at 24 frames per second; silence is a modality that is there. A row
            that brings its own range of frames (EPIC-Kitchens' images) has it in both.
        held_out_classes: Names of classes whose clips are left out, in training as in
            evaluation, so that ``use='held_out'`` shows a model what it never knew. The
            model still has an output for them.
        frame_store: Folder of frames that ``tools/data/pack.py`` has decoded once
            (:mod:`.frame_store`); they are read instead of the sources, which must stay
            where they are. ``None``: the sources themselves.
        views: Views of each clip in training, each with its own random draws. With 2
            an item is a list of two, for ``collate_views``.
        test_mode: Follows from ``use`` and need not be given.
        kwargs: Of :class:`mmengine.dataset.BaseDataset`.

    Raises:
        AbsentModalityError: If no clip of a domain and split has a modality.
        ValueError: For a wrong configuration (all its faults at once), an empty split
            or a label that is not a class.
        FileNotFoundError: If a split file is missing.
    """

    MODALITY_TYPES: Mapping[str, str] = {
        "video": "RGB",
        "flow": "Flow",
        "audio": "Audio",
    }
    """MMAction2's kind of each modality. A subclass may add names of its own."""

    PLACEHOLDERS: Mapping[str, tuple[tuple[int, ...], torch.dtype]] = {
        "RGB": ((3, 1, 1, 1), torch.uint8),
        "Flow": ((2, 1, 1, 1), torch.uint8),
        "Audio": ((1, 1, 1), torch.float32),
    }
    """Shape and type of an absent modality, by MMAction2's kind."""

    def __init__(
        self,
        data_root: str,
        pipelines: Mapping[str, Sequence[dict | Callable]],
        modalities: Sequence[str] | None = None,
        sources: Sequence[str] | str | None = None,
        target: Sequence[str] | str | None = None,
        use: str = "train",
        eval_split: str = "full",
        watch_target: bool = False,
        joint_augment: bool = True,
        optional_modalities: Sequence[str] = ("audio",),
        absent_ok: Sequence[str] = (),
        absent_warning: float = 0.05,
        on_error: str = "raise",
        max_skipped: float = 0.01,
        read_timeout: float | None = 300.0,
        overlap: str = "keep",
        sampling: str = "repaired",
        held_out_classes: Sequence[str] | str = (),
        frame_store: str | None = None,
        views: int = 1,
        test_mode: bool | None = None,
        **kwargs,
    ) -> None:
        metainfo = kwargs.pop("metainfo", None)
        metainfo = self.describe(data_root) | (metainfo or {})
        domains = tuple(metainfo["domains"])
        self.targets = _names(target)
        self.sources = (
            tuple(d for d in domains if d not in self.targets)
            if sources is None
            else _names(sources)
        )
        self.modalities = tuple(pipelines if modalities is None else modalities)
        self.use, self.eval_split = use, eval_split
        self.watch_target = watch_target
        self.joint_augment = joint_augment
        self.absent_ok, self.absent_warning = _names(absent_ok), absent_warning
        both = (*optional_modalities, *self.absent_ok)
        self.optional_modalities = tuple(dict.fromkeys(both))
        self._looked = False
        self.on_error, self.overlap, self.views = on_error, overlap, views
        self.max_skipped, self.read_timeout = max_skipped, read_timeout
        self.sampling = sampling
        self.held_out_classes = _names(held_out_classes)
        self.notes = ReadingNotes()
        self._warned: set[int] = set()
        self._mentioned: set[int] = set()

        refuse_wrong_config(
            self, pipelines, metainfo, named=sources is not None or bool(self.targets),
            test_mode=test_mode,
        )  # fmt: skip
        self.pipelines = {
            m: [TRANSFORMS.build(t) if isinstance(t, dict) else t for t in _flat(own)]
            for m, own in ((m, pipelines[m]) for m in self.modalities)
        }
        check_order(self.pipelines)
        self.frame_store = FrameStore(frame_store, data_root) if frame_store else None
        for modality, transforms in self.pipelines.items() if self.frame_store else ():
            self.frame_store.check_pipeline(modality, transforms)
            self.pipelines[modality] = with_stored_spectrograms(
                transforms, self.frame_store, modality, sampling
            )
        kwargs = {"data_prefix": {}, **kwargs}
        super().__init__(
            metainfo=metainfo, data_root=data_root, test_mode=use != "train", **kwargs
        )

    @classmethod
    def describe(cls, data_root: str) -> dict:
        """Classes and domains of the dataset in a folder, before it is built.

        Args:
            data_root: The folder. Datasets whose ``METAINFO`` is fixed do not look.
        """
        return dict(cls.METAINFO)

    def rows(self, domain: str, split: str) -> list[dict]:
        """The rows of one split of one domain.

        Args:
            domain: One of ``METAINFO['domains']``.
            split: ``'train'`` or ``'test'``.

        Returns:
            list[dict]: Each with ``sample_id`` (str), ``label`` (int) and ``files``
            ``{modality: path or tuple of paths}``; a modality that it leaves out, or
            whose files do not exist, is absent. ``extras`` ``{modality: dict}`` is
            added to that modality's results (``start_index``, ``total_frames``,
            ``filename_tmpl``, ...), and any further key (``start`` and ``stop`` in
            seconds, ...) to those of all.
        """
        raise NotImplementedError(f"{type(self).__name__} must say its rows()")

    def annotation_file(self, domain: str, split: str) -> str:
        """The file that :meth:`rows` reads, named by errors."""
        return f"the {split} split of {domain!r}"

    def look_for_files(self) -> list[Presence]:
        """How many clips lack each modality, by domain and split: one stat per file."""
        rows: dict[tuple[str, str], list[dict]] = {}
        for index in range(len(self)):
            row = self.get_data_info(index)
            rows.setdefault((row["domain"], row["split"]), []).append(row)
        return [
            presence
            for (domain, split), those in rows.items()
            for presence in count_presence(those, domain, split, self.modalities)
        ]

    def refuse_absence(self) -> None:
        """Looks for the files before a run reads them; the second call does nothing.

        Raises:
            AbsentModalityError: If no clip of a domain and split has a modality that is
                not in ``absent_ok``. A share above ``absent_warning`` is logged.
            FrameStoreError: If the frame store lacks entries.
        """
        if not self._looked:
            found, name = self.look_for_files(), type(self).__name__
            refuse_absence(name, found, self.modalities, self.absent_ok)
            report_absence(name, found, self.absent_warning)
            self._refuse_gaps()
            self._looked = True

    def _refuse_gaps(self) -> None:
        if self.frame_store is None:
            return
        rows = [self.get_data_info(index) for index in range(len(self))]
        if gaps := self.frame_store.gaps(rows, self.modalities):
            raise FrameStoreError(
                f"frame_store={self.frame_store.root!r} lacks {len(gaps)} entries of "
                f"the {self.use} clips, {gaps[0]} first: {self.frame_store.help}"
            )

    def load_data_list(self) -> list[dict]:
        """The rows of this use, in the order source by source, then the target."""
        parts = []
        if self.use not in ("test", "held_out"):
            split = "train" if self.use == "train" else "test"
            parts += [("source", domain, split) for domain in self.sources]
        if self.use in ("test", "held_out") or self.watch_target:
            splits = SPLITS[self.eval_split]
            parts += [("target", d, s) for d in self.targets for s in splits]
        data = []
        for role, domain, split in parts:
            rows = self.rows(domain, split)
            if not rows:
                raise AnnotationError(
                    f"empty split: {self.annotation_file(domain, split)} has no rows"
                )
            if split == "train":
                rows = self._without_overlap(rows, role, domain)
            index = self.sources.index(domain) if role == "source" else -1
            place = dict(domain=domain, split=split, role=role, domain_index=index)
            data += [dict(row, **place) for row in rows]
        data = self._of_classes(data)
        if self.use == "train":
            self._report_unseen_classes({row["label"] for row in data})
        return data

    def _held_out(self) -> set[int]:
        classes = list(self._metainfo["classes"])
        return {classes.index(name) for name in self.held_out_classes}

    def _of_classes(self, rows: list[dict]) -> list[dict]:
        """Those of the held-out classes, or of all others."""
        held_out, wanted = self._held_out(), self.use == "held_out"
        chosen = [row for row in rows if (row["label"] in held_out) == wanted]
        if not chosen:
            raise AnnotationError(
                f"none of the {len(rows)} clips is of "
                f"{'' if wanted else 'another class than '}"
                f"{', '.join(self.held_out_classes)} (held_out_classes)"
            )
        return chosen

    def _report_unseen_classes(self, trained: set[int]) -> None:
        """Says which classes the target has and no source: they are never predicted."""
        only: dict[int, int] = Counter()
        trained = trained | self._held_out()  # not tested on either
        for domain in self.targets:
            for split in SPLITS[self.eval_split]:
                try:
                    rows = self.rows(domain, split)
                except (ValueError, OSError):
                    continue  # the target's files are the test's affair
                only.update(r["label"] for r in rows if r["label"] not in trained)
        if only:
            classes = self._metainfo["classes"]
            named = ", ".join(f"{classes[i]!r} ({n} clips)" for i, n in only.items())
            print_log(
                f"{type(self).__name__}: the target has classes that no training clip "
                f"of {list(self.sources)} has, and that are counted as errors: {named}",
                logger="current",
                level=logging.WARNING,
            )

    def _without_overlap(self, rows: list[dict], role: str, domain: str) -> list[dict]:
        """Reports train rows that stand in the test split too; drops them if asked."""
        try:
            tested = {r["sample_id"]: r["label"] for r in self.rows(domain, "test")}
        except FileNotFoundError:
            if self.overlap == "drop":
                raise
            return rows
        for row in rows:
            other = tested.get(row["sample_id"], row["label"])
            if other != row["label"]:
                raise AnnotationError(
                    f"the clip {row['sample_id']!r} has the label {row['label']} in "
                    f"{self.annotation_file(domain, 'train')}, and {other} in "
                    f"{self.annotation_file(domain, 'test')}; a clip has one"
                )
        rest = [row for row in rows if row["sample_id"] not in tested]
        if len(rest) < len(rows):
            kept = {
                (
                    "keep",
                    "source",
                ): "and are trained on (overlap='drop' omits them)",
                ("keep", "target"): "and count twice (overlap='drop' counts them once)",
                ("drop", "source"): "and are left out of training",
                ("drop", "target"): "and count once",
            }
            print_log(
                f"{type(self).__name__}: {len(rows) - len(rest)} of the {len(rows)} "
                f"train clips of {domain!r} stand in its test split too, "
                f"{kept[self.overlap, role]}",
                logger="current",
            )
        return rest if self.overlap == "drop" else rows

    def check_label(self, label: object, file: str, line: int) -> int:
        """The label as a class index, for :meth:`rows`.

        Raises:
            ValueError: Naming file, line and the classes, if it is none.
        """
        classes = self._metainfo["classes"]
        try:
            value = int(label)
        except (TypeError, ValueError):
            value = -1
        if not 0 <= value < len(classes):
            raise AnnotationError(
                f"{file}, line {line}: label {label!r} is none of the {len(classes)} "
                f"classes (0 to {len(classes) - 1}: {', '.join(classes)})"
            )
        return value

    @property
    def counts(self) -> dict[str, int]:
        """``{domain: number of samples}``, in the order of the rows."""
        infos = (self.get_data_info(i) for i in range(len(self)))
        return dict(Counter(info["domain"] for info in infos))

    @property
    def metainfo(self) -> dict:
        """Classes, domains, sources, target and use.

        Once the rows are read, also ``N``, their number, and ``clips``, the number of
        different ones.
        """
        # Not handed to BaseDataset, which takes a string for the name of a file.
        info = super().metainfo
        info.update(sources=self.sources, target=self.targets, use=self.use)
        info.update(held_out_classes=self.held_out_classes)
        if self._fully_initialized:
            info["N"] = len(self)
            ids = {self.get_data_info(i)["sample_id"] for i in range(len(self))}
            info["clips"] = len(ids)
        return info

    def _entropy(self, index: int, position: int) -> tuple[int, ...]:
        if self.test_mode:
            return (0, position)
        if isinstance(index, SampleIndex) and index.entropy:
            return (*index.entropy, position)
        # A stock sampler: the process's generator decides, but for all modalities of
        # the sample together.
        return (int(np.random.randint(2**31)),)

    def prepare_data(self, idx: int) -> dict | list[dict]:
        """Loads one sample, or its views.

        Raises:
            FileNotFoundError: If a modality that is not optional has no file.
            UnreadableMediaError: If a file cannot be decoded.
            NoModalityError: If the sample has none of the modalities.
        """
        if get_worker_info() is not None:
            _begin_as_worker(os.getpid())
        row = self.get_data_info(idx)
        entropy = self._entropy(idx, row["sample_idx"])
        with self.notes.reading(int(idx)):
            views = [
                self._sample(row, (*entropy, view) if view else entropy, view)
                for view in range(self.views)
            ]
        return views if self.views > 1 else views[0]

    def describe_note(self, note: Note) -> str:
        """Sample, modality and files of a note in ``notes``."""
        row = self.get_data_info(note.index)
        text = f"sample {row['sample_id']!r}"
        if note.modality >= 0:
            modality = self.modalities[note.modality]
            files = " and ".join(_names(row["files"].get(modality)))
            text += f" ({modality}: {files or 'no file'})"
        return text

    def _sample(self, row: dict, entropy: tuple[int, ...], view: int) -> dict:
        try:
            with restored_generators():
                inputs, present = self._inputs(row, entropy)
            reason, fault = "", {}
        except (UnreadableMediaError, FileNotFoundError, NoModalityError) as error:
            if self.on_error == "raise":
                raise
            damaged = isinstance(error, UnreadableMediaError)
            reason, fault = str(error), dict(fault="damaged" if damaged else "missing")
            inputs = {m: self._placeholder(m) for m in self.modalities}
            present = dict.fromkeys(self.modalities, False)
            if row["sample_idx"] not in self._warned:
                self._warned.add(row["sample_idx"])
                print_log(
                    f"sample {row['sample_id']!r} is skipped: {reason}",
                    logger="current",
                    level=logging.WARNING,
                )
        sample = ActionDataSample().set_gt_label(row["label"])
        keys = ("sample_id", "domain", "domain_index", "role")
        facts = dict(present=present, view=view, skipped=reason) | fault
        sample.set_metainfo({key: row[key] for key in keys} | facts)
        return dict(inputs=inputs, data_samples=sample)

    def _placeholder(self, modality: str) -> torch.Tensor:
        shape, dtype = self.PLACEHOLDERS[self.MODALITY_TYPES[modality]]
        return torch.zeros(shape, dtype=dtype)

    def _inputs(
        self, row: dict, entropy: tuple[int, ...]
    ) -> tuple[dict[str, torch.Tensor], dict[str, bool]]:
        """The tensors of a sample, and which of them are real."""
        inputs, present, finished, reasons = {}, {}, {}, []
        for place, modality in enumerate(self.modalities):
            self.notes.note_modality(place)
            own = () if self.joint_augment else (modality,)
            try:
                seed_generators(*entropy, *own)
                results = self._load(row, modality, finished)
            except MissingModalityError as reason:
                if modality not in self.optional_modalities:
                    raise MissingFileError(
                        f"sample {row['sample_id']!r} has no {modality}: {reason}. "
                        "Fetch or extract it, leave the sample out of the split file, "
                        f"or admit its absence with optional_modalities="
                        f"{[*self.optional_modalities, modality]}"
                    ) from reason
                inputs[modality] = self._placeholder(modality)
                present[modality] = False
                reasons.append(f"{modality}: {reason}")
                continue
            finished[modality] = results
            inputs[modality] = _tensor(results, modality)
            present[modality] = True
        if not finished:
            raise NoModalityError(
                f"sample {row['sample_id']!r} has none of the modalities "
                f"{list(self.modalities)} ({'; '.join(reasons)}): there is nothing to "
                "recognize it by. Leave it out of the split file"
            )
        self._mention_early_ends(row, finished)
        # The results refer to each other by it, and would hold the clip's frames until
        # Python looks for such circles: ten clips later.
        finished.clear()
        return inputs, present

    def _mention_early_ends(self, row: dict, finished: Mapping[str, dict]) -> None:
        """Logs what is admitted, for a few samples of each process."""
        done = len(self._mentioned) >= MENTIONED
        if done or row["sample_idx"] in self._mentioned:
            return
        lengths = {m: seconds_of(results) for m, results in finished.items()}
        for modality, missing in ending_early(lengths):
            self._mentioned.add(row["sample_idx"])
            print_log(
                f"sample {row['sample_id']!r}: {modality} ends {missing:.1f} s before "
                "another modality (tools/data/check.py lists all such clips)",
                logger="current",
                level=logging.WARNING,
            )

    def _load(self, row: dict, modality: str, finished: dict[str, dict]) -> dict:
        """Runs one modality's pipeline."""
        files = row["files"].get(modality)
        if files is None:
            raise MissingModalityError("the split has no file for it")
        for path in _names(files):
            if not is_there(path):
                raise MissingModalityError(f"{path} does not exist")
        results = {key: row[key] for key in row if key not in _RESERVED}
        results.update(
            filename=files,
            start_index=0,
            modality=self.MODALITY_TYPES[modality],
            modality_key=modality,
            sampling=self.sampling,
            frame_store=self.frame_store,
            others=finished,
        )
        results.update(row.get("extras", {}).get(modality, {}))
        for transform in self.pipelines[modality]:
            results = transform(results)
            if results is None:
                raise ValueError(
                    f"{type(transform).__name__} of {modality!r} returned nothing for "
                    f"sample {row['sample_id']!r}; another sample is never put in its "
                    "place"
                )
        return results


@functools.lru_cache(maxsize=1)
def _begin_as_worker(process: int) -> None:
    """Once in each data worker, which inherits what its parent remembers."""
    cores.keep_freed_memory_of_a_worker()


def _flat(pipeline: Sequence) -> Iterator[dict | Callable]:
    """The transforms of a pipeline; lists within it are spliced."""
    for each in pipeline:
        if isinstance(each, (list, tuple)):
            yield from _flat(each)
        else:
            yield each


def _names(value: Sequence[str] | str | None) -> tuple[str, ...]:
    """One name, several or none, as a tuple."""
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)


def _tensor(results: dict, modality: str) -> torch.Tensor:
    """What a pipeline left, as a tensor."""
    for key in ("imgs", "audios"):
        if key in results:
            value = results[key]
            if isinstance(value, torch.Tensor):
                return value
            if isinstance(value, np.ndarray):
                return torch.from_numpy(np.ascontiguousarray(value))
    raise ValueError(
        f"the pipeline of {modality!r} left neither a tensor nor an array in 'imgs' or "
        f"'audios' (keys {sorted(results)}): end it with FormatClip or FormatAudio"
    )
