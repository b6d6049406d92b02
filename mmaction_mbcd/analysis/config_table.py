"""What the configs resolve to: numbers that a reviewer compares with a paper."""

import functools
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from mmaction.registry import DATASETS
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope

from ..preparation.epic_splits import converted


def find_configs(folder: Path) -> list[Path]:
    """The leaves below a folder, sorted: no base files."""
    return sorted(p for p in folder.rglob("*.py") if "_base_" not in p.parts)


def settings(configs: Sequence[Path]) -> pd.DataFrame:
    """One row per config: method and schedule.

    Args:
        configs: Config files.

    Returns:
        Columns config, method, modalities, epochs, batch, lr, weight_decay, schedule,
        views, objectives, evaluated (which weights).
    """
    rows = []
    for path in configs:
        cfg = Config.fromfile(path)
        optimizer = cfg.optim_wrapper.optimizer
        hooks = [h for h in cfg.get("custom_hooks") or [] if "TeacherEMA" in h["type"]]
        model = cfg.model
        objectives = [*model.get("objectives", ()), *model.get("extra_objectives", ())]
        rows.append(
            dict(
                config="/".join(path.with_suffix("").parts[-2:]),
                method=cfg.get("method", {}).get("name", "-"),
                modalities=" ".join(model.modalities),
                epochs=cfg.train_cfg.max_epochs,
                batch=cfg.train_dataloader.batch_size,
                lr=optimizer.lr,
                weight_decay=optimizer.get("weight_decay", 0),
                schedule=" ".join(s["type"] for s in cfg.param_scheduler) or "constant",
                views=cfg.train_dataloader.dataset.get("views", 1),
                objectives=" ".join(o["type"] for o in objectives),
                evaluated=hooks[0].get("evaluate", "teacher") if hooks else "student",
            )
        )
    return pd.DataFrame(rows)


def protocol(config: Path, data_root: str | None = None) -> pd.DataFrame:
    """One row per choice of sources and target: how many clips and steps there are.

    Args:
        config: Config file of a dataset; the method does not matter.
        data_root: Folder that holds at least the annotation files.

    Returns:
        Columns sources, target, N_train, N_val, N_in_domain (equal to N_val), N_test,
        N_test_only (the target's test split alone) and steps (per epoch). First the
        multi-source rows, one per target, then the single-source ones.

    Raises:
        FileNotFoundError: If there are no annotation files.
    """
    cfg = Config.fromfile(config)
    init_default_scope(cfg.get("default_scope") or "mmaction")
    loader = cfg.train_dataloader
    base = {k: v for k, v in loader.dataset.items() if k != "use"}
    base["pipelines"] = {m: [] for m in base["pipelines"]}
    if data_root is not None:
        base["data_root"] = data_root
    # EPIC-Kitchens publishes pickles, which the dataset does not read.
    with converted(base["data_root"]) as base["data_root"]:
        return _protocol(base, loader)


def _protocol(base: dict, loader: ConfigDict) -> pd.DataFrame:
    domains = DATASETS.get(base["type"]).describe(base["data_root"])["domains"]

    @functools.cache
    def count(use: str, names: tuple[str, ...], eval_split: str = "full") -> int:
        """Rows of a use; ``names`` are its sources, for a test its target."""
        others = tuple(d for d in domains if d not in names)
        sources, target = (others, names) if use == "test" else (names, others)
        choice = dict(use=use, sources=sources, target=target, eval_split=eval_split)
        return len(DATASETS.build(base | choice | dict(watch_target=False)))

    rows = []
    multi = [(tuple(d for d in domains if d != t), t) for t in domains]
    single = [((s,), t) for s in domains for t in domains if t != s]
    batch, drop_last = loader.batch_size, loader.get("drop_last", False)
    for sources, target in multi + (single if len(domains) > 2 else []):
        train = count("train", sources)
        rows.append(
            dict(
                sources=" ".join(sources),
                target=target,
                N_train=train,
                N_val=count("val", sources),
                N_in_domain=count("in_domain", sources),
                N_test=count("test", (target,)),
                N_test_only=count("test", (target,), "test"),
                steps=train // batch if drop_last else -(-train // batch),
            )
        )
    return pd.DataFrame(rows)
