"""Every config resolves, builds and takes a training and an evaluation step."""

import ast
import itertools
import shutil
from pathlib import Path

import pytest
import torch
from mmaction.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from toy_runner import QuickRunner

ROOT = Path(__file__).parent.parent / "configs" / "mbcd"
LEAVES = sorted(
    p.relative_to(ROOT).as_posix()
    for p in ROOT.rglob("*.py")
    if "_base_" not in p.parts
)


@pytest.fixture(scope="session")
def tiny_hac(tiny_data, tmp_path_factory):
    """The same clips under HAC's names."""
    folder = tmp_path_factory.mktemp("hac")
    (folder / "HAC_Splits").mkdir()
    names = dict(studio="human", street="animal", sketch="cartoon")
    for synth, hac in names.items():
        shutil.copytree(tiny_data / synth, folder / hac)
        for split in ("train", "test"):
            shutil.copy(
                tiny_data / "Synth_Splits" / f"Synth_{split}_only_{synth}.csv",
                folder / "HAC_Splits" / f"HAC_{split}_only_{hac}.csv",
            )
    return folder


def load(leaf, data):
    cfg = Config.fromfile(ROOT / leaf)
    batch_size = 2 if leaf.startswith("hac") else 4
    for split in ("train", "val", "test"):
        loader = cfg[f"{split}_dataloader"]
        loader.dataset.data_root = str(data)
        loader.update(batch_size=batch_size, num_workers=0, persistent_workers=False)
        if leaf.startswith("hac"):  # 64 pixels instead of 224 and 256
            for pipeline in loader.dataset.pipelines.values():
                for step in pipeline:
                    if step.type == "Resize":
                        step.scale = tuple(64 if s > 0 else s for s in step.scale)
                    elif step.type == "CenterCrop":
                        step.crop_size = 64
    if leaf.startswith("hac"):
        for encoder in cfg.model.encoders.values():
            encoder.pretrained = None
    return cfg


@pytest.mark.parametrize("leaf", LEAVES)
def test_a_training_and_an_evaluation_step(leaf, tiny_data, tiny_hac, tmp_path):
    cfg = load(leaf, tiny_hac if leaf.startswith("hac") else tiny_data)
    cfg.work_dir = str(tmp_path)
    cfg.experiment_name = leaf
    cfg.log_level = "ERROR"
    cfg.visualizer = None
    runner = QuickRunner.from_cfg(cfg)
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner.call_hook("before_run")
    runner._init_model_weights()
    runner.train_loop._check_parts()
    before = {n: p.detach().clone() for n, p in runner.model.named_parameters()}
    runner.model.train()
    # Whatever adaptive dropout draws, some step reaches every parameter.
    for batch in itertools.islice(runner.train_dataloader, 3):
        logs = runner.model.train_step(batch, runner.optim_wrapper)
        assert all(torch.isfinite(torch.as_tensor(v)).all() for v in logs.values())
    for name, p in runner.model.named_parameters():
        assert p.requires_grad == (not torch.equal(p, before[name])), name
    metrics = runner.test_loop.evaluator
    batch = next(iter(runner.test_dataloader))
    runner.model.eval()
    samples = runner.model.test_step(batch)
    metrics.process(data_samples=samples, data_batch=batch)
    count = cfg.test_dataloader.batch_size
    found = metrics.evaluate(count)
    assert found["target/N"] == count and 0 <= found["target/top1"] <= 1


@pytest.mark.parametrize("leaf", LEAVES)
def test_a_leaf_is_at_most_six_lines(leaf):
    tree = ast.parse((ROOT / leaf).read_text())
    statements = [n for n in tree.body if not isinstance(n, ast.Expr)]
    assert sum(n.end_lineno - n.lineno + 1 for n in statements) <= 6


def parts(leaf):
    cfg = Config.fromfile(ROOT / leaf)
    model = cfg.model
    kinds = [o["type"] for o in model.objectives]
    neck = model.neck
    hooks = {h["type"]: h for h in cfg.get("custom_hooks", [])}
    return dict(
        AMD=neck["type"] == "AMDFusion" and neck.get("mode") != "none",
        GCC=model.get("inner_step") is not None,
        EMA="TeacherEMAHook" in hooks,
        DL="CollaborativeDistillation" in kinds,
    )


@pytest.mark.parametrize(
    ("leaf", "expected"),
    [
        ("erm", ""),
        ("ema", "EMA"),
        ("table4_ema_amd", "AMD EMA"),
        ("table4_ema_gcc", "GCC EMA"),
        ("table4_ema_dl", "EMA DL"),
        ("mbcd", "AMD GCC EMA DL"),
    ],
)
def test_the_rows_of_table_four(leaf, expected):
    found = parts(f"synth_action/{leaf}.py")
    assert {k for k, on in found.items() if on} == set(expected.split())


def test_the_rows_of_tables_five_and_seven():
    modes = {
        name: Config.fromfile(ROOT / f"synth_action/{name}.py").model.neck.mode
        for name in ("table5_no_dropout", "table5_fixed_dropout", "mbcd")
    }
    assert list(modes.values()) == ["none", "fixed", "adaptive"]
    betas = [
        Config.fromfile(path).custom_hooks[0].beta
        for path in sorted(ROOT.glob("synth_action/table7_*.py"))
    ]
    assert betas == [0.9, 0.99, 0.999, 0.9999]


def test_paper_values():
    cfg = Config.fromfile(ROOT / "_base_/methods/mbcd.py").method
    assert cfg.custom_hooks[0].beta == 0.999  # Table 7
    assert cfg.optim_wrapper.inner_lr == 1e-4 and cfg.optim_wrapper.order == 1
    assert cfg.model.objectives[1].weight == 1.0


def test_the_paper_s_encoders(tiny_hac):
    init_default_scope("mmaction")
    cfg = load("hac/mbcd.py", tiny_hac)
    model = MODELS.build(cfg.model)
    widths = {m: e.feature_channels for m, e in model.encoders.items()}
    assert widths == dict(video=2304, audio=512, flow=2048)  # appendix
    for name, p in model.encoders.named_parameters():
        assert p.requires_grad == ("layer4" in name), name
    assert cfg.optim_wrapper.optimizer.lr == 1e-4
    assert cfg.train_cfg.max_epochs == 20
    whole = Config.fromfile(ROOT / "hac/mbcd.py")
    assert whole.train_dataloader.batch_size == 16
    dropouts = [
        Config.fromfile(ROOT / f"hac/{m}.py").model.encoders.video.get("dropout", 0)
        for m in ("erm", "ema", "mbcd")
    ]
    assert dropouts == [0.5, 0, 0]


def test_dataloaders_of_the_two_runners_agree(tiny_data):
    """Validation holds the sources' test split and, for curves, the target."""
    init_default_scope("mmaction")
    cfg = load("synth_action/mbcd.py", tiny_data)
    val = Runner.build_dataloader(cfg.val_dataloader, seed=0).dataset
    test = Runner.build_dataloader(cfg.test_dataloader, seed=0).dataset
    train = Runner.build_dataloader(cfg.train_dataloader, seed=0).dataset
    assert train.counts == {"studio": 12, "street": 12}
    assert val.counts == {"studio": 6, "street": 6, "sketch": 6}
    assert test.counts == {"sketch": 18}
    assert MODELS.build(cfg.model).num_classes == len(train.metainfo["classes"])
