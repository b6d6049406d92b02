"""What the options change of a config's data: folder, modalities, domains, classes.

Every function changes the given config in place, as MMEngine's ``merge_from_dict``
does, and raises :class:`.UsageError` where the request cannot work.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from mmaction.registry import DATASETS
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import init_default_scope

from ..cores import own_cores
from ..datasets import MultiModalDataset
from ..errors import UsageError, require_file

SPLITS = ("train", "val", "test")


@contextmanager
def quiet() -> Iterator[None]:
    """Datasets report what they contain as they are built; here nobody asked."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def innermost_datasets(dataset: Mapping) -> Iterator[dict]:
    """The innermost datasets, inside any ConcatDataset or RepeatDataset."""
    inner = dataset.get("datasets", dataset.get("dataset"))
    if inner is None:
        yield dataset
    elif isinstance(inner, Mapping):
        yield from innermost_datasets(inner)
    else:
        for each in inner:
            yield from innermost_datasets(each)


def suit_loaders(cfg: Config) -> None:
    """Fits the loaders to the machine; batches stay the same.

    At most as many data workers as this process has cores: a worker reads with one
    thread, what is decoded needs a core for each, and more wait for each other. Each
    has a share of memory, too. Where a GPU trains, batches lie in page-locked memory,
    from which it fetches them by itself, unless the config says otherwise.
    """
    cores, gpu = own_cores(), get_device() == "cuda"
    for split in SPLITS:
        loader = cfg.get(f"{split}_dataloader")
        if not loader:
            continue
        if loader.get("num_workers", 0) > cores:
            loader["num_workers"] = cores
        if gpu:
            loader.setdefault("pin_memory", True)


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
    set_datasets(cfg, modalities=modalities)


def set_datasets(cfg: Config, **values: object) -> None:
    """Sets arguments of the datasets of all splits."""
    for split in SPLITS:
        loader = cfg.get(f"{split}_dataloader")
        for dataset in innermost_datasets(loader["dataset"]) if loader else ():
            dataset.update(values)


def first_dataset(cfg: Config) -> dict:
    """Config of the first dataset that a config has."""
    loaders = [cfg[f"{s}_dataloader"] for s in SPLITS if cfg.get(f"{s}_dataloader")]
    if not loaders:
        raise UsageError("the config has no dataloader")
    return dict(next(innermost_datasets(loaders[0]["dataset"])))


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
        target: Target domains; None: every domain that is not a source.
        sources: Source domains; None: every domain that is not a target.

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
    set_datasets(
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
        set_datasets(cfg, data_root=data_root)
    return described_domains(cfg)


def infer_class_counts(cfg: Config) -> None:
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


def evaluate_in_domain(cfg: Config) -> None:
    """Tests on the held-out part of the source domains instead of the target."""
    if not cfg.get("test_dataloader"):
        raise UsageError("--in-domain: the config has no test_dataloader")
    for dataset in innermost_datasets(cfg.test_dataloader["dataset"]):
        dataset["use"] = "in_domain"
