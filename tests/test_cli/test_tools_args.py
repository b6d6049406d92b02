import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config

from helpers.forked import run_script
from mmaction_mbcd import cli
from mmaction_mbcd import cores as cores_module
from tests_support import load_tool

ROOT = Path(__file__).parents[2]

train, test = load_tool("train"), load_tool("test")

CONFIG = """
model = dict(
    type='MultiModalRecognizer',
    encoders=dict(video=dict(), flow=dict(), audio=dict()))
dataset = dict(type='SynthActionDataset', use='train')
train_dataloader = dict(
    batch_size=2, dataset=dict(type='RepeatDataset', times=2, dataset=dataset))
val_dataloader = dict(
    dataset=dict(type='ConcatDataset', datasets=[
        dict(type='SynthActionDataset', use='val'),
        dict(type='SynthActionDataset', use='val')]))
test_dataloader = dict(dataset=dict(type='SynthActionDataset', use='test'))
val_cfg = dict(type='ValLoop')
val_evaluator = test_evaluator = dict(type='AccMetric')
optim_wrapper = dict(type='MBCDOptimWrapper', inner_lr=1e-4)
custom_hooks = [dict(type='EmptyCacheHook'), dict(type='TeacherEMAHook', beta=0.9)]
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A config file as the package's are, and no LOCAL_RANK left behind."""
    monkeypatch.setenv("LOCAL_RANK", "0")
    path = tmp_path / "mbcd.py"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(cli.run, "get_device", lambda: "cuda")


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(cli.run, "get_device", lambda: "cpu")


def train_config(path, *options):
    return train.build_config(train.parse_args([str(path), *options]))


def merged_test_config(path, *options):
    checkpoint = path.parent / "best.pth"
    checkpoint.touch()
    return test.build_config(test.parse_args([str(path), str(checkpoint), *options]))


# --- training ---


def test_without_options_the_config_stays(config):
    cfg = train_config(config)
    stock = Config.fromfile(config)
    added = {
        "launcher": "none",
        "work_dir": "work_dirs/mbcd",
        "randomness": {"seed": None},
    }
    assert cfg.to_dict() == {**stock.to_dict(), **added}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], "work_dirs/mbcd"),
        (["--seed", "0"], "work_dirs/mbcd_seed0"),
        (
            ["--seed", "3", "--modalities", "video", "audio"],
            "work_dirs/mbcd_video-audio_seed3",
        ),
        (["--seed", "3", "--work-dir", "here"], "here"),
        (["--seed", "3", "--cfg-options", "work_dir=there"], "there"),
        (["--work-dir", "here", "--cfg-options", "work_dir=there"], "here"),
    ],
)
def test_work_dir(config, options, expected):
    assert train_config(config, *options).work_dir == expected


def test_work_dirs_of_two_datasets_differ(repo):
    config = repo / "configs" / "mbcd" / "hac" / "mbcd.py"
    assert train_config(config, "--seed", "1").work_dir == "work_dirs/hac/mbcd_seed1"
    for folder in ("hac/published", "epic_kitchens/published"):
        config = str(repo / "configs" / "mbcd" / folder / "mbcd.py")
        assert train_config(config).work_dir == f"work_dirs/{folder}/mbcd"


@pytest.mark.parametrize(
    ("stated", "options", "expected"),
    [
        ("", [], dict(seed=None)),
        ("", ["--seed", "0"], dict(seed=0)),
        ("randomness = dict(seed=7)", [], dict(seed=7)),
        ("randomness = dict(seed=7)", ["--seed", "0"], dict(seed=0)),
        (
            "randomness = dict(seed=7, deterministic=True)",
            ["--seed", "3", "--diff-rank-seed"],
            dict(seed=3, deterministic=True, diff_rank_seed=True),
        ),
        (
            "randomness = dict(seed=7)",
            ["--deterministic"],
            dict(seed=7, deterministic=True),
        ),
        ("", ["--cfg-options", "randomness.seed=5"], dict(seed=5)),
    ],
)
def test_seed_on_the_command_line_wins(config, stated, options, expected):
    config.write_text(CONFIG + stated)
    assert dict(train_config(config, *options).randomness) == expected


def test_resume(config, tmp_path):
    assert "resume" not in train_config(config)
    cfg = train_config(config, "--resume")
    assert (cfg.resume, cfg.load_from) == (True, None)
    checkpoint = tmp_path / "epoch_2.pth"
    checkpoint.touch()
    cfg = train_config(config, "--resume", str(checkpoint))
    assert (cfg.resume, cfg.load_from) == (True, str(checkpoint))
    with pytest.raises(cli.UsageError, match="checkpoint file not found: .*gone.pth"):
        train_config(config, "--resume", str(tmp_path / "gone.pth"))


def test_no_validate(config):
    cfg = train_config(config, "--no-validate")
    assert cfg.val_cfg is cfg.val_dataloader is cfg.val_evaluator is None
    assert cfg.test_dataloader is not None


def test_auto_scale_lr(config):
    with pytest.raises(cli.UsageError, match="auto_scale_lr = dict.base_batch_size="):
        train_config(config, "--auto-scale-lr")
    config.write_text(CONFIG + "auto_scale_lr = dict(enable=False, base_batch_size=8)")
    assert train_config(config, "--auto-scale-lr").auto_scale_lr.enable is True


@pytest.mark.parametrize(
    ("stock", "amp"),
    [
        ("OptimWrapper", "AmpOptimWrapper"),
        ("AmpOptimWrapper", "AmpOptimWrapper"),
        ("MBCDOptimWrapper", "AmpMBCDOptimWrapper"),
        ("AmpMBCDOptimWrapper", "AmpMBCDOptimWrapper"),
        ("mmaction.MBCDOptimWrapper", "mmaction.AmpMBCDOptimWrapper"),
    ],
)
def test_amp_exchanges_the_wrapper(config, gpu, stock, amp):
    config.write_text(CONFIG.replace("inner_lr=1e-4", "accumulative_counts=2"))
    cfg = train_config(config, "--amp", "--cfg-options", f"optim_wrapper.type={stock}")
    assert cfg.optim_wrapper.to_dict() == {
        "type": amp,
        "accumulative_counts": 2,
        "dtype": "float16",
        "loss_scale": "dynamic",
    }


def test_amp_without_a_type_means_optim_wrapper(gpu):
    cfg = Config(dict(optim_wrapper=dict(optimizer=dict(type="SGD"))))
    cli.enable_amp(cfg)
    assert cfg.optim_wrapper.type == "AmpOptimWrapper"


def test_amp_takes_classes_too(gpu):
    from mmengine.optim import OptimWrapper

    cfg = Config(dict(optim_wrapper=dict(type=OptimWrapper)))
    cli.enable_amp(cfg)
    assert cfg.optim_wrapper.type == "AmpOptimWrapper"


def test_bfloat16_needs_no_loss_scale(config, gpu):
    wrapper = train_config(config, "--amp", "bfloat16").optim_wrapper
    assert (wrapper.dtype, wrapper.loss_scale) == ("bfloat16", dict(enabled=False))


def test_amp_keeps_the_configs_loss_scale(config, gpu):
    config.write_text(CONFIG + "optim_wrapper.update(loss_scale=512.)")
    assert train_config(config, "--amp").optim_wrapper.loss_scale == 512.0


def test_amp_refuses_other_wrappers(gpu):
    cfg = Config(dict(optim_wrapper=dict(type="ApexOptimWrapper")))
    with pytest.raises(
        cli.UsageError, match="'ApexOptimWrapper'.*OptimWrapper, MBCDOptimWrapper"
    ):
        cli.enable_amp(cfg)


def test_amp_needs_a_gpu(config, no_gpu):
    with pytest.raises(cli.UsageError, match="--amp needs a GPU.*'cpu'"):
        train_config(config, "--amp")


def test_amp_dtype_is_checked(config, capsys):
    with pytest.raises(SystemExit):
        train.parse_args([str(config), "--amp", "float8"])
    assert "invalid choice: 'float8'" in capsys.readouterr().err


def test_modalities_reach_model_and_every_dataset(config):
    cfg = train_config(config, "--modalities", "audio", "video")
    expected = ["audio", "video"]
    assert cfg.model.modalities == expected
    assert cfg.train_dataloader.dataset.dataset.modalities == expected
    assert "modalities" not in cfg.train_dataloader.dataset
    inner = cfg.val_dataloader.dataset.datasets
    assert [dataset.modalities for dataset in inner] == [expected, expected]
    assert cfg.test_dataloader.dataset.modalities == expected


def test_modalities_without_validation_data():
    cfg = Config(dict(model=dict(), val_dataloader=None))
    cli.set_modalities(cfg, ("a", "b"))
    assert cfg.model.modalities == ["a", "b"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["video", "smell"], "no smell; it has video, flow, audio"),
        (["video", "video"], "names one twice: video video"),
    ],
)
def test_wrong_modalities_are_refused(config, given, message):
    with pytest.raises(cli.UsageError, match=message):
        train_config(config, "--modalities", *given)


@pytest.mark.parametrize(
    ("cores", "processes", "options", "expected"),
    [
        (4, 1, [], {"train": 4, "val": 2, "test": 0}),
        (64, 1, [], {"train": 16, "val": 2, "test": 0}),
        (16, 8, [], {"train": 2, "val": 2, "test": 0}),
        (1, 1, [], {"train": 1, "val": 1, "test": 0}),
        # Who names a number gets it.
        (4, 1, ["train_dataloader.num_workers=9"], {"train": 9, "val": 2, "test": 0}),
    ],
)
def test_workers_fit_the_cores(
    config, monkeypatch, cores, processes, options, expected
):
    monkeypatch.setattr(cores_module, "usable_cores", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    lines = [
        f"{split}_dataloader['num_workers'] = {count}\n"
        for split, count in (("train", 16), ("val", 2))
    ]
    config.write_text(CONFIG + "".join(lines))
    found = train_config(config, *(["--cfg-options", *options] if options else []))
    workers = {s: found[f"{s}_dataloader"].get("num_workers", 0) for s in cli.SPLITS}
    assert workers == expected


@pytest.mark.parametrize(
    ("device", "options", "expected"),
    [
        ("cpu", [], [None, None, None]),
        ("cuda", [], [True, True, True]),
        ("cuda", ["val_dataloader.pin_memory=False"], [True, False, True]),
    ],
)
def test_a_gpu_fetches_from_page_locked_memory(
    config, monkeypatch, device, options, expected
):
    monkeypatch.setattr(cli.data, "get_device", lambda: device)
    found = train_config(config, *(["--cfg-options", *options] if options else []))
    assert [found[f"{s}_dataloader"].get("pin_memory") for s in cli.SPLITS] == expected


def test_cpu_launch_starts_gloo_and_wraps_without_devices(config, no_gpu, monkeypatch):
    started = []
    monkeypatch.setattr(
        cli.run.compat, "start_cpu_process_group", lambda: started.append(1)
    )
    cfg = train_config(config, "--launcher", "pytorch")
    assert started == [1]
    assert cfg.launcher == "pytorch"
    assert cfg.model_wrapper_cfg.to_dict() == {
        "type": "MMDistributedDataParallel",
        "device_ids": None,
        "broadcast_buffers": False,
        "find_unused_parameters": False,
    }
    config.write_text(CONFIG + "find_unused_parameters = True")
    cfg = train_config(config, "--launcher", "pytorch")
    assert cfg.model_wrapper_cfg.find_unused_parameters is True
    config.write_text(CONFIG + "model_wrapper_cfg = dict(type='DataParallel')")
    cfg = train_config(config, "--launcher", "pytorch")
    assert cfg.model_wrapper_cfg.to_dict() == {"type": "DataParallel"}


def test_launch_with_a_gpu_is_mmengines(config, gpu, monkeypatch):
    monkeypatch.setattr(cli.run.compat, "start_cpu_process_group", None)
    assert "model_wrapper_cfg" not in train_config(config, "--launcher", "pytorch")


def test_slurm_without_a_gpu_is_refused(config, no_gpu):
    with pytest.raises(cli.UsageError, match="slurm needs a GPU.*torchrun"):
        train_config(config, "--launcher", "slurm")


def test_local_rank_is_set_for_old_launchers(config, monkeypatch):
    monkeypatch.delenv("LOCAL_RANK")
    train_config(config, "--local-rank", "2")
    assert os.environ["LOCAL_RANK"] == "2"


# --- testing ---


def test_test_without_options(config):
    cfg = merged_test_config(config)
    stock = Config.fromfile(config)
    added = {
        "launcher": "none",
        "work_dir": "work_dirs/mbcd",
        "load_from": str(config.parent / "best.pth"),
        "resume": False,
        "allow_partial": False,
    }
    assert cfg.to_dict() == {**stock.to_dict(), **added}
    assert cli.chosen_weights(cfg) == "teacher"


@pytest.mark.parametrize("weights", ["teacher", "student"])
def test_weights(config, weights):
    cfg = merged_test_config(config, "--weights", weights)
    assert cfg.custom_hooks[1].evaluate == cli.chosen_weights(cfg) == weights
    assert "evaluate" not in cfg.custom_hooks[0]


@pytest.mark.parametrize("hooks", [None, [], [dict(type="EMAHook")]])
def test_weights_need_a_teacher(hooks):
    cfg = Config(dict(custom_hooks=hooks))
    assert cli.chosen_weights(cfg) is None
    with pytest.raises(cli.UsageError, match="no TeacherEMAHook in custom_hooks"):
        cli.choose_weights(cfg, "student")


def test_in_domain(config):
    cfg = merged_test_config(config, "--in-domain")
    assert cfg.test_dataloader.dataset.use == "in_domain"
    assert cfg.val_dataloader.dataset.datasets[0].use == "val"
    with pytest.raises(cli.UsageError, match="no test_dataloader"):
        cli.evaluate_in_domain(Config(dict(test_dataloader=None)))


def test_dump_adds_an_evaluator(config):
    cfg = merged_test_config(config, "--dump", "all.pkl")
    dump = {"type": "DumpResults", "out_file_path": "all.pkl"}
    assert [e.to_dict() for e in cfg.test_evaluator] == [{"type": "AccMetric"}, dump]
    cfg.test_evaluator = [dict(type="A"), dict(type="B")]
    cli.dump_predictions(cfg, "all.pickle")
    assert [e["type"] for e in cfg.test_evaluator] == ["A", "B", "DumpResults"]
    with pytest.raises(cli.UsageError, match="all.json must end with .pkl"):
        cli.dump_predictions(cfg, "all.json")


def test_remote_checkpoint_is_not_looked_for(config):
    url = "https://example.org/best.pth"
    cfg = test.build_config(test.parse_args([str(config), url]))
    assert cfg.load_from == url


def test_results_are_plain_json(tmp_path):
    path = tmp_path / "new" / "results.json"
    metrics = {
        "target/top1": np.float32(0.5),
        "target/N": np.int64(120),
        "student/target/N": 120,
        "target/confusion": np.eye(2),
        "target/audio/top1": float("nan"),
        "seen": (True, None, "x", {1: Path("y")}),
    }
    cli.write_results(path, metrics, seed=3, checkpoint="best.pth")
    assert json.loads(path.read_text()) == {
        "seed": 3,
        "checkpoint": "best.pth",
        "N": {"target": 120, "student/target": 120},
        "metrics": {
            "target/top1": 0.5,
            "target/N": 120,
            "student/target/N": 120,
            "target/confusion": [[1.0, 0.0], [0.0, 1.0]],
            "target/audio/top1": None,
            "seen": [True, None, "x", {"1": "y"}],
        },
    }


def test_results_table(capsys):
    cli.print_results({"target/top1": 0.123456, "target/N": 120}, title="a run")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["│", "target/top1", "│", "0.1235", "│"] in lines
    assert ["│", "target/N", "│", "120", "│"] in lines


# --- the tools as they are called ---

TOY = """
import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS


@MODELS.register_module()
class ToyModel(BaseModel):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(2, 2)

    def forward(self, x, y, mode):
        logits = self.linear(x)
        if mode == 'loss':
            return dict(loss=torch.nn.functional.cross_entropy(logits, y))
        return [dict(right=right) for right in logits.argmax(1) == y]


@DATASETS.register_module()
class ToyDataset:
    def __init__(self, use='test'):
        self.n = dict(train=8, test=6, in_domain=4)[use]

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return torch.tensor([i % 2, -(i % 2)]) * 1.0, i % 2


@METRICS.register_module()
class ToyMetric(BaseMetric):
    default_prefix = 'target'

    def process(self, data_batch, data_samples):
        self.results += [bool(sample['right']) for sample in data_samples]

    def compute_metrics(self, results):
        return dict(top1=sum(results) / len(results), N=len(results))
"""

TOY_CONFIG = """
custom_imports = dict(imports=['toy'])
default_scope = 'mmengine'
model = dict(type='ToyModel')
train_dataloader = dict(
    batch_size=2, dataset=dict(type='ToyDataset', use='train'),
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=True))
val_dataloader = test_dataloader = dict(
    batch_size=2, dataset=dict(type='ToyDataset'),
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False))
val_evaluator = test_evaluator = dict(type='ToyMetric')
train_cfg = dict(by_epoch=True, max_epochs=2, val_interval=1)
val_cfg = test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='SGD', lr=1.0))
default_hooks = dict(checkpoint=dict(
    type='CheckpointHook', save_best='target/top1', rule='greater'))
randomness = dict(seed=7)
"""


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A folder with a toy package, its config, and a way to run the tools there."""
    folder = tmp_path_factory.mktemp("toy")
    (folder / "toy.py").write_text(TOY)
    (folder / "toy_config.py").write_text(TOY_CONFIG)
    path = os.pathsep.join([str(folder), str(ROOT)])
    scripts = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])

    def run(tool, *args, **env):
        env = {"PYTHONPATH": path, "PATH": scripts, "CUDA_VISIBLE_DEVICES": "", **env}
        if tool.endswith(".py"):
            return run_script(ROOT / "tools" / tool, *args, cwd=folder, env=env)
        return subprocess.run(
            [str(ROOT / "tools" / tool), *map(str, args)],
            env={**os.environ, **env},
            cwd=folder,
            capture_output=True,
            text=True,
        )

    run.folder = folder
    return run


@pytest.fixture(scope="module")
def trained(toy):
    """The best checkpoint of a toy run."""
    result = toy("train.py", "toy_config.py", "--seed", 3)
    assert result.returncode == 0, result.stderr
    (line,) = [x for x in result.stdout.splitlines() if x.startswith("Best checkpoint")]
    return Path(line.partition(": ")[2])


def test_training_says_where_the_best_checkpoint_lies(toy, trained):
    assert trained.is_file()
    assert (
        trained.parent.resolve()
        == (toy.folder / "work_dirs" / "toy_config_seed3").resolve()
    )


@pytest.mark.parametrize(("option", "count"), [([], 6), (["--in-domain"], 4)])
def test_testing_writes_what_it_measured(toy, trained, option, count):
    result = toy("test.py", "toy_config.py", trained, "--out", "out/r.json", *option)
    assert result.returncode == 0, result.stderr
    assert "target/top1" in result.stdout
    written = json.loads((toy.folder / "out" / "r.json").read_text())
    assert 0 <= written["metrics"].pop("target/top1") <= 1
    assert 1 <= written.pop("epoch") <= 2 and written.pop("iter") > 0
    loaded = written.pop("weights_loaded")
    assert loaded.pop("matched") > 0 and set(loaded.values()) == {0}
    assert written == {
        "config": "toy_config.py",
        "checkpoint": str(trained),
        "weights": None,
        "in_domain": bool(option),
        "allow_partial": False,
        "experiment": None,  # MMEngine's own hook says nothing
        "seed": 3,
        "N": {"target": count},
        "metrics": {"target/N": count},
    }


def test_a_checkpoint_that_does_not_fit_is_refused(toy, trained):
    """Also where a config has MMEngine's own checkpoint hook."""
    import torch

    content = torch.load(trained)
    content["state_dict"] = {f"x.{k}": v for k, v in content["state_dict"].items()}
    torch.save(content, toy.folder / "other.pth")
    result = toy("test.py", "toy_config.py", toy.folder / "other.pth")
    assert result.returncode == 2 and "target/top1" not in result.stdout
    assert "no weight fits" in result.stderr.splitlines()[-1]


def test_without_validation_the_last_checkpoint_is_named(toy):
    result = toy(
        *("train.py", "toy_config.py", "--no-validate", "--work-dir", "a b"),
        *("--cfg-options", "train_cfg.max_epochs=1"),
    )
    assert result.returncode == 0, result.stderr
    last = toy.folder / "a b" / "epoch_1.pth"
    assert f"Last checkpoint: {last.resolve()}" in result.stdout


def test_runner_type_builds_that_runner(toy):
    (toy.folder / "typed.py").write_text(
        "_base_ = 'toy_config.py'\nrunner_type = 'NoSuchRunner'"
    )
    result = toy("train.py", "typed.py")
    assert result.returncode == 2
    assert "NoSuchRunner is not in" in result.stderr


def test_usage_error_is_one_line(toy):
    result = toy("test.py", "toy_config.py", "gone.pth")
    assert result.returncode == 2
    assert result.stdout == ""
    (line,) = [x for x in result.stderr.splitlines() if "error" in x.lower()]
    assert line == "test.py: error: checkpoint file not found: gone.pth"
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["gone.py"], "config file not found: gone.py"),
        (["{config}", "--amp"], "--amp needs a GPU, and this machine trains on 'cpu'"),
        (["{config}", "--launcher", "mpi"], "--launcher mpi needs a GPU"),
    ],
)
def test_usage_errors_end_with_code_2(config, no_gpu, capsys, options, message):
    with pytest.raises(SystemExit) as end:
        train.main([option.format(config=config) for option in options])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f": error: {message}" in line


@pytest.mark.parametrize("script", ["dist_train.sh", "dist_test.sh", "slurm_train.sh"])
def test_launchers_say_how_to_call_them(toy, script):
    result = toy(script)
    assert result.returncode == 2
    assert result.stderr.startswith("usage: ")


def test_slurm_launcher_quotes_its_arguments(toy):
    srun = toy.folder / "bin" / "srun"
    srun.parent.mkdir()
    srun.write_text('#!/bin/sh\nfor each; do echo "[$each]"; done\n')
    srun.chmod(0o755)
    result = toy(
        *("slurm_train.sh", "short", "my job", "c.py", "--work-dir", "a b"),
        PATH=f"{srun.parent}{os.pathsep}{os.environ['PATH']}",
        SRUN_ARGS="--mem=8G --exclusive",
        GPUS="4",
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert {"[--job-name=my job]", "[--mem=8G]", "[--exclusive]", "[--ntasks=4]"} <= {
        *lines
    }
    assert lines[-5:] == ["[c.py]", "[--launcher]", "[slurm]", "[--work-dir]", "[a b]"]
