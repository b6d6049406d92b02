"""A grid that runs in a process of its own, for tests that stop or kill it."""

import os
import signal
from pathlib import Path

from mmaction_mbcd.errors import one_line_errors
from mmaction_mbcd.experiments.experiment import Experiment
from mmaction_mbcd.experiments.grid import Grid
from mmaction_mbcd.experiments.job import Share, spawned
from mmaction_mbcd.experiments.local import run_here

TRAIN = """
import os, pathlib, sys, time
folder = pathlib.Path(sys.argv[sys.argv.index("--work-dir") + 1])
(folder / "pid").write_text(str(os.getpid()))
for epoch in range(1, 4):
    if (folder / f"epoch_{epoch}.pth").exists():
        continue
    if epoch == 2 and (folder.parents[2] / "slow").exists():
        (folder / "waits").touch()
        time.sleep(120)
    (folder / f"epoch_{epoch}.pth").write_text(str(epoch))
    print("epoch", epoch, flush=True)
"""
TEST = """
import json, pathlib, sys
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
predictions = pathlib.Path(sys.argv[sys.argv.index("--predictions") + 1])
epoch = int(pathlib.Path(sys.argv[2]).read_text())
predictions.write_text(str(epoch))
out.write_text(json.dumps(dict(epoch=epoch, metrics={"target/top1": epoch / 10})))
"""


def quick_tools(repo):
    """A repository whose tools import nothing; the second epoch waits for a file."""
    for name, text in (("train", TRAIN), ("test", TEST)):
        path = Path(repo) / "tools" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def experiment_of(keys, out, repo, configs):
    """Planned runs that are not resolved."""
    grid = Grid.of(keys)
    made = Experiment(grid, Path(out), Path(repo))
    specs = grid.specs(Path(configs))
    made.runs = [made._planned(spec, f"{i:08}") for i, spec in enumerate(specs)]
    return made


def run_grid(keys, out, repo, configs, jobs, error):
    """Works on it as ``tools/experiment.py run`` does; its process group is its own."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(os.open(error, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    made = experiment_of(keys, out, repo, configs)
    runs = [run for run in made.runs if not made.job(run).is_done()]
    with one_line_errors(lambda: "`run` goes on"):
        run_here(made, runs, [Share()] * jobs, lambda *_: None, spawned)
