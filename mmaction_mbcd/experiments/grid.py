"""A grid of runs: methods, domains, modalities and seeds, from a file or from flags."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from ..cli import domains_of
from ..cli.settings_checks import nearest
from ..errors import UsageError
from .search_space import Search, read_trial_name, with_chosen

RULES = ("source", "last", "oracle", "leave_one_source_out")
"""How a run's checkpoint is chosen: best on the sources' validation clips, the last
one, best on the target itself, or of the epoch that is best where each source in turn
was left out of training."""

LEAKING = ("oracle",)
"""Rules that look at the target's labels; whatever rests on them is marked."""

EVALUATIONS = ("target", "in_domain")
"""On which clips: the target's, or the held-out ones of the sources (Tables 3, 10)."""


@dataclass(frozen=True)
class RunSpec:
    """One training, and what its tools are told.

    Attributes:
        dataset: Folder of configs, such as ``'hac'``.
        method: Name of the config in it.
        variant: Name of a set of overrides, or ``''``.
        config: The config file.
        sources: Empty for all but the target.
        target: Empty for all but the sources.
        modalities: Empty for the config's.
        seed: Of the training.
        settings: ``key=value`` as ``--cfg-options`` takes them.
        arguments: Further options of both tools.
        data_root: The dataset's folder; the config's if None.
        purpose: ``'grid'``, or ``'leave_one_source_out'`` for a run that only chooses
            an epoch.
    """

    dataset: str
    method: str
    config: str
    seed: int
    variant: str = ""
    sources: tuple[str, ...] = ()
    target: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    data_root: str | None = None
    purpose: str = "grid"

    @property
    def name(self) -> str:
        """Of the method, with its variant."""
        return f"{self.method}+{self.variant}" if self.variant else self.method

    @property
    def alike(self) -> RunSpec:
        """The run; of a trial what all trials share: they build and take the same."""
        if read_trial_name(self.variant) is None:
            return self
        return dataclasses.replace(self, variant="", settings=())

    @property
    def place(self) -> str:
        """``'to-human'``, ``'human-to-animal'`` or ``'human-to-all'``."""
        target = "-".join(self.target) or "all"
        return "-".join(self.sources) + ("-" if self.sources else "") + f"to-{target}"

    def options(self) -> list[str]:
        """Of ``tools/train.py`` and ``tools/test.py`` alike."""
        options = []
        for flag, values in (
            ("--data-root", [self.data_root] if self.data_root else []),
            ("--modalities", self.modalities),
            ("--sources", self.sources),
            ("--target", self.target),
            ("--cfg-options", self.settings),
        ):
            options += [flag, *values] if values else []
        return [*options, *self.arguments]

    def describe(self) -> dict:
        """As JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def read(cls, described: Mapping) -> RunSpec:
        """What :meth:`describe` returned, also after a way through JSON."""
        return cls(
            **{k: tuple(v) if isinstance(v, list) else v for k, v in described.items()}
        )


@dataclass
class Grid:
    """What is to be run; every combination of it.

    Attributes:
        datasets: Folders of configs below ``configs/mbcd``, such as ``hac``, or
            ``{folder: {key: value}}`` with values of the keys below for it alone.
        methods: Names of configs there, or paths of config files.
        targets: The unseen domains, one run each; all of the dataset's if empty.
        single_source: Train on one domain and test on each other one (the paper's
            Tables 2, 8 and 9). ``targets`` then names the sources.
        pairs: ``[[source, target], ...]`` to train instead, one run each.
        modalities: Lists of them, one run each; empty for the config's.
        seeds: One run each.
        variants: ``{name: {key: value}}``, overrides of the config, each a row of its
            own. ``''`` stands for none.
        options: ``{key: value}``, overrides of every config.
        arguments: Further options of ``tools/train.py`` and ``tools/test.py``.
        data_root: The dataset's folder; the config's if None.
        select: Rules by which a checkpoint of each run is chosen, of :data:`RULES`.
        evaluate: On which clips it is tested, of :data:`EVALUATIONS`.
        keep_checkpoints: ``'best'`` keeps what was tested by the first rule, ``'all'``
            everything, ``'none'`` nothing; of finished runs.
        reference: The method that the tables compare the others with.
        search: A search of hyper-parameters in place of the seeds, see
            :class:`.search_space.Search`.
        chosen: What a search chose, as ``tools/experiment.py search`` writes it.
    """

    datasets: Sequence[str] | Mapping[str, Mapping] = ()
    methods: Sequence[str] = ()
    targets: Sequence[str] = ()
    single_source: bool = False
    pairs: Sequence[Sequence[str]] = ()
    modalities: Sequence[Sequence[str]] = ()
    seeds: Sequence[int] = (0,)
    variants: Mapping[str, Mapping] = field(default_factory=dict)
    options: Mapping[str, object] = field(default_factory=dict)
    arguments: Sequence[str] = ()
    data_root: str | None = None
    select: Sequence[str] = ("source", "last")
    evaluate: Sequence[str] = ("target",)
    keep_checkpoints: str = "best"
    reference: str | None = None
    search: Mapping | None = None
    chosen: Sequence[Mapping] = ()

    @classmethod
    def read(cls, path: str, **flags: object) -> Grid:
        """The grid of a YAML file.

        Args:
            path: The file.
            flags: Values that win over the file's; None is none.

        Raises:
            UsageError: If it is no such file, or a key or a value in it is wrong.
        """
        try:
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise UsageError(f"grid file not found: {path}") from error
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            said = " ".join(str(error).split())
            raise UsageError(f"grid {path} cannot be read: {said}") from error
        if not isinstance(content, dict):
            raise UsageError(
                f"grid {path} holds {type(content).__name__}, not keys and values such "
                "as `methods: [erm, mbcd]`"
            )
        return cls.of(content | {k: v for k, v in flags.items() if v is not None}, path)

    @classmethod
    def of(cls, content: Mapping, where: str = "the command line") -> Grid:
        """The grid of keys and values, checked.

        Raises:
            UsageError: Naming everything that is wrong.
        """
        grid = cls(**_known(content, where))
        if problems := list(grid._problems()):
            raise UsageError(f"grid of {where}: " + "; ".join(problems))
        return grid

    def _problems(self) -> Iterator[str]:
        for name in ("datasets", "methods", "seeds", "select", "evaluate"):
            value = getattr(self, name)
            if isinstance(value, str) or not isinstance(value, (Sequence, Mapping)):
                yield f"{name} must be a list, got {value!r}"
            elif not value:
                yield f"{name} names none"
        for name, known in (("select", RULES), ("evaluate", EVALUATIONS)):
            for value in getattr(self, name):
                if value not in known:
                    yield f"{name}: {value!r} is none of {', '.join(known)}"
        if self.keep_checkpoints not in ("best", "all", "none"):
            yield (
                f"keep_checkpoints must be best, all or none; got "
                f"{self.keep_checkpoints!r}"
            )
        if self.single_source and self.pairs:
            yield "single_source trains every pair already: leave pairs out"
        for pair in self.pairs:
            if isinstance(pair, str) or len(pair) != 2:
                yield f"pairs: {pair!r} is not [source, target]"
        for each in self.modalities:
            if isinstance(each, str):
                yield f"modalities: {each!r} must be a list, such as [{each}, audio]"
        for seed in self.seeds:
            if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
                yield f"seeds: {seed!r} is not a whole number from 0"
        if isinstance(self.datasets, Mapping):
            for name, changes in self.datasets.items():
                if not isinstance(changes or {}, Mapping):
                    yield f"datasets.{name} must hold keys and values"

    def blocks(self) -> Iterator[tuple[str, Grid]]:
        """Each dataset with the grid that holds for it."""
        if not isinstance(self.datasets, Mapping):
            yield from ((name, self) for name in self.datasets)
            return
        for name, changes in self.datasets.items():
            own = _known(changes or {}, f"datasets.{name}")
            yield name, dataclasses.replace(self, datasets=[name], **own)

    def specs(self, configs: Path) -> list[RunSpec]:
        """Every run, in the order dataset, modalities, target, method, seed.

        Runs that only choose an epoch (``leave_one_source_out``) stand before those
        that wait for them.

        Args:
            configs: Where the datasets' folders lie.

        Raises:
            UsageError: For configs, domains or variants that do not exist.
        """
        found = [
            spec
            for dataset, grid in self.blocks()
            for spec in grid._specs_of(dataset, configs)
        ]
        if not found:
            raise UsageError("the grid has no run")
        if twice := {s.describe().__repr__() for s in found if found.count(s) > 1}:
            raise UsageError(f"the grid names a run twice: {sorted(twice)[0]}")
        if self.search is not None:
            found = self._searched().trials(found)
        if self.chosen:
            found = with_chosen(found, self.chosen)
        chosen_first = [s for spec in found for s in self.left_out(spec, configs)]
        return [*dict.fromkeys(chosen_first), *found]

    def _searched(self) -> Search:
        search = Search.of(self.search)
        for _, grid in self.blocks():
            search.refuse(grid)
        return search

    def _specs_of(self, dataset: str, configs: Path) -> Iterator[RunSpec]:
        places = self._places(dataset, configs)
        variants = self.variants or {"": {}}
        for modalities, (sources, target), method, (
            variant,
            values,
        ), seed in itertools.product(
            self.modalities or [()],
            places,
            self.methods,
            variants.items(),
            self.seeds,
        ):
            config = config_file(configs, dataset, method)
            settings = dict(self.options) | dict(values or {})
            yield RunSpec(
                dataset=dataset,
                method=config.stem,
                variant=variant,
                config=str(config),
                sources=sources,
                target=target,
                modalities=tuple(modalities),
                seed=seed,
                settings=tuple(f"{k}={_setting(v)}" for k, v in settings.items()),
                arguments=tuple(map(str, self.arguments)),
                data_root=self.data_root,
            )

    def _places(
        self, dataset: str, configs: Path
    ) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
        """``(sources, target)`` of each run."""
        domains = domains_of(
            str(config_file(configs, dataset, self.methods[0])), self.data_root
        )
        named = [*self.targets, *(name for pair in self.pairs for name in pair)]
        if unknown := [name for name in named if name not in domains]:
            raise UsageError(
                f"{dataset} has no domain {', '.join(map(str, unknown))}; it has "
                f"{', '.join(domains)}"
            )
        if len(domains) < 2:
            raise UsageError(
                f"{dataset} has one domain ({domains[0]}): none is left to test on"
            )
        if self.pairs:
            return [((source,), (target,)) for source, target in self.pairs]
        chosen = self.targets or domains
        if self.single_source:
            return [((name,), ()) for name in chosen]
        return [((), (name,)) for name in chosen]

    def left_out(self, spec: RunSpec, configs: Path) -> list[RunSpec]:
        """The runs that choose the epoch of another one by leaving out its sources.

        Each trains on the run's sources but one and watches that one; with one source
        there is nothing to leave out.
        """
        if "leave_one_source_out" not in self.select:
            return []
        domains = domains_of(spec.config, spec.data_root)
        sources = spec.sources or tuple(d for d in domains if d not in spec.target)
        if len(sources) < 2:
            return []
        return [
            dataclasses.replace(
                spec,
                sources=tuple(s for s in sources if s != one),
                target=(one,),
                purpose="leave_one_source_out",
            )
            for one in sources
        ]


def config_file(configs: Path, dataset: str, method: str) -> Path:
    """The config of a method on a dataset.

    Raises:
        UsageError: If there is none, naming the nearest.
    """
    if method.endswith(".py"):
        path = Path(method)
    else:
        path = configs / dataset / f"{method}.py"
    if path.is_file():
        return path
    if not path.parent.is_dir():
        known = sorted(p.name for p in configs.iterdir() if p.is_dir())
        known = [name for name in known if not name.startswith("_")]
        raise UsageError(
            f"no configs of dataset {dataset!r} in {configs}; there are "
            f"{', '.join(known)}"
        )
    known = sorted(p.stem for p in path.parent.glob("*.py"))
    raise UsageError(f"no config {path}{nearest(path.stem, known)}")


def _known(content: Mapping, where: str) -> dict:
    fields = [f.name for f in dataclasses.fields(Grid)]
    for key in content:
        if key not in fields:
            raise UsageError(
                f"grid of {where}: unknown key {key!r}{nearest(str(key), fields)}"
            )
    return {key: value for key, value in content.items() if value is not None}


def _setting(value: object) -> str:
    """A value as ``--cfg-options`` reads it."""
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(_setting, value)) + "]"
    return str(value)
