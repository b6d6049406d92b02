"""Datasets, their transforms, and sampling that can be resumed."""

from . import transforms
from .collate import collate_views
from .config_checks import SAMPLINGS
from .epic_kitchens import EPICKitchensDataset
from .hac import HACDataset
from .multimodal_dataset import MultiModalDataset
from .presence import AbsentModalityError
from .sampler import ResumableSampler, SampleIndex
from .seeding import derive_seed, seeded
from .synth_action import SynthActionDataset
from .transforms import MissingModalityError, UnreadableMediaError
from .video_folder import VideoFolderDataset

__all__ = [
    "SAMPLINGS",
    "AbsentModalityError",
    "EPICKitchensDataset",
    "HACDataset",
    "MissingModalityError",
    "MultiModalDataset",
    "ResumableSampler",
    "SampleIndex",
    "SynthActionDataset",
    "UnreadableMediaError",
    "VideoFolderDataset",
    "collate_views",
    "derive_seed",
    "seeded",
    "transforms",
]
