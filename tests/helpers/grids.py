"""Grids as if they had run: folders of runs with all that a run leaves, in no time."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml

from mmaction_mbcd.evaluation.predictions import Predictions
from mmaction_mbcd.experiments.experiment import Experiment, PlannedRun
from mmaction_mbcd.experiments.grid import RunSpec
from mmaction_mbcd.experiments.run_folder import write_json
from tests_support import ROOT

START = dict(
    revision="0123456789ab",
    python="3.11.7",
    versions=dict(mmaction_mbcd="0.1.0", torch="2.9.0", numpy="2.1.0"),
    host="node1",
    processor="Some CPU",
    cores=8,
    gpu="Some GPU",
)


@dataclass
class FakeGrid:
    """What is pretended.

    Attributes:
        out: The grid's folder.
        methods: Accuracy of the last epoch, by method.
        names: Of methods as people write them; upper case of the others.
        domains: Each is a target once, unless ``targets`` names fewer.
        clips: Of each target.
    """

    out: Path
    methods: Mapping[str, float] = field(
        default_factory=lambda: dict(erm=0.5, mbcd=0.7)
    )
    names: Mapping[str, str] = field(default_factory=dict)
    domains: Sequence[str] = ("studio", "street")
    targets: Sequence[str] = ()
    seeds: Sequence[int] = (0, 1)
    modalities: Sequence[str] = ("video", "audio")
    classes: Sequence[str] = ("swing", "bounce", "spin")
    clips: int = 30
    epochs: int = 3
    rules: Sequence[str] = ("source", "last")
    evaluate: Sequence[str] = ("target",)
    student: Sequence[str] = ("mbcd",)
    reference: str | None = None
    dataset: str = "synth_action"
    others: Sequence[str] = ()
    """Further data sets, with the same domains."""

    def plan(self) -> Experiment:
        """The experiment, with no run begun."""
        self.out.mkdir(parents=True, exist_ok=True)
        content = dict(
            datasets=[self.dataset, *self.others],
            methods=list(self.methods),
            seeds=list(self.seeds),
            select=list(self.rules),
            evaluate=list(self.evaluate),
        )
        content |= dict(reference=self.reference) if self.reference else {}
        (self.out / "grid.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        runs = [
            dict(spec=spec.describe(), digest=_digest(spec)) for spec in self.specs()
        ]
        write_json(self.out / "runs.json", dict(runs=runs))
        return Experiment.open(self.out, ROOT)

    def specs(self) -> list[RunSpec]:
        """Of all runs."""
        return [
            RunSpec(
                dataset=dataset,
                method=method,
                config=f"configs/mbcd/{dataset}/{method}.py",
                seed=seed,
                target=(target,),
                settings=("lr=0.01",),
            )
            for dataset in (self.dataset, *self.others)
            for target in self.targets or self.domains
            for method in self.methods
            for seed in self.seeds
        ]

    def finished(self) -> Experiment:
        """The experiment with every run finished."""
        experiment = self.plan()
        for run in experiment.runs:
            self.finish(run)
        return experiment

    # --------------------------------------------------------------------- one run

    def start(self, run: PlannedRun, **changes: object) -> None:
        """Notes what a run is and what it was started on."""
        sha = hashlib.sha256(run.spec.place.encode()).hexdigest()
        run.folder.record(
            dict(
                spec=run.spec.describe(),
                digest=run.digest,
                data={"test": dict(N=self.clips, sha256=sha)},
                config=self.config(run.spec),
            )
        )
        run.folder.note(state="interrupted", attempts=1, starts=[START | changes])

    def config(self, spec: RunSpec) -> dict:
        """Resolved, as far as it matters here."""
        return dict(
            method=dict(name=spec.method),
            model=dict(
                type="Recognizer",
                objectives=[dict(type=f"{spec.method.title()}Loss", weight=1.0)],
            ),
            optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.01)),
            test_dataloader=dict(dataset=dict(target=spec.target[0])),
        )

    def fail(self, run: PlannedRun, error: str, log: str = "") -> None:
        """Ends it in training."""
        self.start(run)
        run.folder.note(state="failed", phase="train", error=error, trained=False)
        (run.folder.path / "train.log").write_text(log or error)

    def finish(self, run: PlannedRun, **changes: object) -> None:
        """All that a finished run leaves, but for checkpoints and logs."""
        self.start(run, **changes)
        curves = self.curves(run)
        self.write_curves(run, curves)
        best = 1 + int(np.argmax([each["source/top1"] for each in curves]))
        for rule in self.rules:
            epoch = best if rule == "source" else self.epochs
            for evaluation in self.evaluate:
                said = self.predictions(run, rule, evaluation)
                said.facts["epoch"] = epoch
                said.save(run.folder.predictions_file(rule, evaluation))
                write_json(
                    run.folder.results_file(rule, evaluation),
                    dict(epoch=epoch, experiment=said.facts["experiment"]),
                )
        seconds = dict(train=600.0 * (1 + 0.5 * (run.spec.method in self.student)))
        run.folder.note(
            state="finished", phase="", trained=True, seconds=seconds | dict(test=30.0)
        )

    def curves(self, run: PlannedRun) -> list[dict]:
        """Validation after each epoch."""
        random, final = _random(run, "curves"), self.methods[run.spec.method]
        rows = []
        for epoch in range(1, self.epochs + 1):
            grown = 0.2 + (final - 0.2) * (1 - np.exp(-3 * epoch / self.epochs))
            row = {"step": epoch, "source/N": 90, "target/N": self.clips}
            for role, above in (("source", 0.1), ("target", 0.0)):
                for i, m in enumerate(("", *self.modalities)):
                    value = grown + above - 0.08 * i + random.normal(0, 0.02)
                    key = "/".join(filter(None, (role, m, "top1")))
                    row[key] = float(np.clip(value, 0, 1))
                    if run.spec.method in self.student:
                        row[f"student/{key}"] = 0.9 * row[key]
            for domain in self.domains:
                if domain not in run.spec.target:
                    row[f"source/{domain}/top1"] = row["source/top1"]
                    row[f"source/{domain}/N"] = 45
            rows.append(row)
        return rows

    def write_curves(self, run: PlannedRun, rows: Sequence[Mapping]) -> None:
        """As a training logs them."""
        path = run.folder.path / "20260101_000000" / "vis_data" / "scalars.json"
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def predictions(self, run: PlannedRun, rule: str, evaluation: str) -> Predictions:
        """Right on as many clips as the method's accuracy says, and some chance."""
        # Some clips are hard, for all methods and seeds.
        target, count = run.spec.target[0], len(self.classes)
        hard = np.random.default_rng(len(target)).random(self.clips)
        labels = np.arange(self.clips) % count
        random = _random(run, rule, evaluation)
        heads = ["", *self.modalities]
        if run.spec.method in self.student:
            heads += ["student", *(f"student/{m}" for m in self.modalities)]
        logits = {}
        for i, head in enumerate(heads):
            skill = self.methods[run.spec.method] - 0.06 * i
            right = hard + random.normal(0, 0.25, self.clips) < skill
            other = (labels + random.integers(1, count, self.clips)) % count
            logits[head] = (
                3 * np.eye(count, dtype=np.float32)[np.where(right, labels, other)]
            )
        sources = [d for d in self.domains if d != target]
        inside = evaluation == "in_domain"
        domains = np.resize(sources, self.clips) if inside else [target] * self.clips
        method = self.names.get(run.spec.method, run.spec.method.upper())
        return Predictions(
            sample_ids=np.array([f"{target}/{i:03}" for i in range(self.clips)]),
            domains=np.array(domains),
            roles=np.array(["source" if inside else "target"] * self.clips),
            labels=labels,
            skipped=np.zeros(self.clips, bool),
            present={m: np.ones(self.clips, bool) for m in self.modalities},
            logits=logits,
            classes=tuple(self.classes),
            facts=dict(
                seed=run.spec.seed,
                experiment=dict(
                    method=method,
                    sources=sources,
                    target=[target],
                    modalities=list(self.modalities),
                ),
            ),
        )


def _digest(spec: RunSpec) -> str:
    return hashlib.sha256(repr(spec).encode()).hexdigest()


def _random(run: PlannedRun, *names: str) -> np.random.Generator:
    text = "".join((run.digest, *names))
    return np.random.default_rng(int(hashlib.sha256(text.encode()).hexdigest(), 16))
