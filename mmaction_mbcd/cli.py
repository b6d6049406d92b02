"""What ``tools/train.py`` and ``tools/test.py`` do to a config.

Every function changes the given config in place, as MMEngine's ``merge_from_dict``
does, and raises :class:`UsageError` where the request cannot work.
``--cfg-options`` are merged first, so the tools' own options have the last word.
"""

import argparse
import json
import math
import numbers
import os
import os.path as osp
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from mmaction.registry import DATASETS
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.registry import RUNNERS, init_default_scope
from mmengine.runner import Runner, find_latest_checkpoint

from . import compat
from .datasets import SAMPLINGS, MultiModalDataset
from .engine import BriefRunner
from .models.weights import DOWNLOAD

AMP_WRAPPERS = {
    "OptimWrapper": "AmpOptimWrapper",
    "MBCDOptimWrapper": "AmpMBCDOptimWrapper",
}
"""Optimizer wrapper -> the one that trains in mixed precision."""

SPLITS = ("train", "val", "test")


class UsageError(Exception):
    """The command line asks for something that cannot work; the message says why."""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turns a :class:`UsageError` into one line on stderr and exit code 2."""
    try:
        yield
    except UsageError as error:
        print(f"{osp.basename(sys.argv[0])}: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that training and testing share."""
    parser.add_argument("--work-dir", help="folder of logs and checkpoints")
    add_data_options(parser)
    parser.add_argument(
        "--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none"
    )
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0)


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that change the config, above all its data."""
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=DictAction,
        metavar="KEY=VALUE",
        help="override settings of the config, e.g. train_cfg.max_epochs=2 "
        'key="[a,b]"; merged before the other options',
    )
    parser.add_argument(
        "--modalities",
        nargs="+",
        metavar="NAME",
        help="use only these modalities of the config, e.g. video audio",
    )
    parser.add_argument(
        "--target",
        nargs="+",
        metavar="DOMAIN",
        help="the unseen domain, or several (default: the config's; with --sources "
        "alone: every other domain)",
    )
    parser.add_argument(
        "--sources",
        nargs="+",
        metavar="DOMAIN",
        help="the domains to train on (default: every domain but the target)",
    )
    parser.add_argument("--data-root", help="folder of the dataset")
    parser.add_argument(
        "--sampling",
        choices=SAMPLINGS,
        help="which frames and sound are a sample: as in the published code, or with "
        "its oddities repaired (default: the config's)",
    )
    parser.add_argument(
        "--per-target-values",
        action="store_true",
        help="the values that the method's authors chose for this target and these "
        "modalities (method.by_target of the config: SimMMDG, MOOSA); merged last",
    )


def load_config(args: argparse.Namespace) -> Config:
    """Reads the config file and merges the options of :func:`add_common_options`."""
    require_file(args.config, "config")
    os.environ.setdefault("LOCAL_RANK", str(getattr(args, "local_rank", 0)))
    cfg = Config.fromfile(args.config)
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)
    if args.data_root is not None:
        _set_datasets(cfg, data_root=args.data_root)
    if args.modalities is not None:
        set_modalities(cfg, args.modalities)
    if args.target is not None or args.sources is not None:
        set_domains(cfg, args.target, args.sources)
    if args.sampling is not None:
        _set_datasets(cfg, sampling=args.sampling)
    follow_dataset(cfg)
    if args.per_target_values:
        use_target_values(cfg)
    cfg.launcher = getattr(args, "launcher", "none")
    return cfg


def require_file(path: str, what: str) -> None:
    """Raises :class:`UsageError` unless ``path`` is a file, or a URL."""
    if "://" not in path and not osp.isfile(path):
        raise UsageError(f"{what} file not found: {path}")


def _datasets(dataset: Mapping) -> Iterator[dict]:
    """The innermost datasets, inside any ConcatDataset or RepeatDataset."""
    inner = dataset.get("datasets", dataset.get("dataset"))
    if inner is None:
        yield dataset
    elif isinstance(inner, Mapping):
        yield from _datasets(inner)
    else:
        for each in inner:
            yield from _datasets(each)


def set_modalities(cfg: Config, modalities: Sequence[str]) -> None:
    """Restricts the model and all datasets to ``modalities``."""
    modalities = list(modalities)
    if len(set(modalities)) != len(modalities):
        raise UsageError(f"--modalities names one twice: {' '.join(modalities)}")
    known = cfg.model.get("encoders") or cfg.model.get("modalities")
    unknown = [name for name in modalities if known and name not in known]
    if unknown:
        raise UsageError(
            f"--modalities: the config has no {', '.join(unknown)}; "
            f"it has {', '.join(known)}"
        )
    cfg.model.modalities = modalities
    _set_datasets(cfg, modalities=modalities)


def _set_datasets(cfg: Config, **values: object) -> None:
    """Sets arguments of the datasets of all splits."""
    for split in SPLITS:
        loader = cfg.get(f"{split}_dataloader")
        for dataset in _datasets(loader["dataset"]) if loader else ():
            dataset.update(values)


def first_dataset(cfg: Config) -> dict:
    """Config of the first dataset that a config has."""
    loaders = [cfg[f"{s}_dataloader"] for s in SPLITS if cfg.get(f"{s}_dataloader")]
    if not loaders:
        raise UsageError("the config has no dataloader")
    return dict(next(_datasets(loaders[0]["dataset"])))


def _described(cfg: Config) -> dict:
    """Classes and domains of the config's dataset, whatever it is used for.

    Raises:
        UsageError: If it cannot be described, or is none of this package's.
    """
    config = first_dataset(cfg)
    init_default_scope(cfg.get("default_scope") or "mmaction")
    kind = config["type"]
    kind = DATASETS.get(kind) if isinstance(kind, str) else kind
    if not (isinstance(kind, type) and issubclass(kind, MultiModalDataset)):
        raise UsageError(
            "--target and --sources need a MultiModalDataset; the config has "
            f"{config['type']}"
        )
    try:
        return kind.describe(config.get("data_root", "")) | (
            config.get("metainfo") or {}
        )
    except (ValueError, OSError) as error:
        raise UsageError(str(error)) from error


def _built(cfg: Config) -> MultiModalDataset:
    """The config's first dataset, built without reading its rows."""
    try:
        return DATASETS.build(first_dataset(cfg) | dict(lazy_init=True))
    except (ValueError, OSError) as error:
        raise UsageError(str(error)) from error


def set_domains(
    cfg: Config,
    target: Sequence[str] | None = None,
    sources: Sequence[str] | None = None,
) -> None:
    """Sets the unseen and the training domains, and what depends on them.

    Args:
        cfg: The config.
        target: Target domains; None: every domain that is no source.
        sources: Source domains; None: every domain that is no target.

    Raises:
        UsageError: For a domain that does not exist or is both, or if none is left.
    """
    known = _described(cfg)["domains"]
    if target is None:
        target = [domain for domain in known if domain not in sources]
        if not target:
            raise UsageError(
                f"--sources names every domain ({', '.join(sources)}): none is left "
                "to test on"
            )
    _set_datasets(
        cfg,
        target=target[0] if len(target) == 1 else list(target),
        sources=None if sources is None else list(sources),
    )
    found = _built(cfg).sources
    if "num_domains" in cfg.model:
        cfg.model.num_domains = len(found)


def use_target_values(cfg: Config) -> None:
    """Merges the values that a method's authors chose for the config's target.

    They stand in ``method.by_target``: ``{'video audio': {target: {key: value}}}``.

    Raises:
        UsageError: If the method has none, or none for this target and modalities.
    """
    method = cfg.get("method") or {}
    table = method.get("by_target")
    if not table:
        raise UsageError(
            f"--per-target-values: {method.get('name', 'the config')} has one set of "
            "values for all targets (no method.by_target); leave the option out"
        )
    modalities = cfg.model.get("modalities") or list(cfg.model.encoders)
    target = first_dataset(cfg).get("target")
    found = {
        frozenset(names.split()): targets.get(target)
        for names, targets in table.items()
        if isinstance(target, str)
    }.get(frozenset(modalities))
    if found is None:
        known = next(iter(table.values()))
        raise UsageError(
            f"--per-target-values: {method['name']} has no values for target "
            f"{target} with {' '.join(modalities)}; it has {', '.join(known)} with "
            + ", or ".join(table)
        )
    cfg.merge_from_dict(dict(found))


def has_target(config: str) -> bool:
    """Whether a config file names its target or its sources.

    Raises:
        UsageError: If there is no such file.
    """
    require_file(config, "config")
    dataset = first_dataset(Config.fromfile(config))
    return bool(dataset.get("target") or dataset.get("sources"))


def described_domains(cfg: Config) -> tuple[str, ...]:
    """The domains of the config's dataset.

    Raises:
        UsageError: If it cannot be described.
    """
    return tuple(_described(cfg)["domains"])


def domains_of(config: str, data_root: str | None = None) -> tuple[str, ...]:
    """The domains that the dataset of a config file has.

    Raises:
        UsageError: If there is no such file, or its dataset cannot be described.
    """
    require_file(config, "config")
    cfg = Config.fromfile(config)
    if data_root is not None:
        _set_datasets(cfg, data_root=data_root)
    return described_domains(cfg)


def follow_dataset(cfg: Config) -> None:
    """Counts classes and source domains where the config leaves them to the dataset.

    These are ``model.num_classes`` and ``model.num_domains``, if they are None.
    """
    model = cfg.get("model") or {}
    wanted = [k for k in ("num_classes", "num_domains") if k in model]
    if all(model[key] is not None for key in wanted):
        return
    classes, dataset = _described(cfg)["classes"], _built(cfg)
    found = dict(num_classes=len(classes), num_domains=len(dataset.sources))
    for key in wanted:
        if model[key] is None:
            model[key] = found[key]


def set_randomness(
    cfg: Config,
    seed: int | None = None,
    diff_rank_seed: bool = False,
    deterministic: bool = False,
) -> None:
    """Given options win over the config's ``randomness``; the rest of it stays.

    Without a seed in either place MMEngine draws one and prints it.
    """
    randomness = dict(cfg.get("randomness") or {})
    if seed is not None:
        randomness["seed"] = seed
    randomness.setdefault("seed", None)
    for name, value in (
        ("diff_rank_seed", diff_rank_seed),
        ("deterministic", deterministic),
    ):
        if value:
            randomness[name] = True
    cfg.randomness = randomness


def missing_weights(cfg: Config) -> dict[str, str]:
    """``{modality: path}`` of pretrained files that are not there; no URLs."""
    model = cfg.get("model") or {}
    encoders = model.get("encoders") or {}
    missing = {}
    for modality in model.get("modalities") or encoders:
        pretrained = (encoders.get(modality) or {}).get("pretrained") or {}
        path = pretrained.get("checkpoint", "")
        if path and "://" not in path and not osp.isfile(path):
            missing[modality] = path
    return missing


def weights_problem(cfg: Config) -> str:
    """What :func:`missing_weights` are, and what helps; nothing is ``''``."""
    missing = missing_weights(cfg)
    if not missing:
        return ""
    files = ", ".join(f"{path} ({modality})" for modality, path in missing.items())
    return (
        f"pretrained weights are missing: {files}. Fetch them with `{DOWNLOAD}`, or "
        "start an encoder from random weights with --cfg-options "
        f"model.encoders.{next(iter(missing))}.pretrained=None"
    )


def require_weights(cfg: Config) -> None:
    """Raises :class:`UsageError` if a pretrained file is missing."""
    if problem := weights_problem(cfg):
        raise UsageError(problem)


def set_work_dir(
    cfg: Config,
    config_file: str,
    work_dir: str | None = None,
    modalities: Sequence[str] | None = None,
    seed: int | None = None,
    target: Sequence[str] | None = None,
    sources: Sequence[str] | None = None,
) -> None:
    """``work_dir``, or the config's own, or ``work_dirs/[<folders>/]<config>[_...]``.

    Checkpoint names hold neither dataset, seed nor modalities. The default names the
    folders of a config that lies below ``configs``, and the options that were given
    on the command line, such as ``work_dirs/hac/mbcd_to-human_video-audio_seed3``, so
    that such runs do not overwrite each other. A folder that was asked for is taken as
    it is.
    """
    if work_dir is not None:
        cfg.work_dir = work_dir
    elif cfg.get("work_dir") is None:
        name = osp.splitext(osp.basename(config_file))[0]
        if sources or target:
            name += "_" + "-".join(sources or ())
            name += "-to-" if sources and target else "to-" if target else ""
            name += "-".join(target or ())
        if modalities:
            name += "_" + "-".join(modalities)
        if seed is not None:
            name += f"_seed{seed}"
        cfg.work_dir = osp.join("work_dirs", config_folder(config_file), name)


def config_folder(config_file: str) -> str:
    """Folders of a config below ``configs/mbcd``, ``'hac/published'``; perhaps none."""
    *above, _ = Path(config_file).resolve().parts
    if "configs" not in above:
        return ""
    # The last one: a repository may lie below another folder of that name.
    start = len(above) - above[::-1].index("configs")
    below = above[start:]
    return osp.join("", *(below[1:] if below[:1] == ["mbcd"] else below))


def enable_amp(cfg: Config, dtype: str = "float16") -> None:
    """Exchanges the optimizer wrapper for its mixed-precision one.

    Args:
        cfg: Its ``optim_wrapper`` must be of a type in :data:`AMP_WRAPPERS`.
        dtype: 'float16', with dynamic loss scale, or 'bfloat16', whose range needs
            none. What the config says about either stays.
    """
    wrapper = cfg.optim_wrapper
    stock = wrapper.get("type", "OptimWrapper")
    name = stock if isinstance(stock, str) else stock.__name__
    scope, _, plain = name.rpartition(".")
    if plain not in AMP_WRAPPERS and plain not in AMP_WRAPPERS.values():
        raise UsageError(
            f"--amp: no mixed-precision counterpart of optimizer wrapper {name!r} is "
            f"known; known are {', '.join(AMP_WRAPPERS)}"
        )
    device = get_device()
    if device in ("cpu", "mps"):
        raise UsageError(
            f"--amp needs a GPU, and this machine trains on {device!r}; leave it out"
        )
    amp = AMP_WRAPPERS.get(plain, plain)
    wrapper.type = f"{scope}.{amp}" if scope else amp
    wrapper.setdefault("dtype", dtype)
    wrapper.setdefault("loss_scale", "dynamic" if wrapper.dtype == "float16" else 1.0)


def set_resume(cfg: Config, resume: str | None) -> None:
    """``'auto'``: from the latest checkpoint of the work directory; else the file."""
    if resume == "auto":
        cfg.resume, cfg.load_from = True, None
    elif resume is not None:
        require_file(resume, "checkpoint")
        cfg.resume, cfg.load_from = True, resume


def enable_auto_scale_lr(cfg: Config) -> None:
    """Scales the learning rate with the batch size over all processes."""
    if "base_batch_size" not in (cfg.get("auto_scale_lr") or {}):
        raise UsageError(
            "--auto-scale-lr: the config does not say for which batch size its "
            "learning rate is; add auto_scale_lr = dict(base_batch_size=...)"
        )
    cfg.auto_scale_lr.enable = True


def disable_validation(cfg: Config) -> None:
    """Trains without validation; no best checkpoint is kept then."""
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None


def prepare_cpu_launch(cfg: Config) -> None:
    """Makes training by several processes possible on a machine without a GPU.

    MMEngine's launcher and its default DDP wrapper take a GPU for granted.
    """
    if cfg.get("launcher", "none") == "none" or get_device() != "cpu":
        return
    if cfg.launcher != "pytorch":
        raise UsageError(
            f"--launcher {cfg.launcher} needs a GPU; without one start the processes "
            "with torchrun and --launcher pytorch (tools/dist_train.sh)"
        )
    compat.start_cpu_process_group()
    if cfg.get("model_wrapper_cfg") is None:
        cfg.model_wrapper_cfg = dict(
            type="MMDistributedDataParallel",
            device_ids=None,
            broadcast_buffers=False,
            find_unused_parameters=cfg.get("find_unused_parameters", False),
        )


def _teacher_hooks(cfg: Config) -> list[dict]:
    hooks = []
    for hook in cfg.get("custom_hooks") or ():
        kind = hook.get("type") if isinstance(hook, Mapping) else None
        name = kind if isinstance(kind, str) else getattr(kind, "__name__", "")
        if name.rpartition(".")[2] == "TeacherEMAHook":
            hooks.append(hook)
    return hooks


def choose_weights(cfg: Config, weights: str) -> None:
    """Evaluates the ``'teacher'`` or the ``'student'`` of a checkpoint."""
    hooks = _teacher_hooks(cfg)
    if not hooks:
        raise UsageError(
            f"--weights {weights}: the config has no TeacherEMAHook in custom_hooks, "
            "so its checkpoints hold one set of weights; leave the option out"
        )
    for hook in hooks:
        hook["evaluate"] = weights


def chosen_weights(cfg: Config) -> str | None:
    """Which weights the config evaluates; None where there is one set only."""
    for hook in _teacher_hooks(cfg):
        return hook.get("evaluate", "teacher")
    return None


def evaluate_in_domain(cfg: Config) -> None:
    """Tests on the held-out part of the source domains instead of the target."""
    if not cfg.get("test_dataloader"):
        raise UsageError("--in-domain: the config has no test_dataloader")
    for dataset in _datasets(cfg.test_dataloader["dataset"]):
        dataset["use"] = "in_domain"


def dump_predictions(cfg: Config, path: str) -> None:
    """Writes every prediction to a pickle file besides evaluating it."""
    if not path.endswith((".pkl", ".pickle")):
        raise UsageError(f"--dump writes a pickle file: {path} must end with .pkl")
    evaluators = cfg.test_evaluator
    evaluators = list(evaluators) if isinstance(evaluators, list) else [evaluators]
    cfg.test_evaluator = [*evaluators, dict(type="DumpResults", out_file_path=path)]


def build_runner(cfg: Config) -> Runner:
    """MMEngine's runner, brief on the terminal, or what ``cfg.runner_type`` names."""
    if "runner_type" in cfg:
        return RUNNERS.build(cfg)
    return BriefRunner.from_cfg(cfg)


@master_only
def announce_checkpoints(runner: Runner) -> None:
    """Prints where the best checkpoint, or else the last, lies."""
    found = {
        path
        for key, path in runner.message_hub.runtime_info.items()
        if key.startswith("best_ckpt") and path and osp.isfile(path)
    }
    for path in sorted(found):
        print(f"Best checkpoint: {path}")
    if not found:
        last = find_latest_checkpoint(runner.work_dir)
        print(f"Last checkpoint: {last}" if last else "No checkpoint was written.")


class CheckpointMeta(Hook):
    """Keeps what the loaded checkpoint says about the run that wrote it."""

    def __init__(self) -> None:
        self.facts: dict[str, object] = {}

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Notes seed, epoch and iteration, where the checkpoint has them."""
        meta = checkpoint.get("meta") or {}
        self.facts = {name: meta.get(name) for name in ("seed", "epoch", "iter")}


def _plain(value: object) -> object:
    """A JSON value: numbers of any library as Python's; not-a-number as null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    return str(value)


@master_only
def write_results(path: str, metrics: Mapping[str, object], **facts: object) -> None:
    """Writes ``metrics`` and what is known about the run as JSON.

    ``N`` is the number of samples, for each group that the metrics count
    (``{'target': 120}`` from ``target/N``).
    """
    counts = {
        key.rpartition("/")[0]: value
        for key, value in metrics.items()
        if key.rpartition("/")[2] == "N"
    }
    content = _plain({**facts, "N": counts, "metrics": metrics})
    os.makedirs(osp.dirname(osp.abspath(path)), exist_ok=True)
    with open(path, "w") as file:
        json.dump(content, file, indent=2)
        file.write("\n")


@master_only
def print_results(metrics: Mapping[str, object], title: str) -> None:
    """Prints ``metrics`` as a table, one row per metric."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for key, value in metrics.items():
        value = _plain(value)
        table.add_row(key, f"{value:.4f}" if isinstance(value, float) else str(value))
    Console().print(table)
