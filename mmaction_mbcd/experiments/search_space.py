"""A random search: for each method equally many configurations, drawn from its ranges.

Each is a run of the grid, a variant ``trial03``. The draws are a function of the search
seed, the method, the trial and the hyper-parameter alone: a search that is made longer
or goes on elsewhere has the same ones.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..cli.options import read_config
from ..cli.settings_checks import nearest
from ..errors import UsageError
from .distributions import read_distribution, unit_draw
from .search_ranges import COMMON, RANGES, HyperParameter

if TYPE_CHECKING:
    from .grid import Grid, RunSpec

BY = ("source", "leave_one_source_out")
"""What a configuration is chosen by: the accuracy on the sources' validation clips, or
that on sources which were left out of training."""

FIRST_TRAINING_SEED = 1000
"""Of trials. A grid's own seeds are small: the chosen configuration is trained again
with seeds that had no part in the choice."""

_TRIAL = re.compile(r"(?:search(\d+)-)?trial(\d+)")


def trial_name(search_seed: int, trial: int) -> str:
    """``'trial03'``, and ``'search1-trial03'`` of any but the first search."""
    return f"search{search_seed}-" * (search_seed > 0) + f"trial{trial:02d}"


def read_trial_name(variant: str) -> tuple[int, int] | None:
    """Search seed and number of a trial; None for another variant."""
    found = _TRIAL.fullmatch(variant)
    return found and (int(found[1] or 0), int(found[2]))


@dataclass(frozen=True)
class Search:
    """What a grid's key ``search`` holds.

    Attributes:
        budget: Configurations of each method; trial 0 is the config's own.
        seed: Of the draws; several of them are as many searches, each of which chooses.
        seeds_per_trial: Trainings of each configuration.
        by: See :data:`BY`.
        ranges: ``{method or 'common': {name or key: range or None}}``; None leaves the
            config's value.
    """

    budget: int
    seed: int | Sequence[int] = 0
    seeds_per_trial: int = 1
    by: str = "source"
    ranges: Mapping[str, Mapping[str, object]] = field(default_factory=dict)

    @classmethod
    def of(cls, content: object) -> Search:
        """Of a grid file's values, checked.

        Raises:
            UsageError: Naming what is wrong.
        """
        names = [f.name for f in dataclasses.fields(cls)]
        if not isinstance(content, Mapping):
            raise UsageError(f"search must hold keys such as budget, got {content!r}")
        for key in content:
            if key not in names:
                close = nearest(str(key), names)
                raise UsageError(f"search: unknown key {key!r}{close}")
        if "budget" not in content:
            raise UsageError("search: budget, the trials of each method, is missing")
        search = cls(**content)
        if problems := list(search._problems()):
            raise UsageError("search: " + "; ".join(problems))
        return search

    def _problems(self) -> Iterator[str]:
        for name, least in (("budget", 1), ("seeds_per_trial", 1)):
            value = getattr(self, name)
            if not _is_whole(value) or value < least:
                yield f"{name} must be a whole number from {least}, got {value!r}"
        seeds = self.seed if isinstance(self.seed, (list, tuple)) else [self.seed]
        fits = seeds and all(_is_whole(s) and s >= 0 for s in seeds)
        if not fits or len(set(seeds)) < len(seeds):
            yield (
                "seed must be a whole number from 0, or a list of different ones; got "
                f"{self.seed!r}"
            )
        if self.by not in BY:
            yield f"by must be one of {', '.join(BY)}, got {self.by!r}"
        fits = isinstance(self.ranges, Mapping) and all(
            isinstance(own, Mapping) for own in self.ranges.values()
        )
        if not fits:
            yield f"ranges must be {{method: {{name: range}}}}, got {self.ranges!r}"

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of the draws."""
        several = isinstance(self.seed, (list, tuple))
        return tuple(self.seed) if several else (self.seed,)

    def training_seeds(self, search_seed: int) -> list[int]:
        """Of each trial; a further training per trial keeps those before."""
        first = FIRST_TRAINING_SEED * (1 + search_seed)
        return [first + i for i in range(self.seeds_per_trial)]

    # -------------------------------------------------------------------- the ranges

    def space(self, method: str) -> tuple[HyperParameter, ...]:
        """What is searched of a method, the grid file's ranges included.

        Raises:
            UsageError: If nobody has said what to search of it, or a range is wrong.
        """
        name = method.rpartition("/")[2]  # published/mbcd
        own = {"common", name, method}
        if name not in RANGES and not own & set(self.ranges) - {"common"}:
            raise UsageError(
                f"search: {method} has no ranges; give some as search.ranges.{name} "
                f"({{}} for none of its own){nearest(name, RANGES)}"
            )
        known = {each.name: each for each in (*COMMON, *RANGES.get(name, ()))}
        for where in (w for w in self.ranges if w in own):
            for key, said in self.ranges[where].items():
                _change(known, str(key), said, f"search.ranges.{where}.{key}")
        return tuple(known.values())

    def draw(self, config: str, method: str, trial: int, search_seed: int) -> dict:
        """The values of a trial, ``{key of the config: value}``; of trial 0 none.

        Args:
            config: The method's config file.
            method: Its name.
            trial: From 0.
            search_seed: One of :attr:`seeds`.

        Raises:
            UsageError: If the config lacks what is searched.
        """
        if trial == 0:
            return {}
        cfg, drawn = _read(config), {}
        scratch = is_from_scratch(cfg)
        for each in self.space(method):
            if scratch and each.with_pretrained_only:
                continue
            keys = keys_of(each.key, cfg)
            if not keys:
                raise UsageError(
                    f"search: {config} has no {each.key}; set the range of "
                    f"{each.name} to null in search.ranges.{method}"
                )
            values = (scratch and each.scratch) or each.range
            value = values.at(unit_draw(search_seed, method, trial, each.name))
            drawn |= dict.fromkeys(keys, value)
        return drawn

    # -------------------------------------------------------------------- the trials

    def trials(self, specs: Sequence[RunSpec]) -> list[RunSpec]:
        """The runs of the search in place of those of the grid.

        Every run of the grid, whatever its seed, becomes :attr:`budget` trials, the
        same number for each method.

        Raises:
            UsageError: If a value is both searched and set.
        """
        places = dict.fromkeys(dataclasses.replace(s, seed=0) for s in specs)
        return [
            self._trial(spec, trial, search_seed, seed)
            for search_seed in self.seeds
            for spec in places
            for trial in range(self.budget)
            for seed in self.training_seeds(search_seed)
        ]

    def _trial(self, spec: RunSpec, trial: int, search_seed: int, seed: int) -> RunSpec:
        drawn = self.draw(spec.config, spec.method, trial, search_seed)
        if both := set(drawn) & set(settings_of(spec)):
            raise UsageError(
                f"search: {', '.join(sorted(both))} is searched and set by options: "
                "leave it out of them, or set its range to null in search.ranges"
            )
        return dataclasses.replace(
            spec,
            variant=trial_name(search_seed, trial),
            seed=seed,
            settings=(*spec.settings, *(f"{k}={v}" for k, v in drawn.items())),
        )

    def refuse(self, grid: Grid) -> None:
        """Raises for what a grid cannot have beside a search.

        Raises:
            UsageError: Naming all of it.
        """
        problems = []
        variants, arguments, seeds = grid.variants, grid.arguments, grid.seeds
        if grid.chosen:
            problems.append("chosen is what a search ends with: leave one of them out")
        if self.by not in ("source", *grid.select):
            problems.append(f"by {self.by} needs it in select too")
        if variants:
            problems.append("variants and search exclude each other")
        if "--per-target-values" in arguments:
            problems.append(
                "--per-target-values are values that were chosen on the targets; they "
                "would overwrite the drawn ones"
            )
        every = {t for s in self.seeds for t in self.training_seeds(s)}
        if both := every & set(seeds):
            problems.append(
                f"seeds: {min(both)} is a trial's; the chosen configuration is trained "
                f"with seeds below {FIRST_TRAINING_SEED}, which had no part in the "
                "choice"
            )
        if problems:
            raise UsageError("search: " + "; ".join(problems))


def chosen_key(spec: RunSpec) -> dict:
    """What a choice of a search is for."""
    return dict(
        dataset=spec.dataset,
        method=spec.method,
        modalities=list(spec.modalities),
        sources=list(spec.sources),
        target=list(spec.target),
    )


def with_chosen(specs: Sequence[RunSpec], chosen: Sequence[Mapping]) -> list[RunSpec]:
    """The runs of a grid with the configurations that a search chose.

    Args:
        specs: Of the grid.
        chosen: :func:`chosen_key` of each with ``settings``, a list of ``key=value``,
            and ``variant``, the name of its row, ``''`` for the method's own.

    Raises:
        UsageError: If none was chosen for a run.
    """
    found = []
    for spec in specs:
        key = chosen_key(spec)
        own = [c for c in chosen if key == {name: c.get(name) for name in key}]
        if not own:
            raise UsageError(
                f"chosen: the search has no choice for {spec.dataset} {spec.method} "
                f"{' '.join((*spec.modalities, spec.place))}"
            )
        found += [
            dataclasses.replace(
                spec,
                variant=each.get("variant") or "",
                settings=(*spec.settings, *each.get("settings", ())),
            )
            for each in own
        ]
    return found


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _change(known: dict, key: str, said: object, where: str) -> None:
    """Replaces, adds or removes a hyper-parameter as a grid file says."""
    if said is None:
        if key not in known:
            raise UsageError(f"{where}: nothing of that name{nearest(key, known)}")
        del known[key]
        return
    if key not in known and "." not in key:
        close = nearest(key, known)
        raise UsageError(f"{where}: neither searched nor a config's key{close}")
    try:
        values = read_distribution(said)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
    before = known.get(key)
    known[key] = HyperParameter(
        key, before.key if before else key, values, "the grid file"
    )


def settings_of(spec: RunSpec) -> dict[str, str]:
    """The settings of a run as ``{key: text}``."""
    return dict(each.split("=", 1) for each in spec.settings)


# ------------------------------------------------------------------------ of configs


@functools.lru_cache(maxsize=256)
def _read(config: str) -> dict:
    return read_config(config).to_dict()


def is_from_scratch(cfg: Mapping) -> bool:
    """Whether no encoder has pretrained weights."""
    encoders = cfg["model"]["encoders"].values()
    return not any(encoder.get("pretrained") for encoder in encoders)


def keys_of(pattern: str, cfg: Mapping) -> list[str]:
    """The keys of a config that a hyper-parameter's key stands for.

    Args:
        pattern: See :class:`.HyperParameter`: ``'custom_hooks[TeacherEMAHook].beta'``.
        cfg: The config.

    Returns:
        One or, for ``*``, several; none if the config has no such place. Whether the
        last part of the key is known is checked where it is merged.
    """
    found: list[tuple[str, object]] = [("", cfg)]
    *places, last = pattern.split(".")
    for place in places:
        name, _, kind = place.rstrip("]").partition("[")
        found = [each for at, node in found for each in _below(at, node, name, kind)]
    return [f"{at}.{last}" for at, _ in found]


def _below(at: str, node: object, name: str, kind: str) -> Iterator[tuple[str, object]]:
    """The nodes of a name below one; of a list's elements the first of a type."""
    if isinstance(node, (list, tuple)):
        if name.isdigit() and int(name) < len(node):
            yield f"{at}.{name}", node[int(name)]
        return
    if not isinstance(node, Mapping):
        return
    for key in node if name == "*" else [name] if name in node else []:
        path, value = f"{at}.{key}".lstrip("."), node[key]
        if not kind:
            yield path, value
            continue
        for index, each in enumerate(value or ()):
            if each.get("type") == kind:
                yield f"{path}.{index}", each
                break


def value_in(cfg: Mapping, key: str) -> object:
    """What a config has at a key; None if it leaves it to the code's default."""
    node = cfg
    for part in key.split("."):
        if isinstance(node, (list, tuple)):
            node = node[int(part)]
        elif part in node:
            node = node[part]
        else:
            return None
    return node


def values_of(search: Search, spec: RunSpec) -> dict[str, object]:
    """What a trial's hyper-parameters are: drawn, or as the config has them.

    Returns:
        ``{name: value}``; None where the config leaves it to the code.
    """
    cfg, said = _read(spec.config), settings_of(spec)
    values = {}
    for each in search.space(spec.method):
        for key in keys_of(each.key, cfg)[:1]:
            own = key in said
            values[each.name] = _number(said[key]) if own else value_in(cfg, key)
    return values


def drawn_settings(search: Search, spec: RunSpec) -> tuple[str, ...]:
    """What of a trial's settings the search drew; of trial 0 nothing."""
    cfg = _read(spec.config)
    keys = {k for each in search.space(spec.method) for k in keys_of(each.key, cfg)}
    return tuple(f"{k}={v}" for k, v in settings_of(spec).items() if k in keys)


def _number(text: str) -> float | int | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
