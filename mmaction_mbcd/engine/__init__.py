"""Training: optimizer wrappers, hooks, loops."""

from .balance_trace import BalanceTraceHook
from .buffer_hook import AverageBatchNormHook
from .checkpoint import AtomicLocalBackend, ResumableCheckpointHook
from .data_faults import DataWorkerError, TooManySkippedError
from .finite_guard import FiniteGuardHook
from .loops import ResumableTrainLoop, WatchfulTestLoop, WatchfulValLoop
from .optim_wrapper import AmpMBCDOptimWrapper, InnerStepMixin, MBCDOptimWrapper
from .run_report import BriefRunner, RunReportHook
from .step_values import StepInfoHook
from .teacher_ema_hook import TeacherEMAHook

__all__ = [
    "AmpMBCDOptimWrapper",
    "AtomicLocalBackend",
    "AverageBatchNormHook",
    "BalanceTraceHook",
    "BriefRunner",
    "DataWorkerError",
    "FiniteGuardHook",
    "InnerStepMixin",
    "MBCDOptimWrapper",
    "ResumableCheckpointHook",
    "ResumableTrainLoop",
    "RunReportHook",
    "StepInfoHook",
    "TeacherEMAHook",
    "TooManySkippedError",
    "WatchfulTestLoop",
    "WatchfulValLoop",
]
