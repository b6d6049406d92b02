"""A grid in a folder: found again, resolved, and worked on by the tool's verbs."""

import functools
import json

import pytest
import yaml

from helpers.fake_tools import FakeTools
from media import write_split
from mmaction_mbcd.errors import UsageError
from mmaction_mbcd.experiments import job as job_module
from mmaction_mbcd.experiments import local
from mmaction_mbcd.experiments.experiment import Experiment
from mmaction_mbcd.experiments.grid import Grid
from mmaction_mbcd.experiments.job import Share
from mmaction_mbcd.experiments.single import work
from tests_support import ROOT, load_tool

tool = load_tool("experiment")


@pytest.fixture(scope="module")
def hac(tmp_path_factory):
    """The annotations of HAC."""
    root = tmp_path_factory.mktemp("hac")
    for domain in ("human", "animal", "cartoon"):
        for split in ("train", "test"):
            write_split(root, domain, split, [(f"{split}.mp4", 1)])
    return root


@pytest.fixture
def keys(hac):
    return dict(
        datasets=["hac"], methods=["erm"], targets=["human"], data_root=str(hac)
    )


def resolved(out, **keys):
    made = Experiment(Grid.of(keys), out, ROOT)
    made.resolve()
    return made


def test_it_is_found_again_with_the_same_runs(tmp_path, keys):
    keys |= dict(
        seeds=[3, 1],
        variants={"": {}, "ö/slow": {"optim_wrapper.optimizer.betas": (0.8, 0.99)}},
        options={"train_cfg": {"max_epochs": 2}, "randomness.deterministic": None},
        select=("last",), modalities=[("video", "audio")],
    )  # fmt: skip
    made = resolved(tmp_path / "out", **keys)
    made.write()
    found = Experiment.open(tmp_path / "out", ROOT)
    assert [(r.spec, r.digest, r.folder) for r in found.runs] == [
        (r.spec, r.digest, r.folder) for r in made.runs
    ]
    assert len({run.digest for run in made.runs}) == 4
    # The grid that was written makes the same runs.
    found.resolve()
    assert [r.folder for r in found.runs] == [r.folder for r in made.runs]
    names = [run.folder.path.name for run in made.runs]
    assert names[0] == f"erm_video-audio_to-human_seed3_{made.runs[0].digest[:8]}"
    assert names[2].startswith("erm+ö-slow_video-audio_to-human_seed3_")
    assert {run.folder.path.parent for run in made.runs} == {
        tmp_path / "out" / "runs" / "hac"
    }


def test_the_processes_of_a_run_are_found_again(tmp_path, keys):
    """A job in a queue reads them: its run's identity is of that many."""
    made = Experiment(Grid.of(keys), tmp_path, ROOT, gpus_per_job=2)
    made.resolve()
    made.write()
    found = Experiment.open(tmp_path, ROOT)
    assert found.processes == 2
    found.check(found.runs[0])
    with pytest.raises(UsageError, match="of 2 processes .* this job has 1 .GPUs."):
        work(found, found.runs[0], Share(), launch=None)
    assert resolved(tmp_path, **keys).runs[0].digest != made.runs[0].digest


def test_gpus_per_job_are_as_before_unless_said(tmp_path, keys):
    made = Experiment(Grid.of(keys), tmp_path, ROOT, gpus_per_job=2)
    made.resolve()
    made.write()
    none = ["--gpus-per-job", "0"]
    for given, expected in (
        ([], 2),
        (["--gpus-per-job", "1"], 1),
        (none, 0),
        ([], 0),  # which is said once
    ):
        args = tool.parse_args(["run", "--out", str(tmp_path), *given])
        tool._as_before(args)
        found = tool.load(args)
        assert found.gpus_per_job == expected
        assert found.processes == max(1, expected)
        found.write()


def test_a_changed_config_is_another_folder_and_the_old_one_a_stranger(tmp_path, keys):
    first = resolved(tmp_path, **keys)
    first.runs[0].folder.path.mkdir(parents=True)
    second = resolved(tmp_path, **keys, options={"optim_wrapper.optimizer.lr": 0.5})
    assert first.runs[0].folder != second.runs[0].folder
    assert list(second.strangers()) == [first.runs[0].folder.path]
    assert list(first.strangers()) == []


def test_rules_that_are_added_find_the_same_folder(tmp_path, keys):
    one = resolved(tmp_path, **keys)
    more = resolved(tmp_path, **keys, select=["source", "oracle"])
    assert one.runs[0].folder == more.runs[0].folder
    left_out = resolved(tmp_path, **keys, select=["leave_one_source_out"])
    assert len(left_out.runs) == 3 and left_out.runs[-1].folder == one.runs[0].folder
    # A pair of the same domains is the same training, and a folder of its own.
    keys.pop("targets")
    pair = resolved(tmp_path, **keys, pairs=[["animal", "cartoon"]])
    same = [r for r in left_out.runs if r.spec.place == "animal-to-cartoon"]
    assert [r.digest for r in same] == [r.digest for r in pair.runs]
    assert same[0].folder != pair.runs[0].folder


def test_every_run_that_cannot_be_resolved_is_named(tmp_path, keys):
    keys |= dict(
        seeds=[0, 1], options={"train_cfg.max_epoch": 2}, data_root=str(tmp_path)
    )
    with pytest.raises(UsageError) as error:
        resolved(tmp_path / "out", **keys)
    said = str(error.value)
    assert said.startswith("hac erm to-human and 1 more: ")
    assert "max_epoch" in said and "did you mean 'max_epochs'?" in said
    keys.pop("options")
    with pytest.raises(UsageError, match="hac erm to-human and 1 more: .*HAC_"):
        resolved(tmp_path / "out", **keys)
    assert list(tmp_path.iterdir()) == []


def test_what_is_recorded_of_a_run(tmp_path, keys):
    made = resolved(tmp_path, **keys)
    (run,) = made.runs
    made.job(run).run(FakeTools())
    known = run.folder.known
    assert known["digest"] == run.digest and known["spec"]["seed"] == 0
    assert {use: d["N"] for use, d in known["data"].items()} == dict(
        train=2, val=2, test=2
    )
    assert known["config"]["train_cfg"]["max_epochs"] == run.config.train_cfg.max_epochs
    assert "work_dir" not in known["config"]


# --- the verbs


@pytest.fixture
def verb(tmp_path, keys, monkeypatch, capsys):
    """Calls the tool with fake tools below it; ``(exit code, output)``."""
    monkeypatch.setattr(job_module, "_LOOK", 0.01)
    monkeypatch.setattr(job_module, "_SAME_SIGNAL", 0.01)
    tools = FakeTools()
    runs = functools.partial(local.run_here, launch=tools)
    monkeypatch.setattr(tool.local, "run_here", runs)
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(keys | dict(seeds=[0, 1])))

    def call(name, *options, grid=True):
        path = [str(tmp_path / "grid.yaml")] if grid else []
        out = ["--out", str(tmp_path / "out")]
        code = tool.main([name, *path, *out, *map(str, options)])
        return code, capsys.readouterr().out

    call.tools = tools
    return call


def test_run_and_run_again(verb):
    code, text = verb("run", "--jobs", 1)
    assert code == 0 and text.splitlines()[0] == "2 runs: 2 waiting"
    assert text.splitlines()[-1] == "2 runs: 2 finished"
    assert verb.tools.tools == ["train", "test", "test"] * 2
    code, text = verb("run", grid=False)  # what the folder's grid says
    assert code == 0 and len(verb.tools.lines) == 6
    # A flag adds a seed, and the others stay as they are.
    code, text = verb("run", "--seeds", 0, 1, 2)
    assert code == 0 and len(verb.tools.lines) == 9
    assert text.splitlines()[0].startswith("3 runs: 2 finished, 1 waiting")


def test_what_failed_is_repeated_when_asked_for(verb):
    verb.tools.fails = {"seed1": ("train.py: error: [/no] luck\n", 2)}
    code, text = verb("run", "--jobs", 1)
    assert code == 1 and "2 runs: 1 finished, 1 failed" in text
    assert "train: train.py: error: [/no] luck (exit code 2; " in text
    assert text.splitlines()[-1] == "`resume` repeats what failed."
    started = len(verb.tools.lines)
    code, text = verb("run", "--jobs", 1)
    assert code == 1 and len(verb.tools.lines) == started
    verb.tools.fails = {}
    code, text = verb("resume", "--jobs", 1)
    assert code == 0 and text.splitlines()[-1] == "2 runs: 2 finished"


def test_flags_alone(verb, hac, tmp_path):
    code, _ = verb(
        "run", "--datasets", "hac", "--methods", "erm", "ema", "--targets", "animal",
        "--data-root", hac, "--modalities", "video", "audio", "--modalities", "video",
        "--select", "last", "--evaluate", "target", "in_domain", "--reference", "ema",
        "--keep-checkpoints", "none",
        "--cfg-options", "train_cfg.max_epochs=2",
        "optim_wrapper.optimizer.betas=[0.8,0.9]", "--jobs", 2,
        grid=False,
    )  # fmt: skip
    assert code == 0
    written = yaml.safe_load((tmp_path / "out" / "grid.yaml").read_text())
    assert written["modalities"] == [["video", "audio"], ["video"]]
    assert written["options"] == {
        "train_cfg.max_epochs": 2,
        "optim_wrapper.optimizer.betas": [0.8, 0.9],
    }
    listed = json.loads((tmp_path / "out" / "runs.json").read_text())["runs"]
    assert len(listed) == 4
    setting = listed[0]["spec"]["settings"][1]
    assert setting == "optim_wrapper.optimizer.betas=[0.8,0.9]"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--gpus-per-job", "2", "--gpus", "0"],
            "2 GPUs per job were asked for",
        ),
        (["--jobs", "0"], "jobs are 1 or more, got 0"),
        (["--targets", "moon"], "hac has no domain moon"),
        (["--cfg-options", "train_cfg.max_epoch=1"], "did you mean 'max_epochs'?"),
    ],
)
def test_what_cannot_be(verb, capsys, tmp_path, options, message):
    with pytest.raises(SystemExit) as end:
        verb("run", *options)
    assert end.value.code == 2 and not (tmp_path / "out").exists()
    (line,) = [x for x in capsys.readouterr().err.splitlines() if "error: " in x]
    assert message in line
