"""Training: optimizer wrappers, hooks, loops."""

from .buffer_hook import AverageBatchNormHook
from .checkpoint import AtomicLocalBackend, ResumableCheckpointHook
from .finite_guard import FiniteGuardHook
from .loops import ResumableTrainLoop
from .optim_wrapper import AmpMBCDOptimWrapper, InnerStepMixin, MBCDOptimWrapper
from .run_report import BriefRunner, RunReportHook
from .teacher_ema_hook import TeacherEMAHook

__all__ = [
    "AmpMBCDOptimWrapper",
    "AtomicLocalBackend",
    "AverageBatchNormHook",
    "BriefRunner",
    "FiniteGuardHook",
    "InnerStepMixin",
    "MBCDOptimWrapper",
    "ResumableCheckpointHook",
    "ResumableTrainLoop",
    "RunReportHook",
    "TeacherEMAHook",
]
