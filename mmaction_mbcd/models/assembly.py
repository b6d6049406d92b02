"""What a recognizer is made of: its parts are built, checked, and lent helpers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmaction.registry import MODELS
from mmengine.model import BaseModel, ModuleDict, ModuleList
from torch import nn

from . import config_checks
from .inner_step import InnerStep
from .modality_encoders import ModalityEncoders, build_norm
from .step import Lent, StepOptimizer


class RecognizerParts(BaseModel):
    """Encoders, normalisations, heads, neck and objectives, and what others lend.

    Arguments and errors are those of :class:`.MultiModalRecognizer`, which adds the
    step.
    """

    def __init__(
        self,
        encoders: Mapping[str, dict],
        num_classes: int,
        modalities: Sequence[str] | None = None,
        norm: dict | None = None,
        neck: dict | None = None,
        fused_head: dict | None = None,
        unimodal_head: dict | None = None,
        probe: bool = False,
        inner_step: dict | None = None,
        objectives: Sequence[dict] | None = None,
        extra_objectives: Sequence[dict] = (),
        num_domains: int | None = None,
        channels_last: bool = False,
        data_preprocessor: dict | nn.Module | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor, init_cfg)
        # MMAction2's preprocessors have no argument for it. From page-locked memory the
        # device fetches a batch by itself, while the CPU enqueues the step.
        self.data_preprocessor._non_blocking = True
        self.modalities = list(encoders if modalities is None else modalities)
        self.num_classes, self.num_domains = num_classes, num_domains
        self.probe = probe
        config_checks.check_modalities(self.modalities, encoders)
        self.encoders = ModalityEncoders(encoders, self.modalities)
        if channels_last:
            self.encoders.put_channels_last()
        channels = self.encoders.channels
        self.norms = ModuleDict({m: build_norm(norm, d) for m, d in channels.items()})
        self.unimodal_heads = ModuleDict()
        if unimodal_head is not None:
            for m, width in channels.items():
                self.unimodal_heads[m] = self._build_head(unimodal_head, width)
        self.neck = MODELS.build(neck or dict(type="ConcatFusion"))
        fused_head = fused_head or dict(type="MLPHead")
        self.fused_head = self._build_head(fused_head, sum(channels.values()))
        objectives = objectives or [dict(type="ClassificationObjective")]
        self.objectives = ModuleList(
            map(self._build_objective, (*objectives, *extra_objectives))
        )
        self.inner_step = None
        if inner_step is not None:
            known = config_checks.INNER_STEP_KEYS & inner_step.keys()
            options = {key: inner_step[key] for key in known}
            self.inner_step = InnerStep(self.encoders, **options)
        if problems := config_checks.model_problems(self, inner_step):
            raise ValueError("model config: " + "; ".join(problems))
        self._lent, self._checked = Lent(), False

    def _build_head(self, head: dict, in_channels: int) -> nn.Module:
        return MODELS.build(
            dict(head, in_channels=in_channels, num_classes=self.num_classes)
        )

    def _build_objective(self, objective: dict) -> nn.Module:
        known = dict(
            channels=self.encoders.channels,
            num_classes=self.num_classes,
            num_domains=self.num_domains,
        )
        kind = objective["type"]
        found = MODELS.get(kind) if isinstance(kind, str) else kind
        wanted = getattr(found, "filled_in", ())
        if "num_domains" in wanted and self.num_domains is None:
            raise ValueError(
                f"model config: {kind} tells source domains apart: set "
                "model.num_domains to their number"
            )
        return MODELS.build(objective | {name: known[name] for name in wanted})

    def theta(self) -> dict[str, dict[str, nn.Parameter]]:
        """Trainable parameters of each encoder and of its unimodal head."""
        theta = {}
        for m, encoder in self.encoders.items():
            own = dict(encoder.named_parameters())
            if m in self.unimodal_heads:
                own |= dict(self.unimodal_heads[m].named_parameters(prefix="head"))
            theta[m] = {name: p for name, p in own.items() if p.requires_grad}
        return theta

    def stem_modules(self) -> list[str]:
        """Dotted names of all frozen submodules that a teacher can share."""
        return [f"encoders.{name}" for name in self.encoders.shared_stem_modules()]

    @property
    def has_teacher(self) -> bool:
        """Whether a teacher was lent."""
        return self._lent.teacher is not None

    def training_problems(self, dataset: object, optim_wrapper: object) -> list[str]:
        """See :func:`.config_checks.training_problems`."""
        return config_checks.training_problems(self, dataset, optim_wrapper)

    def bind_optimizer(self, optimizer: StepOptimizer | None) -> None:
        """Lends the optimizer wrapper for one step; None takes it back."""
        if self.inner_step is not None and not self._checked:
            config_checks.refuse_checkpointing(self)
            self._checked = True
        self._lent.optimizer = optimizer

    def bind_teacher(
        self,
        teacher: RecognizerParts | None,
        beside: str | None = None,
        started: bool = True,
    ) -> None:
        """Lends the averaged model, see :class:`.Lent`; None takes it back."""
        self._lent.teacher, self._lent.beside = teacher, beside
        self._lent.teacher_started = started

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles carry nothing that was lent."""
        return self.__dict__ | dict(_lent=Lent(), _checked=False)
