"""The multi-modal recognizer: the order of events of one training step."""

from __future__ import annotations

from functools import partial

import torch
from mmaction.registry import MODELS
from torch import Tensor

from .assembly import RecognizerParts
from .batch import Batch, check_domains, write_scores
from .functional import masked_cross_entropy
from .necks.amd import modality_confidence
from .stages import State
from .step import StepOutputs


@MODELS.register_module()
class MultiModalRecognizer(RecognizerParts):
    """Encoders, unimodal heads, fusion and a fused head; any two modalities or more.

    One training step, in the order of the paper's Figure 2: stems, branches,
    unimodal logits, inner step, branches again at theta', fusion, teacher, losses:
    read :meth:`loss`. It knows no method by name. What a method is made of (unimodal
    heads, inner step, neck, objectives) is in its config.

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
        inner_step: None, or ``dict(scope='.*', bn_second_pass='discard')``, see
            :class:`.InnerStep`: adapt the encoders' parameters by one gradient step
            on the unimodal losses before fusion (eq. 5).
        objectives: Configs of the losses, in the order in which they run.
        extra_objectives: More of them, behind those of the method: what is put on top
            of it.
        num_domains: Number of source domains, for the objectives that discriminate
            them.
        channels_last: Lay the encoders' weights out for tensor cores
            (:meth:`.ModalityEncoders.put_channels_last`).
        data_preprocessor: Config, usually ``MultiModalDataPreprocessor``.
        init_cfg: As in MMEngine.

    Raises:
        ValueError: Naming every part of the config that cannot work.
    """

    def forward(
        self,
        inputs: dict[str, Tensor],
        data_samples: list | None = None,
        mode: str = "tensor",
    ) -> dict[str, Tensor] | list | Tensor:
        """MMEngine's three modes.

        Args:
            inputs: ``{modality: batch tensor}``; never changed.
            data_samples: What :meth:`.Batch.read` reads.
            mode: ``loss`` -> named losses; ``predict`` -> the data samples with
                scores; ``tensor`` -> fused logits ``(N, C)``.
        """
        if mode == "loss":
            return self.loss(inputs, data_samples)
        if mode == "predict":
            return self.predict(inputs, data_samples)
        if mode == "tensor":
            batch = Batch.read(inputs, data_samples, self.modalities)
            return self.evaluate(self.encoders.stems(inputs, batch), batch).fused_logits
        raise ValueError(f"mode must be loss, predict or tensor; got {mode!r}")

    def loss(self, inputs: dict[str, Tensor], data_samples: list) -> dict[str, Tensor]:
        """One training step up to its losses; the wrapper's backward follows."""
        if self._some("needs_domains"):
            check_domains(data_samples, self.num_domains)
        batch = Batch.read(inputs, data_samples, self.modalities)
        # Frozen stems: once, for both passes of the student and for the teacher.
        states = self.encoders.stems(inputs, batch)
        # First pass, at theta: features, unimodal logits and their cross-entropies.
        outputs = self._unimodal(states, batch, apply_dsu=True)
        features = outputs.features
        if self.inner_step is not None:
            # GCC: theta' = theta - alpha grad (eq. 5), and the branches again there.
            theta_prime = self._inner_update(outputs)
            if self.inner_step.bn_second_pass == "shared":
                # Equal outputs, but their statistics move once more, as published.
                states = self.encoders.rerun_drifting_stems(inputs, batch, states)
            run = partial(self.inner_step.call, self.encoders, theta_prime)
            features, _ = self.encoders.features(states, batch, self.norms, run)
        # AMD drops confident modalities (eqs. 2-4); the fused logits follow.
        self._fuse(outputs, features, batch)
        if self._some("needs_teacher"):
            outputs.teacher = self._teach(inputs, states, batch)
            outputs.teacher_started = self._lent.teacher_started
        self._embed(outputs)
        if self._some("needs_theta"):
            outputs.theta = self.theta()
            if self._lent.optimizer is not None:
                outputs.gradient = self._lent.optimizer.gradient
        # Losses, such as eq. 9, in the config's order: later ones read earlier ones'.
        for objective in self.objectives:
            own = objective(outputs)
            if twice := own.keys() & outputs.losses.keys():
                raise ValueError(f"two objectives return {sorted(twice)}")
            outputs.losses |= own
        if batch.skipped:
            outputs.logs["skipped"] = torch.tensor(float(batch.skipped))
        return outputs.losses | outputs.logs | outputs.accuracies()

    def _some(self, need: str) -> bool:
        """Whether an objective has a need, such as ``needs_teacher``."""
        return any(getattr(objective, need) for objective in self.objectives)

    def _unimodal(
        self, states: dict[str, State], batch: Batch, apply_dsu: bool = False
    ) -> StepOutputs:
        """Features at theta, unimodal logits and their cross-entropies."""
        features, raw_features = self.encoders.features(
            states,
            batch,
            self.norms,
            lambda m, state: self.encoders[m](state, apply_dsu),
        )
        outputs = StepOutputs(
            labels=batch.labels,
            domains=batch.domains,
            present=batch.present,
            rows=batch.row_indices(),
            valid=batch.valid,
            features=features,
            raw_features=raw_features,
            probe=self.probe,
            views=batch.views,
        )
        for m, head in self.unimodal_heads.items():
            # A probe watches: its gradient stops at the feature.
            logits = head(features[m].detach() if self.probe else features[m])
            outputs.unimodal_logits[m] = logits
            # Nobody asks for the losses of an evaluation.
            if batch.labels is not None and torch.is_grad_enabled():
                outputs.unimodal_ce[m] = masked_cross_entropy(
                    logits, batch.labels, batch.present[m]
                )
        return outputs

    def _inner_update(self, outputs: StepOutputs) -> dict[str, Tensor]:
        """Theta' of eq. 5, from the unimodal cross-entropies alone."""
        if self._lent.optimizer is None:
            raise RuntimeError(
                "the model takes an inner step (model.inner_step), but the optimizer "
                "wrapper offers none: set optim_wrapper.type to MBCDOptimWrapper, or "
                "AmpMBCDOptimWrapper for mixed precision"
            )
        loss = torch.stack(list(outputs.unimodal_ce.values())).sum()
        theta = self.inner_step.theta(self.encoders)
        return self._lent.optimizer.inner_update(loss, theta)

    def _fuse(
        self, outputs: StepOutputs, features: dict[str, Tensor], batch: Batch
    ) -> None:
        confidences = None
        if self.neck.needs_confidence and self.training:
            confidences = self._confidences(outputs, batch)
        fused, logs = self.neck(features, outputs.present, confidences)
        outputs.fused_features = fused  # (N, sum d)
        outputs.fused_logits = self.fused_head(fused)
        outputs.logs |= logs

    def _confidences(self, outputs: StepOutputs, batch: Batch) -> dict[str, Tensor]:
        """Eq. 2 per present sample, for the modalities that are there."""
        sums = torch.stack(
            [
                modality_confidence(logits, batch.present[m])
                for m, logits in outputs.unimodal_logits.items()
            ]
        )  # (M,)
        counts = torch.stack([batch.present[m].sum() for m in self.modalities])
        present = [m in batch.present_modalities for m in self.modalities]
        if self._lent.optimizer is not None:
            sums, counts, present = self._lent.optimizer.sync_confidences(
                sums, counts, present
            )
        # Means, not sums: half the sound missing must not read as half as confident.
        means = sums / counts.clamp(min=1)
        return {m: means[i] for i, m in enumerate(self.modalities) if present[i]}

    def _teach(
        self, inputs: dict[str, Tensor], states: dict[str, State], batch: Batch
    ) -> StepOutputs:
        teacher = self._lent.teacher
        if teacher is None:
            raise RuntimeError(
                "an objective distills from a teacher, but none is bound: add "
                "dict(type='TeacherEMAHook') to custom_hooks"
            )
        states = teacher.encoders.rerun_drifting_stems(inputs, batch, states)
        return teacher.evaluate(states, batch, embed=True)

    def _embed(self, outputs: StepOutputs) -> None:
        for objective in self.objectives:
            if objective.embeds:
                outputs.embeddings[objective.embeds] = objective.embed(outputs)

    # ---------------------------------------------------------------- evaluation

    @torch.no_grad()
    def evaluate(
        self, states: dict[str, State], batch: Batch, embed: bool = False
    ) -> StepOutputs:
        """Features and logits without gradient, dropout or inner step.

        Args:
            states: The stems' outputs.
            batch: What the data samples say.
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

    def predict(self, inputs: dict[str, Tensor], data_samples: list) -> list:
        """Writes scores into the data samples.

        ``pred_score`` holds the fused probabilities ``(C,)``; the metainfo
        ``pred_scores`` those of each modality and, where a model is reported beside
        this one, its own under its name and ``<name>/<modality>``.
        """
        batch = Batch.read(inputs, data_samples, self.modalities)
        states = self.encoders.stems(inputs, batch)
        outputs = self.evaluate(states, batch)
        logits = {"": outputs.fused_logits} | outputs.unimodal_logits
        other, name = self._lent.teacher, self._lent.beside
        if other is not None and name is not None:
            states = other.encoders.rerun_drifting_stems(inputs, batch, states)
            beside = other.evaluate(states, batch)
            logits[name] = beside.fused_logits
            logits |= {f"{name}/{m}": x for m, x in beside.unimodal_logits.items()}
        write_scores(data_samples, logits)
        return data_samples
