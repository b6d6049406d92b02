"""Training: optimizer wrappers, hooks, loops."""

from .buffer_hook import AverageBatchNormHook
from .checkpoint import AtomicLocalBackend, ResumableCheckpointHook
from .loops import ResumableTrainLoop
from .optim_wrapper import AmpMBCDOptimWrapper, InnerStepMixin, MBCDOptimWrapper
from .teacher_ema_hook import TeacherEMAHook

__all__ = [
    "AmpMBCDOptimWrapper",
    "AtomicLocalBackend",
    "AverageBatchNormHook",
    "InnerStepMixin",
    "MBCDOptimWrapper",
    "ResumableCheckpointHook",
    "ResumableTrainLoop",
    "TeacherEMAHook",
]
