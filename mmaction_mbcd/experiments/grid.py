"""A grid of runs: methods, domains, modalities and seeds, from a file or from flags."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import yaml

from .. import cli
from ..cli.options import read_config
from ..cli.settings_checks import nearest
from ..errors import UsageError

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
            ``{folder: {key: value}}`` with values of :data:`PER_DATASET` for it alone;
            its ``options`` are added to those of all.
        methods: Names of configs there, or paths of config files.
        targets: The unseen domains, one run each; all of the dataset's if empty.
        single_source: Train on one domain and test on each other one (the paper's
            Tables 2, 8 and 9). ``targets`` then names the sources.
        pairs: ``[[source, target], ...]`` to train instead, one run each.
        modalities: Lists of them, one run each; empty for the config's.
        seeds: One run each.
        variants: ``{name: {key: value}}``, overrides of the config, each a row of its
            own. ``''`` stands for none.
        options: ``{key: value}``, overrides of every config, as ``--cfg-options`` reads
            them; ``{model: {a: 1}}`` is ``model.a=1``.
        arguments: Further options that ``tools/train.py`` and ``tools/test.py`` share,
            such as ``[--sampling, repaired]``.
        data_root: The dataset's folder; the config's if None.
        select: Rules by which a checkpoint of each run is chosen, of :data:`RULES`.
        evaluate: On which clips it is tested, of :data:`EVALUATIONS`.
        keep_checkpoints: ``'best'`` keeps what was tested by the first rule, ``'all'``
            everything, ``'none'`` nothing; of finished runs.
        reference: The method that the tables compare the others with.
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

    @classmethod
    def read(cls, path: str, **flags: object) -> Grid:
        """The grid of a YAML file.

        Args:
            path: The file.
            flags: Values that win over the file's, also over those of one dataset;
                None is none. ``datasets`` chooses among the file's, which keep their
                own values; ``options`` are added to the file's.

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
        return cls.of(_with_flags(content, flags), path)

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
        wrong = [
            f"{name} must be {what}, got {getattr(self, name)!r}"
            for name, (fits, what) in _KINDS.items()
            if not fits(getattr(self, name))
        ]
        yield from wrong or self._wrong_values()

    def _wrong_values(self) -> Iterator[str]:
        for name in ("datasets", "methods", "seeds", "select", "evaluate"):
            if not getattr(self, name):
                yield f"{name} names none"
        for name, known in (("select", RULES), ("evaluate", EVALUATIONS)):
            for value in getattr(self, name):
                if value not in known:
                    close = nearest(value, known)
                    yield f"{name}: {value!r} is none of {', '.join(known)}{close}"
        if self.keep_checkpoints not in KEEP:
            yield (
                f"keep_checkpoints must be best, all or none; got "
                f"{self.keep_checkpoints!r}"
            )
        if self.single_source and self.pairs:
            yield "single_source trains every pair already: leave pairs out"
        for pair in self.pairs:
            if len(pair) != 2:
                yield f"pairs: {list(pair)} is not [source, target]"
        for seed in self.seeds:
            if isinstance(seed, bool) or not isinstance(seed, int):
                yield f"seeds: {seed!r} is not a whole number"
            elif not 0 <= seed < 2**32:
                yield f"seeds: {seed} is not from 0 to {2**32 - 1}"
        try:
            _refuse_arguments(self.arguments)
        except UsageError as error:
            yield f"arguments: {error}"

    def blocks(self) -> Iterator[tuple[str, Grid]]:
        """Each dataset with the grid that holds for it."""
        if not isinstance(self.datasets, Mapping):
            yield from ((name, self) for name in self.datasets)
            return
        for name, changes in self.datasets.items():
            own = _known(changes or {}, f"datasets.{name}", PER_DATASET)
            grid = dataclasses.replace(self, datasets=[name], **own)
            if problems := list(grid._problems()):
                raise UsageError(f"grid of datasets.{name}: " + "; ".join(problems))
            every = dict(_flat(self.options)) | dict(_flat(grid.options))
            yield name, dataclasses.replace(grid, options=every)

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
        _refuse_twice(found)
        names = {spec.name for spec in found}
        if self.reference is not None and self.reference not in names:
            raise UsageError(
                f"reference: no run is of {self.reference!r}; there are "
                f"{', '.join(sorted(names))}"
            )
        chosen_first = [s for spec in found for s in self.left_out(spec, configs)]
        return [*dict.fromkeys(chosen_first), *found]

    def _specs_of(self, dataset: str, configs: Path) -> Iterator[RunSpec]:
        places = self._places(dataset, configs)
        variants = self.variants or {"": {}}
        settings = {
            name: _settings(dict(_flat(self.options)) | dict(_flat(values or {})))
            for name, values in variants.items()
        }
        for modalities, (sources, target), method, variant, seed in itertools.product(
            self.modalities or [()], places, self.methods, variants, self.seeds
        ):
            config = config_file(configs, dataset, method)
            yield RunSpec(
                dataset=dataset,
                method=config.stem if method.endswith(".py") else method,
                variant=variant,
                config=str(config),
                sources=sources,
                target=target,
                modalities=tuple(modalities),
                seed=seed,
                settings=settings[variant],
                arguments=tuple(map(str, self.arguments)),
                data_root=self.data_root,
            )

    def _places(
        self, dataset: str, configs: Path
    ) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
        """``(sources, target)`` of each run."""
        config = config_file(configs, dataset, self.methods[0])
        domains = _domains(str(config), self.data_root)
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
        domains = _domains(spec.config, spec.data_root)
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


@functools.lru_cache(maxsize=256)
def _domains(config: str, data_root: str | None) -> tuple[str, ...]:
    """Asked for every run, again and again while a grid runs."""
    cfg = read_config(config)
    if data_root is not None:
        cli.set_datasets(cfg, data_root=data_root)
    return cli.described_domains(cfg)


def config_file(configs: Path, dataset: str, method: str) -> Path:
    """The config of a method on a dataset, as an absolute path.

    Raises:
        UsageError: If there is none, naming the nearest.
    """
    named = method.endswith(".py")
    path = Path(method if named else configs / dataset / f"{method}.py").absolute()
    if path.is_file():
        return path
    if not named and not (configs / dataset).is_dir():
        known = sorted(p.name for p in configs.iterdir() if p.is_dir())
        known = [name for name in known if not name.startswith("_")]
        raise UsageError(
            f"no configs of dataset {dataset!r} in {configs}; there are "
            f"{', '.join(known)}"
        )
    known = sorted(p.stem for p in path.parent.glob("*.py"))
    raise UsageError(f"no config {path}{nearest(path.stem, known)}")


def _refuse_twice(specs: Sequence[RunSpec]) -> None:
    """Tables would mix two runs of the same name, whatever else they differ in."""
    named = Counter(
        f"{s.dataset} {' '.join((s.name, *s.modalities, s.place))}, seed {s.seed}"
        for s in specs
    )
    if twice := [name for name, count in named.items() if count > 1]:
        raise UsageError(
            f"the grid names a run twice: {twice[0]}. Two config files of one name "
            "need different names"
        )


# ------------------------------------------------------------------ of a file or flags

KEEP = ("best", "all", "none")
"""What stays of a finished run's checkpoints."""

PER_DATASET = (
    "methods", "targets", "single_source", "pairs", "modalities", "seeds", "variants",
    "options", "arguments", "data_root",
)  # fmt: skip
"""Keys that a dataset of a grid can have values of its own for."""


def _is_list(value: object, kind: type = object) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(x, kind) for x in value)


def _is_lists(value: object) -> bool:
    return _is_list(value) and all(_is_list(each, str) for each in value)


def _is_mappings(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(key, str) and isinstance(each or {}, Mapping)
        for key, each in value.items()
    )


_NAMES = (lambda value: _is_list(value, str), "a list of names")
_NAME = (lambda value: isinstance(value, (str, type(None))), "a name")
_LISTS = (_is_lists, "a list of lists of names, such as [[a, b], [a, c]]")
_KINDS: dict[str, tuple[Callable[[object], bool], str]] = {
    "datasets": (
        lambda value: _is_list(value, str) or _is_mappings(value),
        "a list of names, or names with keys and values below each",
    ),
    "methods": _NAMES,
    "targets": _NAMES,
    "single_source": (lambda value: isinstance(value, bool), "true or false"),
    "pairs": _LISTS,
    "modalities": _LISTS,
    "seeds": (_is_list, "a list of whole numbers"),
    "variants": (_is_mappings, "names with keys and values below each"),
    "options": (lambda value: isinstance(value, Mapping), "keys and values"),
    "arguments": (_is_list, "a list of words"),
    "data_root": _NAME,
    "select": _NAMES,
    "evaluate": _NAMES,
    "keep_checkpoints": _NAME,
    "reference": _NAME,
}


def _known(content: Mapping, where: str, known: Sequence[str] = ()) -> dict:
    every = [f.name for f in dataclasses.fields(Grid)]
    for key in content:
        if key not in (known or every):
            rest = f" for one dataset; it can have {', '.join(known)}" if known else ""
            close = rest if key in every else nearest(str(key), known or every)
            raise UsageError(f"grid of {where}: unknown key {key!r}{close}")
    return {key: value for key, value in content.items() if value is not None}


def _with_flags(content: Mapping, flags: Mapping) -> dict:
    """A file's content, and what was said on the command line, which wins."""
    flags = {key: value for key, value in flags.items() if value is not None}
    content, datasets = dict(content), content.get("datasets")
    if _is_mappings(datasets):
        wanted = flags.pop("datasets", None) or datasets
        content["datasets"] = {
            name: _without(datasets.get(name) or {}, flags) for name in wanted
        }
    options = content.get("options")
    if "options" in flags and isinstance(options, Mapping):
        flags["options"] = dict(_flat(options)) | dict(_flat(flags["options"]))
    return content | flags


def _without(own: Mapping, flags: Mapping) -> dict:
    """A dataset's values without those that a flag wins over."""
    rest = {k: v for k, v in own.items() if k not in flags or k == "options"}
    if isinstance(own.get("options"), Mapping):
        said = dict(_flat(flags.get("options", {})))
        flat = _flat(own["options"])
        rest["options"] = {k: v for k, v in flat if k not in said}
    return rest


# ---------------------------------------------------------------- of the tools' options


class OptionParser(argparse.ArgumentParser):
    """Knows the options that change a config, of both tools; raises what is wrong."""

    def __init__(self) -> None:
        super().__init__(add_help=False)
        cli.add_data_options(self)

    def error(self, message: str) -> NoReturn:
        """Raises a :class:`.UsageError`."""
        raise UsageError(message)


def _refuse_arguments(arguments: Sequence[object]) -> None:
    """Raises if they are not for both tools, or say what a key of the grid says."""
    keys = dict(
        cfg_options="options", modalities="modalities", target="targets",
        sources="pairs or single_source", data_root="data_root",
    )  # fmt: skip
    said = vars(OptionParser().parse_args([str(each) for each in arguments]))
    for name, key in keys.items():
        if said[name] is not None:
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"{flag} is what the grid's key {key} is for")


def _flat(values: Mapping, above: str = "") -> Iterator[tuple[str, object]]:
    """``{'model': {'a': 1}}`` as ``('model.a', 1)``."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _settings(values: Mapping[str, object]) -> tuple[str, ...]:
    """``key=value`` of each as ``--cfg-options`` reads it.

    Raises:
        UsageError: For what cannot be said so.
    """
    settings = tuple(f"{key}={_setting(value)}" for key, value in values.items())
    for setting, (key, value) in zip(settings, values.items(), strict=True):
        if "=" in key or not _arrives(setting, value):
            raise UsageError(
                f"options: {key}: {value!r} cannot be said on a command line (numbers, "
                "true, false, null, words without spaces and commas, and lists of them "
                "can): write it into a config file, whose path can be a method"
            )
    return settings


def _setting(value: object) -> str:
    if isinstance(value, (list, tuple)):
        ends = "[]" if isinstance(value, list) else "()"
        return ends[0] + ",".join(map(_setting, value)) + ends[1]
    return str(value)


_parser = functools.cache(OptionParser)


def _arrives(setting: str, value: object) -> bool:
    try:
        said = _parser().parse_args(["--cfg-options", setting])
    except AssertionError:  # brackets that do not match
        return False
    return _same(*said.cfg_options.values(), value)


def _same(read: object, value: object) -> bool:
    """Whether a value arrives: a list as a list, a word as a word or what it spells."""
    if isinstance(value, (list, tuple)):
        same_kind = type(read) is type(value) and len(read) == len(value)
        return same_kind and all(map(_same, read, value))
    if isinstance(value, str) and not isinstance(read, str):
        # YAML takes 1e-3 and None for words; [a,b] in quotes is as on a command line.
        return not isinstance(read, (list, tuple)) or value[:1] in ("[", "(")
    return type(read) is type(value) and read == value
