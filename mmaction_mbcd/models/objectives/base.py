"""What every objective is."""

from mmengine.model import BaseModule
from torch import Tensor

from ..step import StepOutputs


class Objective(BaseModule):
    """One loss: reads :class:`StepOutputs`, returns named losses.

    A subclass may hold trainable parts of its own; they are trained, averaged by
    the teacher and saved with the model. Keys that contain ``loss`` are summed and
    minimised; other keys are only logged. Objectives run in the order of the config.

    Attributes:
        needs_teacher: The objective reads ``outputs.teacher``.
        needs_unimodal: The objective trains through ``outputs.unimodal_logits``.
        needs_heads: The objective reads ``outputs.unimodal_logits``; probes will do.
        needs_domains: The objective reads ``outputs.domains``; every training sample
            must have a source domain.
        needs_views: How many views of each clip a batch must hold.
        needs_theta: The objective reads ``outputs.theta`` and takes gradients.
        filled_in: Constructor arguments that the recognizer supplies: ``channels``
            (``{modality: d}`` in declared order), ``num_classes``, ``num_domains``
            (source domains).
        embeds: If not empty, :meth:`embed` runs before the objectives do, for the
            student and with the averaged copy of this objective for the teacher; its
            result lies under this name in ``outputs.embeddings``.
    """

    needs_teacher = False
    needs_unimodal = False
    needs_heads = False
    needs_domains = False
    needs_views = 1
    needs_theta = False
    filled_in: tuple[str, ...] = ()
    embeds = ""

    def embed(self, outputs: StepOutputs) -> dict[str, Tensor]:
        """Embeddings ``{modality: (N, k)}`` that teacher and student compare."""
        return {}

    def forward(self, outputs: StepOutputs) -> dict[str, Tensor]:
        """Computes the losses of one step."""
        raise NotImplementedError
