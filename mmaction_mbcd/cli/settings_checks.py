"""Settings that nothing would read: misspelt names in a config or on the command line.

MMEngine merges any key silently, and many classes hand unknown arguments on until some
constructor fails, perhaps behind the first epoch. Here all of them are found before
anything is built, and each is answered with the nearest name that exists.

The top level of a config file is open: it may define variables of its own. Below it,
what MMEngine's runner reads is looked at, and every dict there that says its ``type``.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from mmengine import registry as roots
from mmengine.config import Config
from mmengine.registry import DefaultScope, Registry, init_default_scope
from mmengine.runner import Runner, set_random_seed
from mmengine.utils import get_object_from_string
from torch.utils.data import DataLoader

from ..errors import UsageError
from ..models.weights import load_backbone
from .accepted_arguments import accepted_arguments
from .run import AMP_WRAPPERS

READ = {name for name in inspect.signature(Runner).parameters if name != "cfg"} | {
    # The runner takes these from the config itself.
    "custom_imports",
    "runner_type",
    "model_wrapper_cfg",
    "sync_bn",
    "find_unused_parameters",
    "activation_checkpointing",
    "efficient_conv_bn_eval",
    "compile",
    # This package's.
    "method",
}
"""The top-level keys of a config that are read when it runs."""

_REGISTRIES = {
    # By the key under which a component stands, at any depth ...
    "model": roots.MODELS,
    "data_preprocessor": roots.MODELS,
    "dataset": roots.DATASETS,
    "datasets": roots.DATASETS,
    "pipeline": roots.TRANSFORMS,
    "pipelines": roots.TRANSFORMS,
    "transforms": roots.TRANSFORMS,
    "sampler": roots.DATA_SAMPLERS,
    "batch_sampler": roots.DATA_SAMPLERS,
    "collate_fn": roots.FUNCTIONS,
    "train_cfg": roots.LOOPS,
    "val_cfg": roots.LOOPS,
    "test_cfg": roots.LOOPS,
    "optim_wrapper": roots.OPTIM_WRAPPERS,
    "optimizer": roots.OPTIMIZERS,
    "param_scheduler": roots.PARAM_SCHEDULERS,
    "default_hooks": roots.HOOKS,
    "custom_hooks": roots.HOOKS,
    "val_evaluator": roots.METRICS,
    "test_evaluator": roots.METRICS,
    "metrics": roots.METRICS,
    "log_processor": roots.LOG_PROCESSORS,
    "visualizer": roots.VISUALIZERS,
    "vis_backends": roots.VISBACKENDS,
    "model_wrapper_cfg": roots.MODEL_WRAPPERS,
}
# Their builders take these keys away before the class sees the rest.
_BUILDERS = {
    id(roots.HOOKS): {"priority"},
    id(roots.OPTIM_WRAPPERS): {"optimizer", "constructor", "paramwise_cfg"},
    id(roots.PARAM_SCHEDULERS): {"convert_to_iter_based", "epoch_length"},
    id(roots.VISUALIZERS): {"name"},
}
_DATALOADER = set(inspect.signature(DataLoader).parameters) | {"num_batch_per_epoch"}
_PRETRAINED = set(inspect.signature(load_backbone).parameters) - {"backbone"}
_UNTYPED = {
    # Dicts without a type, by their path.
    "train_dataloader": _DATALOADER,
    "val_dataloader": _DATALOADER,
    "test_dataloader": _DATALOADER,
    "randomness": set(inspect.signature(set_random_seed).parameters),
    "env_cfg": {"cudnn_benchmark", "mp_cfg", "dist_cfg", "resource_limit"},
    "auto_scale_lr": {"enable", "base_batch_size"},
}
_CLOSE = 0.8  # difflib's ratio of a misspelling: a letter too many in nine is 0.95


def check_settings(cfg: Config, options: Mapping[str, Any] | None = None) -> None:
    """Refuses what nothing would read in a config, and in ``--cfg-options``.

    Args:
        cfg: Without the options.
        options: ``{'train_cfg.max_epochs': 2}``; they are merged into ``cfg`` in place.

    Raises:
        UsageError: Naming every such setting, and for each the nearest that exists.
    """
    init_default_scope(cfg.get("default_scope") or "mmengine")
    options = options or {}
    before = cfg.to_dict()
    try:
        cfg.merge_from_dict(options)
    except (KeyError, IndexError, TypeError) as error:
        raise UsageError(
            f"--cfg-options {' '.join(options)}: {_plain(error)}"
        ) from error
    found = list(_components(cfg.to_dict(), ()))
    known = {part.path: part.names for part in found}
    problems = [problem for part in found for problem in part.problems()]
    own_runner = "runner_type" in cfg  # may read what it likes
    for option in options:
        problems += _option_problems(option, before, cfg.to_dict(), known, own_runner)
    if not own_runner:
        problems += _top_level_problems(before)
    if problems:
        # A parameter of several loaders is often misspelt in each of them alike.
        raise UsageError("; ".join(dict.fromkeys(problems)))


@dataclass
class _Component:
    """A dict of the config, and what it may hold.

    Attributes:
        path: Keys that lead to it.
        config: The dict.
        what: Who takes its values: ``CheckpointHook``.
        names: Known keys; None where it is a mapping of any.
        closed: Whether no other keys are possible.
        unknown_type: What is wrong with its type.
    """

    path: tuple[str, ...]
    config: dict
    what: str = ""
    names: frozenset[str] | None = None
    closed: bool = True
    unknown_type: str = ""

    def problems(self) -> Iterator[str]:
        if self.unknown_type:
            yield f"{'.'.join(self.path)}.type: {self.unknown_type}"
        for key in self.config if self.names is not None else ():
            close = "" if key in self.names else nearest(key, self.names)
            if key not in self.names and (close or self.closed):
                where = ".".join((*self.path, key))
                yield f"{where}: {self.what} takes no {key!r}{close}"


def _components(node: Any, path: tuple[str, ...], registry: Registry | None = None):
    """Every dict below a config that the runner reads."""
    if isinstance(node, (list, tuple)):
        for index, item in enumerate(node):
            yield from _components(item, (*path, str(index)), registry)
        return
    if not isinstance(node, Mapping):
        return
    yield _component(dict(node), path, registry)
    for key, value in node.items():
        if not path and (key not in READ or key == "method"):
            continue  # a variable of the file
        below = _REGISTRIES.get(key, registry)
        # A model has a train_cfg of its own, which is not a loop.
        if path and key in ("train_cfg", "val_cfg", "test_cfg"):
            below = registry
        # Layers' configs (norm_cfg, init_cfg) go to builders with rules of their own.
        if len(path) > 0 and str(key).endswith("_cfg"):
            continue
        yield from _components(value, (*path, str(key)), below)


def _component(
    config: dict, path: tuple[str, ...], registry: Registry | None
) -> _Component:
    part = _Component(path, config)
    kind = config.get("type")
    if kind is None:
        part.names = _UNTYPED.get(".".join(path))
        part.what = ".".join(path)
        if path and path[-1] == "pretrained" and "checkpoint" in config:
            part.names = _PRETRAINED
        return part
    if registry is None or not (isinstance(kind, str) or callable(kind)):
        return part
    found = _found(kind, registry) if isinstance(kind, str) else kind
    if found is None:
        # Below a component a "type" may be anything; directly in its place it is not.
        if _is_place(path):
            part.unknown_type = _unknown_type(kind, registry)
        return part
    if inspect.isfunction(found) and registry is not roots.FUNCTIONS:
        return part  # what it makes has arguments that nobody can tell
    part.what = getattr(found, "__name__", str(kind))
    arguments = accepted_arguments(found, config)
    if part.what in AMP_WRAPPERS:  # --amp will exchange it
        amp = _found(AMP_WRAPPERS[part.what], registry)
        arguments |= accepted_arguments(amp, {})
    builder = _BUILDERS.get(id(registry), set())
    part.names = arguments.names | builder | {"type", "_scope_"}
    part.closed = arguments.closed
    return part


def _is_place(path: tuple[str, ...]) -> bool:
    """Whether a path names a component of its registry: ``optim_wrapper.optimizer``."""
    names = [key for key in path if not key.isdigit()]
    if names[0] == "default_hooks":
        return len(names) == 2
    return names[-1] in _REGISTRIES


def _found(kind: str, registry: Registry) -> Callable | None:
    """What a name is registered as, in the expected registry or in another one."""
    scope, _, name = kind.rpartition(".")
    if scope == "mmpretrain":
        importlib.import_module("mmpretrain.models")  # fills its registry
    others = (r for r in vars(roots).values() if isinstance(r, Registry))
    for root in (registry, *others):
        for candidate in _searched(root, scope):
            if name in candidate.module_dict:
                return candidate.module_dict[name]
    return get_object_from_string(kind) if scope else None


def _searched(root: Registry, scope: str = "") -> Iterator[Registry]:
    """The registries in which MMEngine looks for a name, before those of others."""
    current = DefaultScope.get_current_instance()
    child = root.children.get(scope or (current.scope_name if current else ""))
    others = () if scope else root.children.values()
    for registry in (child, root, *others):
        if registry is not None:
            with suppress(ImportError):  # MMAction2's names modules that are not there
                registry.import_from_location()
            yield registry


def _unknown_type(kind: str, registry: Registry) -> str:
    if "." in kind:
        return ""  # of a package that fills its registry later
    names = {name for one in _searched(registry) for name in one.module_dict}
    return f"no {registry.name} is called {kind!r}{nearest(kind, names)}"


def _option_problems(
    option: str,
    before: Mapping,
    after: Mapping,
    known: Mapping[tuple[str, ...], frozenset[str] | None],
    own_runner: bool,
) -> Iterator[str]:
    """What is wrong with one of ``--cfg-options`` that no component complains of."""
    keys = tuple(option.split("."))
    if keys[0] not in READ and not own_runner:
        yield _unread(option, keys, after)
        return
    node: Any = before
    for depth, key in enumerate(keys):
        if isinstance(node, (list, tuple)):
            node = node[int(key)]  # the merge has tried it
            continue
        if not isinstance(node, Mapping):
            return  # replaced as a whole
        if key in node:
            node = node[key]
            continue
        above = keys[:depth]
        if not above or known.get(above) is not None:
            return  # new to the file, and checked where it is read
        new = _at(after, (*above, key))
        if isinstance(new, Mapping) and "type" in new:
            return  # a component of its own
        if close := nearest(key, node):
            yield f"{'.'.join((*above, key))} is not in the config{close}"
        return


def _at(node: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        node = node[int(key)] if isinstance(node, (list, tuple)) else node[key]
    return node


def _unread(option: str, keys: Sequence[str], cfg: Mapping) -> str:
    """A first key that nothing reads: misspelt, incomplete, or the file's variable."""
    if close := nearest(keys[0], READ):
        return f"{option}: nothing reads {keys[0]!r}{close}"
    places = [
        ".".join((*part.path, keys[-1]))
        for part in _components(cfg, ())
        if keys[-1] in part.config and part.path
    ]
    close = f"; did you mean {', '.join(places[:3])}?" if places else ""
    return (
        f"{option}: nothing reads {keys[0]!r} but perhaps the lines of the config "
        f"file, which come before --cfg-options{close}"
    )


def _top_level_problems(before: Mapping) -> Iterator[str]:
    """Names of a config file that look like one that is read: ``trian_cfg``."""
    for key in before:
        if key in READ or key.startswith("_"):
            continue
        close = difflib.get_close_matches(key, READ, 1, 0.85)
        if close:
            yield f"{key}: nothing reads it; did you mean {close[0]!r}?"


def nearest(key: str, names: Iterable[str]) -> str:
    """``; did you mean 'interval'?``, or nothing."""
    lower = {str(name).lower(): str(name) for name in names}
    close = difflib.get_close_matches(key.lower(), lower, 1, _CLOSE)
    return f"; did you mean {lower[close[0]]!r}?" if close else ""


def _plain(error: Exception) -> str:
    return " ".join(str(error.args[0] if error.args else error).split())
