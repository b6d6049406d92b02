"""The multi-modal recognizer: the order of events of one training step."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from mmaction.registry import MODELS
from mmengine.model import BaseModel, ModuleDict, ModuleList
from torch import Tensor, nn
from torch.func import functional_call

from . import functional
from .layers import connected_zero
from .necks.amd import modality_confidence
from .stages import State
from .step import StepOutputs


class InnerStep(Protocol):
    """What the optimizer wrapper offers to the recognizer during a step."""

    def inner_update(
        self, loss: Tensor, params: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Returns theta' = theta - alpha * gradient of ``loss``."""

    def sync_confidences(
        self, sums: Tensor, counts: Tensor, here: list[bool]
    ) -> tuple[Tensor, Tensor, list[bool]]:
        """Sums over processes if the wrapper synchronises; else what it was given."""

    def gradient(self, loss: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
        """Gradients as constants, taken with the loss scale where there is one."""


@dataclass
class _Bound:
    """What others lend to the recognizer; never saved, copied or registered."""

    inner_step: InnerStep | None = None
    teacher: MultiModalRecognizer | None = None
    started: bool = True
    companion: str | None = None
    checked: bool = False


@dataclass
class _Batch:
    """Facts about one batch that do not depend on the weights."""

    labels: Tensor | None
    domains: Tensor
    present: dict[str, Tensor]
    rows: dict[str, Tensor | None]  # indices of present samples; None for all
    valid: Tensor | None = None  # samples with any modality; None for all
    skipped: int = 0  # samples that could not be read
    views: int = 1

    @property
    def here(self) -> list[str]:
        """The modalities that at least one sample has."""
        return [m for m, rows in self.rows.items() if rows is None or len(rows)]


@MODELS.register_module()
class MultiModalRecognizer(BaseModel):
    """Encoders, unimodal heads, fusion and a fused head; any two modalities or more.

    One training step, in the order of the paper's Figure 2: stems, branches,
    unimodal logits, inner step, branches again at theta', fusion, teacher, losses.
    It knows no method by name. What a method is made of (unimodal heads, inner
    step, neck, objectives) is in its config.

    Args:
        encoders: ``{modality: encoder config}``. The order of declaration is the
            order of concatenation.
        num_classes: ``C``.
        modalities: Which encoders to use, in this order; all if None. A subset of
            the modalities is thus one value.
        norm: Config of the normalisation of each pooled feature before its head
            and before fusion, ``dict(type='LayerNorm', affine=False)``; None for
            none. The paper cites Xu et al. 2019, who find that gain and bias
            overfit; its code never trains them.
        neck: Config of the fusion.
        fused_head: Config; ``in_channels`` and ``num_classes`` are filled in.
        unimodal_head: Config of the head that each modality gets, or None.
        probe: The unimodal heads watch detached features: they report each
            modality's accuracy without changing the encoders.
        inner_step: None, or ``dict(scope='.*', bn_second_pass='discard')``: adapt
            the encoders' parameters by one gradient step on the unimodal losses
            before fusion (eq. 5). ``scope`` is a regular expression on
            ``<modality>.<parameter>``; ``bn_second_pass='shared'`` lets the second
            pass update BatchNorm statistics too, as the published code does: the
            branch's, and those of a stem that drifts, which then runs twice.
        objectives: Configs of the losses, in the order in which they run.
        extra_objectives: More of them, behind those of the method: what is put on top
            of it.
        num_domains: Number of source domains, for the objectives that discriminate
            them.
        data_preprocessor: Config, usually ``MultiModalDataPreprocessor``.
        init_cfg: As in MMEngine.

    Raises:
        ValueError: Naming every part of the config that cannot work.
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
        data_preprocessor: dict | nn.Module | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor, init_cfg)
        self.modalities = list(encoders if modalities is None else modalities)
        self.num_classes, self.num_domains = num_classes, num_domains
        self.probe = probe
        self._check_modalities(encoders)
        # MMEngine's containers, not torch's: only they pass init_weights on.
        self.encoders = ModuleDict(
            {m: MODELS.build(encoders[m]) for m in self.modalities}
        )
        channels = {m: e.feature_channels for m, e in self.encoders.items()}
        self.norms = ModuleDict(
            {m: _build_norm(norm, width) for m, width in channels.items()}
        )
        self.unimodal_heads = ModuleDict()
        if unimodal_head is not None:
            for m, width in channels.items():
                self.unimodal_heads[m] = self._build_head(unimodal_head, width)
        self.neck = MODELS.build(neck or dict(type="ConcatFusion"))
        self.fused_head = self._build_head(
            fused_head or dict(type="MLPHead"), sum(channels.values())
        )
        self.objectives = ModuleList(
            self._build_objective(objective, channels)
            for objective in (
                *(objectives or [dict(type="ClassificationObjective")]),
                *extra_objectives,
            )
        )
        self.inner_step = None
        if inner_step is not None:
            self.inner_step = dict(scope=".*", bn_second_pass="discard") | inner_step
            self._adaptable, self._branch_buffers = self._names_to_adapt()
        self._check_parts()
        self._bound = _Bound()

    # ------------------------------------------------------------------ building

    def _build_head(self, head: dict, in_channels: int) -> nn.Module:
        return MODELS.build(
            dict(head, in_channels=in_channels, num_classes=self.num_classes)
        )

    def _build_objective(self, objective: dict, channels: dict[str, int]) -> nn.Module:
        known = dict(
            channels=channels,
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

    def _check_modalities(self, encoders: Mapping[str, dict]) -> None:
        unknown = [m for m in self.modalities if m not in encoders]
        if unknown:
            raise ValueError(
                f"model.modalities names {unknown}, for which model.encoders has no "
                f"encoder; it has {list(encoders)}"
            )
        if not self.modalities or len(set(self.modalities)) != len(self.modalities):
            raise ValueError(
                "model.modalities must name at least one modality and none twice; "
                f"got {self.modalities}"
            )

    def _check_parts(self) -> None:
        problems = []
        trained_heads = len(self.unimodal_heads) > 0 and not self.probe
        if self.neck.needs_confidence:
            if len(self.modalities) < 2:
                problems.append(
                    "adaptive modality dropout compares modalities and needs at "
                    f"least two; got {self.modalities}: use ConcatFusion"
                )
            if not trained_heads:
                problems.append(
                    f"{type(self.neck).__name__} compares unimodal confidences and "
                    "needs trained unimodal heads: set model.unimodal_head and "
                    "probe=False"
                )
        for objective in self.objectives:
            if objective.needs_unimodal and not trained_heads:
                problems.append(
                    f"{type(objective).__name__} trains unimodal heads: set "
                    "model.unimodal_head and probe=False"
                )
            if objective.needs_heads and not len(self.unimodal_heads):
                problems.append(
                    f"{type(objective).__name__} compares unimodal confidences: set "
                    "model.unimodal_head (probe=True will do)"
                )
        if self.inner_step is not None:
            problems += self._inner_step_problems(trained_heads)
        if problems:
            raise ValueError("model config: " + "; ".join(problems))

    def _inner_step_problems(self, trained_heads: bool) -> list[str]:
        problems = []
        if not trained_heads:
            problems.append(
                "the inner step follows the unimodal losses: set model.unimodal_head "
                "and probe=False"
            )
        unknown = set(self.inner_step) - {"scope", "bn_second_pass"}
        if unknown:
            problems.append(
                f"inner_step has unknown keys {sorted(unknown)}; it takes scope and "
                "bn_second_pass (alpha and order belong to optim_wrapper)"
            )
        if self.inner_step["bn_second_pass"] not in ("discard", "shared"):
            problems.append(
                "inner_step.bn_second_pass must be discard or shared; got "
                f"{self.inner_step['bn_second_pass']!r}"
            )
        if not any(self._adaptable.values()):
            problems.append(
                f"inner_step.scope={self.inner_step['scope']!r} matches no trainable "
                "encoder parameter"
            )
        return problems

    def adaptable_parameters(self) -> dict[str, dict[str, nn.Parameter]]:
        """Theta of eq. 5: ``{modality: {name below the encoder: parameter}}``."""
        return {
            m: {name: encoder.get_parameter(name) for name in self._adaptable[m]}
            for m, encoder in self.encoders.items()
        }

    def _names_to_adapt(self) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """Names of adaptable parameters and of the branches' buffers."""
        scope = re.compile(self.inner_step["scope"])
        parameters, buffers = {}, {}
        for m, encoder in self.encoders.items():
            stem = tuple(f"{name}." for name in encoder.stem_modules())
            parameters[m] = [
                name
                for name, parameter in encoder.named_parameters()
                if parameter.requires_grad and scope.search(f"{m}.{name}")
            ]
            buffers[m] = [
                name for name, _ in encoder.named_buffers() if not name.startswith(stem)
            ]
        return parameters, buffers

    def refuse_checkpointing(self) -> None:
        """Activation checkpointing would recompute at theta what ran at theta'.

        Raises:
            ValueError: Naming the modules that recompute.
        """
        found = []
        for m, encoder in self.encoders.items():
            stem = tuple(encoder.stem_modules())
            for name, module in encoder.named_modules():
                wrapped = getattr(module, "with_cp", False) or "forward" in vars(module)
                if wrapped and not (stem and name.startswith(stem)):
                    found.append(f"encoders.{m}.{name}")
        if found:
            raise ValueError(
                "activation checkpointing on branches that the inner step adapts "
                "would recompute them with other weights and give wrong gradients, "
                f"silently. Turn it off for {', '.join(found[:3])}"
                + (f" and {len(found) - 3} more" if len(found) > 3 else "")
            )

    # ------------------------------------------------------------------- lending

    def bind_inner_step(self, inner_step: InnerStep | None) -> None:
        """Lends the optimizer wrapper for one step; None takes it back."""
        if self.inner_step is not None and not self._bound.checked:
            self.refuse_checkpointing()
            self._bound.checked = True
        self._bound.inner_step = inner_step

    def bind_teacher(
        self,
        teacher: MultiModalRecognizer | None,
        companion: str | None = None,
        started: bool = True,
    ) -> None:
        """Lends the averaged model.

        It is not registered: the teacher appears in no parameter list, state dict
        or DDP bucket of the student.

        Args:
            teacher: A recognizer of the same architecture, or None.
            companion: In evaluation, the name under which its predictions are
                reported beside the own ones; None reports none. MMEngine's EMA
                hook swaps weights for evaluation, so the lent module then holds
                the student.
            started: False in the iterations in which the teacher copies the student.
        """
        self._bound.teacher, self._bound.companion = teacher, companion
        self._bound.started = started

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles carry nothing that was lent."""
        return self.__dict__ | {"_bound": _Bound()}

    def stem_modules(self) -> list[str]:
        """Dotted names of all frozen submodules that a teacher can share."""
        return [
            f"encoders.{m}.{name}"
            for m, encoder in self.encoders.items()
            if encoder.stem_norm_eval
            for name in encoder.stem_modules()
        ]

    # ------------------------------------------------------------------ the step

    def forward(
        self,
        inputs: dict[str, Tensor],
        data_samples: list | None = None,
        mode: str = "tensor",
    ) -> dict[str, Tensor] | list | Tensor:
        """MMEngine's three modes.

        Args:
            inputs: ``{modality: batch tensor}``; never changed.
            data_samples: With ``gt_label`` and, as metainfo, ``present`` and
                ``domain_index``.
            mode: ``loss`` -> named losses; ``predict`` -> the data samples with
                scores; ``tensor`` -> fused logits ``(N, C)``.
        """
        if mode == "loss":
            return self.loss(inputs, data_samples)
        if mode == "predict":
            return self.predict(inputs, data_samples)
        if mode == "tensor":
            batch = self._read(inputs, data_samples)
            return self.evaluate(self._stems(inputs, batch), batch).fused_logits
        raise ValueError(f"mode must be loss, predict or tensor; got {mode!r}")

    def loss(self, inputs: dict[str, Tensor], data_samples: list) -> dict[str, Tensor]:
        """One training step up to its losses; the wrapper's backward follows."""
        if any(objective.needs_domains for objective in self.objectives):
            _check_domains(data_samples, self.num_domains)
        batch = self._read(inputs, data_samples)
        states = self._stems(inputs, batch)
        outputs = self._unimodal(states, batch, apply_dsu=True)  # at theta
        features = outputs.features
        if self.inner_step is not None:
            adapted = self._inner_update(outputs)  # theta' = theta - alpha grad
            if self.inner_step["bn_second_pass"] == "shared":
                # Equal outputs, but their statistics move once more, as published.
                states = self._own_stems(inputs, batch, states)
            features, _ = self._encode(states, batch, adapted=adapted)
        self._fuse(outputs, features, batch)
        teacher = self._bound.teacher
        if any(objective.needs_teacher for objective in self.objectives):
            if teacher is None:
                raise RuntimeError(
                    "an objective distills from a teacher, but none is bound: add "
                    "dict(type='TeacherEMAHook') to custom_hooks"
                )
            outputs.teacher = teacher.evaluate(
                teacher._own_stems(inputs, batch, states), batch, embed=True
            )
            outputs.teacher_started = self._bound.started
        self._embed(outputs)
        if any(objective.needs_theta for objective in self.objectives):
            outputs.theta = self._theta()
            if self._bound.inner_step is not None:
                outputs.gradient = self._bound.inner_step.gradient
        for objective in self.objectives:
            own = objective(outputs)
            if twice := own.keys() & outputs.losses.keys():
                raise ValueError(f"two objectives return {sorted(twice)}")
            outputs.losses |= own
        if batch.skipped:
            outputs.logs["skipped"] = torch.tensor(float(batch.skipped))
        return outputs.losses | outputs.logs | self._accuracies(outputs)

    def predict(self, inputs: dict[str, Tensor], data_samples: list) -> list:
        """Writes scores into the data samples.

        ``pred_score`` holds the fused probabilities ``(C,)``; the metainfo
        ``pred_scores`` those of each modality and, under the companion's name and
        ``<companion>/<modality>``, the companion's.
        """
        batch = self._read(inputs, data_samples)
        states = self._stems(inputs, batch)
        outputs = self.evaluate(states, batch)
        scores = {m: x.softmax(1) for m, x in outputs.unimodal_logits.items()}
        companion, name = self._bound.teacher, self._bound.companion
        if companion is not None and name is not None:
            other = companion.evaluate(
                companion._own_stems(inputs, batch, states), batch
            )
            scores[name] = other.fused_logits.softmax(1)
            for m, logits in other.unimodal_logits.items():
                scores[f"{name}/{m}"] = logits.softmax(1)
        # One copy from the device for all scores of the batch.
        names = ["", *scores]
        table = torch.stack([outputs.fused_logits.softmax(1), *scores.values()], dim=1)
        table = functional.at_least_float32(table)
        for sample, rows in zip(data_samples, table.cpu().unbind(), strict=True):
            own = {name: row.clone() for name, row in zip(names, rows, strict=True)}
            fused = own.pop("")
            sample.set_pred_score(fused)
            sample.set_pred_label(fused.argmax(dim=0, keepdim=True))
            sample.set_metainfo(dict(pred_scores=own))
        return data_samples

    @torch.no_grad()
    def evaluate(
        self, states: dict[str, State], batch: _Batch, embed: bool = False
    ) -> StepOutputs:
        """Features and logits without gradient, dropout or inner step.

        Args:
            states: The stems' outputs.
            batch: What :meth:`_read` returned.
            embed: Also the objectives' embeddings, for a teacher.
        """
        was_training = self.training
        if was_training:
            self.eval()
        outputs = self._unimodal(states, batch)
        self._fuse(outputs, outputs.features, batch)
        if embed:
            self._embed(outputs)
        if was_training:
            self.train()
        return outputs

    # --------------------------------------------------------------- the parts

    def _read(self, inputs: dict[str, Tensor], data_samples: list | None) -> _Batch:
        missing = [m for m in self.modalities if m not in inputs]
        if missing:
            raise KeyError(
                f"inputs lack {missing}; got {list(inputs)}. A modality that a sample "
                "does not have is a zero placeholder with present[modality]=False"
            )
        first = inputs[self.modalities[0]]
        count, device = len(first), first.device
        data_samples = data_samples or [None] * count
        present, rows, alive = {}, {}, [False] * count
        for m in self.modalities:
            has = [_metainfo(s, "present", {}).get(m, True) for s in data_samples]
            alive = [a or b for a, b in zip(alive, has, strict=True)]
            # No copy to the device, so no wait, in the usual case.
            if all(has):
                present[m] = torch.ones(count, dtype=torch.bool, device=device)
                rows[m] = None
            else:
                present[m] = _on(device, has, torch.bool)
                kept = [i for i, here in enumerate(has) if here]
                rows[m] = _on(device, kept, torch.long)
        labels = [s.gt_label for s in data_samples if s is not None and "gt_label" in s]
        domains = [_metainfo(s, "domain_index", -1) for s in data_samples]
        # Skipped, or without any of the model's modalities (it may use fewer than the
        # dataset yields).
        alive = [
            a and not _metainfo(s, "skipped", "")
            for a, s in zip(alive, data_samples, strict=True)
        ]
        return _Batch(
            labels=torch.cat(labels) if len(labels) == count else None,
            domains=_on(device, domains, torch.long),
            present=present,
            rows=rows,
            valid=(None if all(alive) else _on(device, alive, torch.bool)),
            skipped=alive.count(False),
            views=1 + max(_metainfo(s, "view", 0) for s in data_samples),
        )

    def _stems(
        self,
        inputs: dict[str, Tensor],
        batch: _Batch,
        modalities: Sequence[str] | None = None,
    ) -> dict[str, State]:
        """Runs each stem once, on the samples that have the modality."""
        states = {}
        for m in self.modalities if modalities is None else modalities:
            rows = batch.rows[m]
            if rows is None:
                states[m] = self.encoders[m].stem(inputs[m])
            elif len(rows):
                states[m] = self.encoders[m].stem(inputs[m][rows])
        return states

    def _own_stems(
        self, inputs: dict[str, Tensor], batch: _Batch, states: dict[str, State]
    ) -> dict[str, State]:
        """Stem outputs, run again only where BatchNorm drifts.

        For another recognizer's ``states`` that is where the stems differ; for the
        own ones, where a second pass moves the statistics.
        """
        drifting = [
            m
            for m, encoder in self.encoders.items()
            if not encoder.stem_norm_eval and encoder.frozen_stages >= 0
        ]
        return states | self._stems(inputs, batch, drifting)

    def _encode(
        self,
        states: dict[str, State],
        batch: _Batch,
        adapted: dict[str, dict[str, Tensor]] | None = None,
        apply_dsu: bool = False,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Features with and without normalisation, ``{modality: (N, d)}``."""
        features, raw_features = {}, {}
        for m, encoder in self.encoders.items():
            rows, count = batch.rows[m], len(batch.present[m])
            if m not in states:
                zero = connected_zero(encoder, self.norms[m])
                raw = zero.new_zeros(count, encoder.feature_channels) + zero
                features[m] = raw_features[m] = raw
                continue
            if adapted is None:
                raw = encoder(states[m], apply_dsu)
            else:
                raw = self._call_adapted(m, adapted[m], states[m])
            feature = self.norms[m](raw)
            features[m] = _scattered(feature, rows, count)
            raw_features[m] = _scattered(raw, rows, count)
        return features, raw_features

    def _call_adapted(
        self, modality: str, parameters: dict[str, Tensor], state: State
    ) -> Tensor:
        """A branch at theta'; the gradient reaches theta through theta'."""
        encoder = self.encoders[modality]
        replaced: dict[str, Tensor] = dict(parameters)
        if self.inner_step["bn_second_pass"] == "discard":
            # Clones take the second pass's BatchNorm updates and are dropped.
            for name in self._branch_buffers[modality]:
                replaced[name] = encoder.get_buffer(name).clone()
        return functional_call(encoder, replaced, (state,))

    def _unimodal(
        self, states: dict[str, State], batch: _Batch, apply_dsu: bool = False
    ) -> StepOutputs:
        """Features at theta, unimodal logits and their cross-entropies."""
        features, raw_features = self._encode(states, batch, apply_dsu=apply_dsu)
        outputs = StepOutputs(
            labels=batch.labels,
            domains=batch.domains,
            present=batch.present,
            rows=self._row_indices(batch),
            valid=batch.valid,
            features=features,
            raw_features=raw_features,
            probe=self.probe,
            views=batch.views,
        )
        for m, head in self.unimodal_heads.items():
            seen = features[m].detach() if self.probe else features[m]
            outputs.unimodal_logits[m] = head(seen)
            # Nobody asks for the losses of an evaluation.
            if batch.labels is not None and torch.is_grad_enabled():
                outputs.unimodal_ce[m] = functional.masked_cross_entropy(
                    outputs.unimodal_logits[m], batch.labels, batch.present[m]
                )
        return outputs

    @staticmethod
    def _row_indices(batch: _Batch) -> dict[str, Tensor]:
        count = len(batch.domains)
        whole = torch.arange(count, device=batch.domains.device)
        return {m: whole if rows is None else rows for m, rows in batch.rows.items()}

    def _theta(self) -> dict[str, dict[str, nn.Parameter]]:
        """Trainable parameters of each encoder and of its unimodal head."""
        theta = {}
        for m, encoder in self.encoders.items():
            parts = {"": encoder}
            if m in self.unimodal_heads:
                parts["head."] = self.unimodal_heads[m]
            theta[m] = {
                prefix + name: parameter
                for prefix, part in parts.items()
                for name, parameter in part.named_parameters()
                if parameter.requires_grad
            }
        return theta

    def _embed(self, outputs: StepOutputs) -> None:
        for objective in self.objectives:
            if objective.embeds:
                outputs.embeddings[objective.embeds] = objective.embed(outputs)

    def _inner_update(self, outputs: StepOutputs) -> dict[str, dict[str, Tensor]]:
        """Theta' of eq. 5, from the unimodal cross-entropies alone."""
        if self._bound.inner_step is None:
            raise RuntimeError(
                "the model takes an inner step (model.inner_step), but the optimizer "
                "wrapper offers none: set optim_wrapper.type to MBCDOptimWrapper, or "
                "AmpMBCDOptimWrapper for mixed precision"
            )
        theta = self.adaptable_parameters()
        flat = {f"{m}.{name}": p for m, own in theta.items() for name, p in own.items()}
        adapted = self._bound.inner_step.inner_update(
            torch.stack(list(outputs.unimodal_ce.values())).sum(), flat
        )
        return {
            m: {name: adapted[f"{m}.{name}"] for name in own}
            for m, own in theta.items()
        }

    def _fuse(
        self, outputs: StepOutputs, features: dict[str, Tensor], batch: _Batch
    ) -> None:
        confidences = None
        if self.neck.needs_confidence and self.training:
            confidences = self._confidences(outputs, batch)
        fused, logs = self.neck(features, outputs.present, confidences)
        outputs.fused_features = fused
        outputs.fused_logits = self.fused_head(fused)
        outputs.logs |= logs

    def _confidences(self, outputs: StepOutputs, batch: _Batch) -> dict[str, Tensor]:
        """Eq. 2 over the number of samples, for the modalities that are there."""
        sums = torch.stack(
            [
                modality_confidence(logits, outputs.present[m])
                for m, logits in outputs.unimodal_logits.items()
            ]
        )
        counts = torch.stack([batch.present[m].sum() for m in self.modalities])
        here = [m in batch.here for m in self.modalities]
        if self._bound.inner_step is not None:
            sums, counts, here = self._bound.inner_step.sync_confidences(
                sums, counts, here
            )
        means = sums / counts.clamp(min=1)
        return {m: means[i] for i, m in enumerate(self.modalities) if here[i]}

    @torch.no_grad()
    def _accuracies(self, outputs: StepOutputs) -> dict[str, Tensor]:
        """Batch accuracies for the log, each over the present samples."""
        accuracies = {}
        if outputs.labels is None:
            return accuracies
        heads = {"fused": (outputs.fused_logits, outputs.valid)} | {
            m: (logits, outputs.present[m])
            for m, logits in outputs.unimodal_logits.items()
        }
        for name, (logits, present) in heads.items():
            hit = (logits.argmax(1) == outputs.labels).float()
            accuracies[f"acc/{name}"] = functional.masked_mean(hit, present)
        return accuracies


def _check_domains(data_samples: list, count: int | None) -> None:
    """An objective reads domains: every training sample must be of a source."""
    for sample in data_samples:
        index = _metainfo(sample, "domain_index", -1)
        if not 0 <= index < (count or 0):
            raise ValueError(
                f"sample {_metainfo(sample, 'sample_id', '?')!r} has domain_index "
                f"{index}, but an objective tells {count} source domains apart: train "
                "on sources only (use='train'), and set model.num_domains to their "
                "number"
            )


def _metainfo(sample: Any, key: str, default: Any) -> Any:
    return default if sample is None else sample.get(key, default)


def _on(device: torch.device, values: list, dtype: torch.dtype) -> Tensor:
    """A small tensor made without waiting for the device."""
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)


def _scattered(values: Tensor, rows: Tensor | None, count: int) -> Tensor:
    """Rows of present samples at their places, zeros elsewhere."""
    if rows is None:
        return values
    return values.new_zeros(count, values.shape[1]).index_copy(0, rows, values)


def _build_norm(norm: dict | None, width: int) -> nn.Module:
    if norm is None:
        return nn.Identity()
    norm = dict(norm)
    kind = norm.pop("type", None)
    if kind != "LayerNorm" or norm.keys() - {"affine", "eps"}:
        raise ValueError(
            f"model.norm={norm | {'type': kind}}: only dict(type='LayerNorm', "
            "affine=False, eps=1e-5) and None are known"
        )
    return nn.LayerNorm(
        width, eps=norm.get("eps", 1e-5), elementwise_affine=norm.get("affine", False)
    )
