"""A checkpoint made ready for questions: its model, its data, its predictions."""

from __future__ import annotations

import copy
import resource
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from mmaction.registry import MODELS
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmengine.runner.checkpoint import CheckpointLoader
from mmengine.utils.dl_utils import set_multi_processing
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..cli import chosen_weights
from ..cli.data import innermost_datasets
from ..engine import checkpoint_checks as checks
from ..errors import UsageError, require_file
from ..evaluation.predictions import Predictions, collect

_TEACHER = "module."  # what MMEngine puts before the names of averaged weights


def _set_up_workers(env: Mapping) -> None:
    """As MMEngine's runner: OpenCV has one thread, and every tensor on its way a file.

    Args:
        env: ``env_cfg`` of a config.
    """
    set_multi_processing(**env.get("mp_cfg", {}))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(soft, min(env.get("resource_limit", 4096), hard))
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@dataclass
class TrainedModel:
    """A model with its trained weights, in eval mode.

    Unlike a runner it writes no logs and makes no folder. Like one it sets, for the
    whole process, what data workers need.

    Attributes:
        config: The config, with all options merged.
        model: On the device where the machine trains.
        facts: What the checkpoint says: ``checkpoint``, ``weights`` (``'teacher'``,
            ``'student'`` or None where there is one set), ``seed``, ``epoch``,
            ``iter`` and ``experiment``, see
            :func:`.checkpoint_checks.experiment`.
    """

    config: Config
    model: nn.Module
    facts: dict

    @classmethod
    def load(
        cls,
        config: Config,
        checkpoint: str,
        weights: str | None = None,
        device: str | None = None,
    ) -> TrainedModel:
        """Builds the model and loads its weights.

        Args:
            config: As :func:`.cli.load_config` returns it.
            checkpoint: File or URL; read without running code in it.
            weights: Those of the ``'teacher'`` or the ``'student'``; the config's
                choice if None.
            device: Where torch puts it; where this machine trains if None.

        Raises:
            CheckpointError: If the weights do not fit the model.
            UsageError: If there is no such file, or no such weights in it.
        """
        require_file(checkpoint, "checkpoint")
        _set_up_workers(config.get("env_cfg") or {})
        init_default_scope(config.get("default_scope") or "mmaction")
        model = MODELS.build(config.model)
        saved = CheckpointLoader.load_checkpoint(checkpoint, "cpu", logger="silent")
        state, held = _state(saved, weights or chosen_weights(config), checkpoint)
        what = f"{config.filename or 'the config'} with {checkpoint}"
        checks.refuse_other_weights(checks.fit(model, state), what, partial=False)
        model.load_state_dict(state)
        model.to(device or get_device()).eval()
        meta = saved.get("meta") or {}
        names = ("seed", "epoch", "iter", "experiment")
        facts = dict(checkpoint=str(checkpoint), weights=held)
        return cls(config, model, facts | {name: meta.get(name) for name in names})

    @property
    def modalities(self) -> tuple[str, ...]:
        """Those of the model, in the order of fusion."""
        return tuple(self.model.modalities)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, as the checkpoint says them."""
        experiment = self.facts.get("experiment") or {}
        return tuple(experiment.get("classes") or ())

    def loader(self, split: str = "test", **changes: object) -> DataLoader:
        """The batches of a split, without shuffling, all of them.

        Args:
            split: Whose data: ``'train'``, ``'val'`` or ``'test'``. Training data come
                with training's augmentation.
            changes: Arguments of the dataset instead of the config's, such as
                ``use='in_domain'``, ``pipelines`` or ``data_root``.

        Raises:
            UsageError: If the config has no such split.
            DataError: If the data cannot be used.
        """
        loader = self.config.get(f"{split}_dataloader")
        if not loader:
            raise UsageError(f"the config has no {split}_dataloader")
        loader = copy.deepcopy(loader)
        loader.persistent_workers = loader.drop_last = False
        loader.sampler = dict(loader.sampler, shuffle=False)
        for dataset in innermost_datasets(loader.dataset):
            for name, value in changes.items():  # update() would merge dicts
                dataset[name] = value
        built = Runner.build_dataloader(loader, seed=0)
        if hasattr(built.dataset, "refuse_absence"):
            built.dataset.refuse_absence()
        return built

    def batches(self, loader: DataLoader) -> Iterator[tuple[dict[str, Tensor], list]]:
        """``(inputs, data samples)`` of each batch, on the model's device."""
        for data in loader:
            ready = self.model.data_preprocessor(data, False)
            yield ready["inputs"], ready["data_samples"]

    @torch.no_grad()
    def predict(
        self,
        loader: DataLoader,
        change: Callable[[dict[str, Tensor], list], None] | None = None,
        advance: Callable[[int], object] = lambda count: None,
    ) -> Predictions:
        """What the model says of every clip.

        Args:
            loader: From :meth:`loader`.
            change: May change the data samples, and the dict of the inputs, of each
                batch before the model gets it.
            advance: Called with the number of clips after each batch.
        """
        samples = []
        for inputs, batch in self.batches(loader):
            if change is not None:
                change(inputs, batch)
            samples += [s.to_dict() for s in self.model.predict(inputs, batch)]
            advance(len(batch))
        classes = loader.dataset.metainfo.get("classes", self.classes)
        return collect(samples, classes, self.facts)

    @contextmanager
    def moved(self, state: Mapping[str, Tensor]) -> Iterator[None]:
        """Within it, some parameters or buffers have other values.

        Args:
            state: ``{name: value}``.
        """
        own = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        kept = {name: own[name].detach().clone() for name in state}
        try:
            with torch.no_grad():
                for name, value in state.items():
                    own[name].copy_(value)
            yield
        finally:
            with torch.no_grad():
                for name, value in kept.items():
                    own[name].copy_(value)


def _state(
    saved: Mapping, wanted: str | None, checkpoint: str
) -> tuple[dict[str, Tensor], str | None]:
    """The wanted weights of a checkpoint, and which they are."""
    state = dict(saved.get("state_dict", saved))
    averaged = saved.get("ema_state_dict")
    if wanted is None or averaged is None:
        if wanted == "student" and "meta" in saved:
            raise UsageError(f"{checkpoint} holds one set of weights, no student's")
        return state, wanted
    if (saved.get("meta") or {}).get("state_dict_holds", "teacher") != wanted:
        state |= {
            name.removeprefix(_TEACHER): value
            for name, value in averaged.items()
            if name.startswith(_TEACHER)
        }
    return state, wanted
