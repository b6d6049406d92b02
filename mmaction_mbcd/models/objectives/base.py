"""What every objective is."""

from mmengine.model import BaseModule
from torch import Tensor

from ..step import StepOutputs


class Objective(BaseModule):
    """One loss formula: reads :class:`StepOutputs`, returns named losses.

    A subclass may hold trainable parts of its own; they are trained, averaged by
    the teacher and saved with the model. Keys that contain ``loss`` are summed and
    minimised; other keys are only logged.

    Attributes:
        needs_teacher: The objective reads ``outputs.teacher``.
        needs_unimodal: The objective trains through ``outputs.unimodal_logits``.
    """

    needs_teacher = False
    needs_unimodal = False

    def forward(self, outputs: StepOutputs) -> dict[str, Tensor]:
        """Computes the losses of one step."""
        raise NotImplementedError
