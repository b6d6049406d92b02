"""What the options change of a run: seed, folder, precision, weights, processes.

As in :mod:`.data`, every function changes the given config in place.
"""

import os.path as osp
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from .. import compat
from ..checkpoint_files import checkpoints_in
from ..engine import BriefRunner
from ..errors import UsageError, require_file
from ..models.weights import DOWNLOAD
from .start import start_errors

AMP_WRAPPERS = {
    "OptimWrapper": "AmpOptimWrapper",
    "MBCDOptimWrapper": "AmpMBCDOptimWrapper",
}
"""Optimizer wrapper -> the one that trains in mixed precision."""


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
    held_out_classes: Sequence[str] | None = None,
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
        if held_out_classes:
            name += "_without-" + "-".join(held_out_classes).replace("/", "-")
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
    # A scaler waits for the device in every step, also with a scale of 1.
    none = dict(enabled=False)
    wrapper.setdefault("loss_scale", "dynamic" if wrapper.dtype == "float16" else none)


def set_resume(cfg: Config, resume: str | None) -> None:
    """``'auto'``: from the latest checkpoint of the work directory; else the file.

    Without one there, ``'auto'`` begins with the weights that ``load_from`` names.
    """
    if resume == "auto":
        if cfg.get("load_from") and not checkpoints_in(cfg.get("work_dir") or ""):
            cfg.resume = False
            return
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


def dump_predictions(cfg: Config, path: str) -> None:
    """Writes every prediction to a pickle file besides evaluating it."""
    if not path.endswith((".pkl", ".pickle")):
        raise UsageError(f"--dump writes a pickle file: {path} must end with .pkl")
    _evaluate_also(cfg, dict(type="DumpResults", out_file_path=path))


def keep_predictions(cfg: Config, path: str) -> None:
    """Keeps what the model says of every clip, see :class:`.Predictions`."""
    if not path.endswith(".npz"):
        raise UsageError(f"--predictions writes an .npz file: {path} must end so")
    _evaluate_also(cfg, dict(type="PredictionFile", path=path))


def _evaluate_also(cfg: Config, metric: dict) -> None:
    evaluators = cfg.test_evaluator
    evaluators = list(evaluators) if isinstance(evaluators, list) else [evaluators]
    cfg.test_evaluator = [*evaluators, metric]


def build_runner(cfg: Config) -> Runner:
    """MMEngine's runner, brief on the terminal, or what ``cfg.runner_type`` names.

    Raises:
        UsageError: If its parts cannot be built.
    """
    with start_errors():
        if "runner_type" in cfg:
            return RUNNERS.build(cfg)
        return BriefRunner.from_cfg(cfg)
