"""Misspelt settings: one error with the nearest known name, before all else."""

import copy

import pytest
from mmaction.registry import HOOKS
from mmengine.config import Config
from mmengine.hooks import Hook
from torch import nn

import toy_runner  # noqa: F401  registers a dataset and hooks, as a user's module does
from mmaction_mbcd import cli
from mmaction_mbcd.cli.accepted_arguments import accepted_arguments
from mmaction_mbcd.engine import ResumableCheckpointHook, TeacherEMAHook
from tests_support import ROOT, load_tool
from toy_runner import run_toy

CONFIGS = ROOT / "configs" / "mbcd"
MBCD = CONFIGS / "synth_action" / "mbcd.py"


train = load_tool("train")
shipped = Config.fromfile(MBCD)


def checked(options="", path=None, **changes):
    """A config with options as they come from the command line."""
    given = ["--cfg-options", *options.split()] if options else []
    args = train.parse_args([str(path), *given])
    cfg = copy.deepcopy(shipped) if path is None else Config.fromfile(path)
    cfg.merge_from_dict({k.replace("__", "."): v for k, v in changes.items()})
    cli.check_settings(cfg, args.cfg_options)
    return cfg


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("trian_cfg.max_epochs=1", "'trian_cfg'; did you mean 'train_cfg'?"),
        ("max_epochs=1", "did you mean train_cfg.max_epochs?"),
        ("train_cfg.max_epoch=1", "takes no 'max_epoch'; did you mean 'max_epochs'?"),
        (
            "default_hooks.checkpoint.intervall=2",
            "default_hooks.checkpoint.intervall: ResumableCheckpointHook takes no "
            "'intervall'; did you mean 'interval'?",
        ),
        ("optim_wrapper.optimizer.type=Adm", "'Adm'; did you mean 'Adam'?"),
        ("optim_wrapper.optimizer.lrr=1", "Adam takes no 'lrr'; did you mean 'lr'?"),
        ("optim_wrapper.ordr=2", "did you mean 'order'?"),
        ("optim_wrapper.type=OptimWrapper", "OptimWrapper takes no 'inner_lr'"),
        ("model.nekc.mode=fixed", "model.nekc: MultiModalRecognizer takes no 'nekc'"),
        ("model.neck.mod=fixed", "AMDFusion takes no 'mod'; did you mean 'mode'?"),
        ("model.encoders.vidio.dropout=0.1", "did you mean 'video'?"),
        ("model.encoders.video.frozen_stage=1", "did you mean 'frozen_stages'?"),
        ("model.objectives.1.wieght=2", "did you mean 'weight'?"),
        ("train_dataloader.batchsize=2", "did you mean 'batch_size'?"),
        ("train_dataloader.sampler.shufle=True", "did you mean 'shuffle'?"),
        ("train_dataloader.dataset.targets=a", "did you mean 'target'?"),
        ("train_dataloader.dataset.pipelines.video.1.clip_length=4", "'clip_len'?"),
        ("custom_hooks.0.bta=0.9", "TeacherEMAHook takes no 'bta'; did you mean"),
        ("custom_hooks.0.momentum_=0.9", "did you mean 'momentum'?"),
        ("custom_hooks.3.beta=0.9", "--cfg-options custom_hooks.3.beta"),
        ("custom_hooks.beta=0.9", "--cfg-options custom_hooks.beta"),
        ("param_scheduler.0.tmax=3", "takes no 'tmax'; did you mean 'T_max'?"),
        ("val_evaluator.topks=1", "DomainAccuracy takes no 'topks'"),
        ("randomness.sed=3", "randomness takes no 'sed'; did you mean 'seed'?"),
        ("env_cfg.cudnn_bench=True", "did you mean 'cudnn_benchmark'?"),
        ("visualizer.vis_backends.0.typ=a", "did you mean 'type'?"),
        # A variable of the file: set too late, it would change nothing.
        ("num_classes=3", "did you mean model.num_classes?"),
        ("data_root=there", "did you mean train_dataloader.dataset.data_root, val_"),
    ],
)
def test_a_misspelt_option(options, message):
    with pytest.raises(cli.UsageError) as error:
        checked(options, param_scheduler=[dict(type="CosineAnnealingLR", T_max=3)])
    said = str(error.value)
    assert message in said and "\n" not in said
    assert options.partition("=")[0].split(".")[0] in said


def test_all_of_them_are_named_at_once():
    with pytest.raises(cli.UsageError, match="'ordr'.*'bta'|'bta'.*'ordr'"):
        checked("custom_hooks.0.bta=1 optim_wrapper.ordr=1")


@pytest.mark.parametrize(
    "options",
    [
        "model.neck.mode=fixed optim_wrapper.order=2",
        "default_hooks.kill.type=EmptyCacheHook default_hooks.kill.after_iter=True",
        "custom_hooks.0.begin_iter=4 custom_hooks.0.interval=2",
        "custom_hooks.0.ema_type=MomentumAnnealingEMA custom_hooks.0.gamma=5",
        "custom_hooks.0.priority=LOW",
        "optim_wrapper.clip_grad.max_norm=1 "
        "optim_wrapper.paramwise_cfg.norm_decay_mult=0",
        "model.encoders.video.pretrained=None model.encoders.video.dsu=0.5",
        "train_dataloader.persistent_workers=False train_dataloader.num_workers=0",
        "train_dataloader.dataset.on_error=skip",
        "train_cfg.val_begin=2 work_dir=there sync_bn=torch",
        "find_unused_parameters=True experiment_name=a auto_scale_lr.enable=True",
        "optim_wrapper.optimizer.type=SGD optim_wrapper.optimizer.momentum=0.9",
        "method.name=mine env_cfg.dist_cfg.timeout=60",
    ],
)
def test_settings_that_are_read(options):
    cfg = checked(options)
    for option in options.split():
        key, _, value = option.partition("=")
        node = cfg
        for part in key.split("."):
            node = node[int(part)] if isinstance(node, list) else node[part]
        assert str(node) == value


@HOOKS.register_module()
class OwnHook(Hook):
    """Takes more than its parents, and hands some of it to a part of its own."""

    def __init__(self, size, **kwargs):
        super().__init__()
        self.part = dict(kwargs, size=size)


def test_own_components(tmp_path):
    own = tmp_path / "own.py"
    own.write_text(
        f"_base_ = {str(MBCD)!r}\n"
        "helper, trains = dict(any=1), 3\n"
        "custom_hooks = [dict(type='OwnHook', size=1, anything=2)]\n"
    )
    checked(path=own)
    checked("default_hooks.own.type=OwnHook", path=own)
    own.write_text(own.read_text() + "custom_hook = []\n")
    with pytest.raises(cli.UsageError, match="^custom_hook: nothing reads it"):
        cli.check_settings(Config.fromfile(own))
    with pytest.raises(cli.UsageError, match="nothing reads 'helper'"):
        checked("helper.any=2", path=own)


def test_a_wrong_key_of_a_config_file(tmp_path):
    own = tmp_path / "own.py"
    own.write_text(f"_base_ = {str(MBCD)!r}\nmodel = dict(neck=dict(mod='fixed'))\n")
    with pytest.raises(cli.UsageError, match="^model.neck.mod: AMDFusion takes no"):
        cli.check_settings(Config.fromfile(own))
    own.write_text("a = \n")
    with pytest.raises(cli.UsageError, match=f"config {own} cannot be read: Syntax"):
        cli.load_config(train.parse_args([str(own)]))


class Parent:
    def __init__(self, a, b=1):
        pass


class HandsOn(Parent):
    def __init__(self, c, **kwargs):
        kwargs["written"] = kwargs.pop("popped", 1)
        super().__init__(**kwargs)


class Keeps(Parent):
    def __init__(self, c, **kwargs):
        super().__init__(c)
        self.kwargs = kwargs


class BuildsAPart(Parent):
    def __init__(self, c, **kwargs):
        super().__init__(c)
        self.part = nn.Linear(**kwargs)


@pytest.mark.parametrize(
    ("kind", "names", "closed"),
    [
        (Parent, {"self", "a", "b"}, True),
        (HandsOn, {"self", "a", "b", "c", "popped", "written"}, True),
        (Keeps, {"self", "a", "b", "c"}, False),
        (BuildsAPart, {"self", "a", "b", "c"}, False),
        (type("Plain", (BuildsAPart,), {}), {"self", "a", "b", "c"}, False),
        (lambda batch, size=1: None, {"batch", "size"}, True),
    ],
)
def test_arguments_are_followed_to_the_parents(kind, names, closed):
    assert accepted_arguments(kind, {}) == (names, closed)


def test_arguments_of_real_hooks():
    found = accepted_arguments(ResumableCheckpointHook, {})
    assert {"interval", "save_best", "backend_args", "rule"} <= found.names
    found, closed = accepted_arguments(TeacherEMAHook, {})
    assert {"beta", "begin_epoch", "momentum", "interval"} <= found and closed
    assert "gamma" not in found
    warm = dict(ema_type="MomentumAnnealingEMA")
    assert "gamma" in accepted_arguments(TeacherEMAHook, warm).names


@pytest.mark.parametrize("value", [0, -1])
def test_no_epochs_between_validations(tmp_path, value):
    with pytest.raises(ValueError, match=f"val_interval={value} is not a number"):
        run_toy(tmp_path, train_cfg__val_interval=value)
