"""A grid in a folder: its runs, found again whatever happened to them."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from mmengine.config import Config

from ..cli.data import quiet
from ..errors import UsageError
from .grid import Grid, RunSpec
from .identity import Identity, environment, identity, resolve
from .job import Job, Share, checked_settings
from .run_folder import RunFolder, read_json, replace_text, write_json

GRID_FILE, RUNS_FILE = "grid.yaml", "runs.json"


@dataclass
class PlannedRun:
    """A run of the grid and where it lies.

    Attributes:
        spec: What is run.
        digest: Of its identity.
        folder: Its folder.
        config: Resolved; None where the run was read from the folder's list.
    """

    spec: RunSpec
    digest: str
    folder: RunFolder
    config: Config | None = None


@dataclass
class Experiment:
    """The runs of a grid, in one folder.

    ``grid.yaml`` keeps the grid, ``runs.json`` the list of its runs, ``runs/`` their
    folders. A folder's name holds the digest of the run's identity: a changed config is
    another run, in another folder, and what lies in old ones stays.

    Attributes:
        grid: What is to be run.
        out: The folder.
        repo: The repository's root.
        gpus_per_job: Each with a process that trains together with the others; 0 for
            none, on the CPU.
    """

    grid: Grid
    out: Path
    repo: Path
    runs: list[PlannedRun] = field(default_factory=list)
    gpus_per_job: int = 1

    @property
    def processes(self) -> int:
        """Those that train together in each run."""
        return max(1, self.gpus_per_job)

    @classmethod
    def open(cls, out: Path, repo: Path) -> Experiment:
        """The experiment that was planned or run in a folder.

        Raises:
            UsageError: If there is none.
        """
        listed = read_json(out / RUNS_FILE)
        if listed is None or not (out / GRID_FILE).is_file():
            raise UsageError(
                f"{out} holds no experiment ({GRID_FILE} and {RUNS_FILE}): plan or run "
                "a grid there first"
            )
        made = cls(Grid.read(str(out / GRID_FILE)), out, repo)
        made.gpus_per_job = gpus_per_job(listed)
        made.runs = [
            made._planned(RunSpec.read(each["spec"]), each["digest"])
            for each in listed.get("runs", ())
        ]
        return made

    def _planned(
        self, spec: RunSpec, digest: str, config: Config | None = None
    ) -> PlannedRun:
        modalities = "-".join(spec.modalities)
        name = "_".join(filter(None, (spec.name, modalities, spec.place)))
        name += f"_seed{spec.seed}_{digest[:8]}"
        if spec.purpose != "grid":
            name = f"{spec.purpose}_{name}"
        path = self.out / "runs" / _file_name(spec.dataset) / _file_name(name)
        return PlannedRun(spec, digest, RunFolder(path), config)

    def resolve(self, advance: Callable[[], object] = lambda: None) -> None:
        """Resolves every run's config and data; nothing is written.

        Args:
            advance: Called behind each run.

        Raises:
            UsageError: Naming every run that cannot be resolved, and why.
        """
        self.runs, problems = [], {}
        for spec in self.grid.specs(self.repo / "configs" / "mbcd"):
            try:
                config, known = self._identity(spec)
            except (UsageError, ValueError, OSError) as error:
                said = " ".join(str(error).split())
                problems.setdefault(said, []).append(spec)
            else:
                self.runs.append(self._planned(spec, known.digest, config))
            advance()
        if problems:
            raise UsageError(
                "; ".join(
                    f"{_named(specs)}: {said}" for said, specs in problems.items()
                )
            )

    def _identity(self, spec: RunSpec) -> tuple[Config, Identity]:
        settings = checked_settings(spec, self.grid.select)
        config = _resolved(dataclasses.replace(spec, seed=0), tuple(settings))
        return config, identity(config, spec.seed, self.processes)

    def write(self) -> None:
        """Writes the grid and the list of its runs.

        What was known of a grid that was here before is replaced; the folders of its
        runs stay.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        content = {k: v for k, v in dataclasses.asdict(self.grid).items() if v}
        text = yaml.safe_dump(_plain(content), sort_keys=False)
        replace_text(self.out / GRID_FILE, text)
        runs = [dict(spec=r.spec.describe(), digest=r.digest) for r in self.runs]
        known = dict(gpus_per_job=self.gpus_per_job, runs=runs)
        write_json(self.out / RUNS_FILE, known)

    def check(self, run: PlannedRun) -> None:
        """Refuses a run whose config or data changed while it waited in a queue.

        Raises:
            UsageError: If so; the results would be filed under another run.
        """
        _, now = self._identity(run.spec)
        if now.digest != run.digest:
            raise UsageError(
                f"{run.folder.path.name} was planned with another config, package or "
                f"data: its identity is {now.digest[:8]} now. Call `run --out "
                f"{self.out}` again"
            )

    def describe(self, run: PlannedRun) -> None:
        """Notes in a run's folder what it is."""
        known = dict(spec=run.spec.describe(), digest=run.digest)
        if run.config is not None:
            found = identity(run.config, run.spec.seed)
            known |= dict(data=found.data, config=found.config)
        run.folder.record(known)

    def record(self, run: PlannedRun, share: Share | None = None) -> None:
        """Notes in a run's folder what it is, and on what it is started."""
        self.describe(run)
        starts, here = run.folder.noted.get("starts", []), environment(self.repo)
        if share is not None and share.devices == ():  # it sees none of them
            here["gpu"] = None
        run.folder.note(starts=[*starts, here])

    def job(self, run: PlannedRun, share: Share | None = None) -> Job:
        """What does a run."""
        return Job(
            run.folder,
            self.repo,
            select=self.grid.select,
            evaluate=self.grid.evaluate,
            keep_checkpoints=self.grid.keep_checkpoints,
            left_out=[each.folder for each in self.left_out(run)],
            share=share or Share(),
            record=functools.partial(self.record, run, share),
        )

    def left_out(self, run: PlannedRun) -> list[PlannedRun]:
        """The runs that choose a run's epoch."""
        if run.spec.purpose != "grid":
            return []
        wanted = self.grid.left_out(run.spec, self.repo / "configs" / "mbcd")
        return [each for each in self.runs if each.spec in wanted]

    def only(self, methods: Sequence[str] | None) -> Experiment:
        """The experiment with some of its methods' runs; with all if None.

        Args:
            methods: As the tables' files call them, with or without their variant.

        Raises:
            UsageError: For one that the grid has not.
        """
        if methods is None:
            return self
        known = {name: None for r in self.runs for name in (r.spec.method, r.spec.name)}
        if unknown := [name for name in methods if name not in known]:
            raise UsageError(
                f"the grid has no method {', '.join(unknown)}; it has "
                f"{', '.join(known)}"
            )
        runs = [r for r in self.runs if {r.spec.method, r.spec.name} & set(methods)]
        return dataclasses.replace(self, runs=runs)

    def strangers(self) -> Iterator[Path]:
        """Folders of runs that are not of this grid: of an earlier config, perhaps."""
        own = {run.folder.path for run in self.runs}
        for path in sorted((self.out / "runs").glob("*/*")):
            if path.is_dir() and path not in own:
                yield path


def gpus_per_job(listed: Mapping) -> int:
    """Of the runs that a folder lists; older lists know of processes alone."""
    return listed.get("gpus_per_job", listed.get("processes", 1))


@functools.lru_cache(maxsize=512)
def _resolved(spec: RunSpec, settings: tuple[str, ...]) -> Config:
    with quiet():
        return resolve(spec, settings)


def _file_name(name: str) -> str:
    """Without what a folder's name cannot hold; the digest keeps them apart."""
    return re.sub(r"[^\w.+-]", "-", name)


def _named(specs: list[RunSpec]) -> str:
    """The runs, or the first and how many."""
    first = f"{specs[0].dataset} {specs[0].name} {specs[0].place}"
    return first if len(specs) == 1 else f"{first} and {len(specs) - 1} more"


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value
