"""Log-spectrograms that were computed once, in a frame store beside the frames.

Where a pipeline reads the same part of a sound file whenever it reads a clip
(EPIC-Kitchens' segments; not HAC, where sound follows the sampled frames), its first
three transforms give the same spectrogram in every epoch. An entry holds what they
gave, as a NumPy file in the archive; what is random comes behind them, as before.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .frame_store import Clip, FrameStore, StoredClip
from .transforms.audio import LoadWaveform, LogSpectrogram, TileWaveform
from .transforms.loading import UnreadableMediaError

_CHAIN = (LoadWaveform, TileWaveform, LogSpectrogram)
_KEPT = ("sample_rate", "audio_span", "recorded")
"""What else the transforms leave in the results."""


def spectrogram_steps(transforms: Sequence[Callable]) -> list[Callable]:
    """The leading transforms that make a clip's spectrogram; none if it changes."""
    first = list(transforms[: len(_CHAIN)])
    fixed = tuple(map(type, first)) == _CHAIN and first[0].span != "frames"
    return first if fixed else []


def signature(steps: Sequence[Callable], sampling: str | None) -> list:
    """What decides over the spectrograms that transforms make, as JSON has it."""
    said = [[type(step).__name__, vars(step)] for step in steps]
    return json.loads(json.dumps([*said, sampling]))


def sound_of(row: Mapping, files: str, steps: Sequence[Callable]) -> Clip:
    """The clip of a row's sound: a file, or microseconds of one."""
    if steps[0].span != "segment":
        return Clip((files,))
    start, stop = (round(row[key] * 1e6) for key in ("start", "stop"))
    return Clip((files,), start, max(stop - start, 1))


def encode(results: Mapping | None) -> tuple[bytes, dict]:
    """A spectrogram as a file, and what an entry says of it.

    Args:
        results: Of the transforms; None if the clip has no sound there.
    """
    file = io.BytesIO()
    spectrogram = np.empty((0, 0), np.float32) if results is None else results["audios"]
    np.save(file, spectrogram, allow_pickle=False)
    kept = {key: results[key] for key in _KEPT} if results else {}
    return file.getvalue(), dict(kept=kept)


def decode(data: bytes, grey: bool = False) -> np.ndarray:
    """The other way round, ``(F, T)`` float32."""
    return np.load(io.BytesIO(data), allow_pickle=False)


@dataclass
class StoredSpectrogram:
    """Stands in for the transforms that make a clip's spectrogram.

    A clip without an entry goes through the transforms.

    Attributes:
        steps: The transforms.
        store: Has the spectrograms.
        modality: Of the sound.
    """

    steps: Sequence[Callable]
    store: FrameStore
    modality: str

    def __call__(self, results: dict) -> dict:
        """Reads the spectrogram.

        Raises:
            UnreadableMediaError: If the entry is damaged, or its sound has changed.
            MissingModalityError: As the transforms do.
        """
        clip = sound_of(results, results["filename"], self.steps)
        try:
            stored = self.store.open(self.modality, clip, decode, optional=True)
            found = None if stored is None else stored.get_batch([clip.first])[0]
        except (OSError, ValueError) as error:
            raise UnreadableMediaError.of(
                results, error, "Pack it again (tools/data/pack.py)"
            ) from error
        if found is None or not found.size:
            for step in self.steps:
                results = step(results)
            return results
        return dict(results, audios=found, **_kept_of(stored))


def _kept_of(stored: StoredClip) -> dict:
    kept = stored.facts["kept"]
    return dict(kept, audio_span=tuple(kept["audio_span"]))


def with_stored_spectrograms(
    transforms: Sequence[Callable], store: FrameStore, modality: str, sampling: str
) -> list[Callable]:
    """A pipeline that reads spectrograms from a store, if the store has such."""
    steps = spectrogram_steps(transforms)
    kept = store.settings.spectrograms.get(modality)
    if not steps or kept != signature(steps, sampling):
        return list(transforms)
    stored = StoredSpectrogram(steps, store, modality)
    return [stored, *transforms[len(steps) :]]
