"""Whether a config can be trained: what is found out before hours of preparation."""

from collections.abc import Iterator

from mmaction.registry import DATASETS
from mmengine.config import Config

from ..cli import described_domains, first_dataset, weights_problem


def training_problems(cfg: Config, every_target: bool = False) -> list[str]:
    """What would stop ``tools/train.py`` once all files are there.

    Args:
        cfg: The config.
        every_target: Look at each domain as the target, not at the config's alone.

    Returns:
        list[str]: Sentences that say what helps; empty if nothing is wrong.
    """
    problems = [weights_problem(cfg), *_batch_problems(cfg, every_target)]
    return [problem for problem in problems if problem]


def _batch_problems(cfg: Config, every_target: bool) -> Iterator[str]:
    loader = cfg.get("train_dataloader")
    if not loader or not loader.get("drop_last", False):
        return
    config, batch = first_dataset(cfg), loader["batch_size"]
    targets = described_domains(cfg) if every_target else [config.get("target")]
    short = {}
    for target in targets:
        dataset = DATASETS.build(config | dict(target=target, use="train"))
        if len(dataset) < batch:
            short[str(target)] = len(dataset)
    if short:
        clips = ", ".join(f"{n} (target {name})" for name, n in short.items())
        yield (
            f"there is no training batch: of {batch} clips each, incomplete ones are "
            f"left out, but the sources have {clips}. Lower it, for every target "
            f"alike: --cfg-options train_dataloader.batch_size={min(short.values())}"
        )
