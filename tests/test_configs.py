"""Every config resolves, builds and takes a training and an evaluation step."""

import ast
from pathlib import Path

import pytest
import torch
from mmaction.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from mmaction_mbcd.datasets.synth_generator import SynthConfig, generate

ROOT = Path(__file__).parent.parent / "configs" / "mbcd"
LEAVES = sorted(
    p.relative_to(ROOT).as_posix()
    for p in ROOT.rglob("*.py")
    if "_base_" not in p.parts
)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """Six actions, two training and one test clip each, in three domains."""
    folder = tmp_path_factory.mktemp("synth")
    generate(
        folder, SynthConfig(train_per_class=2, test_per_class=1), 2, progress=False
    )
    return folder


def load(leaf, data):
    cfg = Config.fromfile(ROOT / leaf)
    for split in ("train", "val", "test"):
        loader = cfg[f"{split}_dataloader"]
        loader.dataset.data_root = str(data)
        loader.update(batch_size=4, num_workers=0, persistent_workers=False)
    return cfg


@pytest.mark.parametrize("leaf", LEAVES)
def test_a_training_and_an_evaluation_step(leaf, tiny_data, tmp_path):
    from toy_runner import QuickRunner

    cfg = load(leaf, tiny_data)
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
    for batch in list(runner.train_dataloader)[:3]:
        logs = runner.model.train_step(batch, runner.optim_wrapper)
        assert all(torch.isfinite(torch.as_tensor(v)).all() for v in logs.values())
    for name, p in runner.model.named_parameters():
        assert p.requires_grad == (not torch.equal(p, before[name])), name
    metrics = runner.test_loop.evaluator
    batch = next(iter(runner.test_dataloader))
    runner.model.eval()
    samples = runner.model.test_step(batch)
    metrics.process(data_samples=samples, data_batch=batch)
    found = metrics.evaluate(4)
    assert found["target/N"] == 4 and 0 <= found["target/top1"] <= 1


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


def test_dataloaders_of_the_two_runners_agree(tiny_data):
    """Validation holds the sources' test split and, for curves, the target."""
    init_default_scope("mmaction")
    cfg = load("synth_action/mbcd.py", tiny_data)
    val = Runner.build_dataloader(cfg.val_dataloader, seed=0).dataset
    test = Runner.build_dataloader(cfg.test_dataloader, seed=0).dataset
    train = Runner.build_dataloader(cfg.train_dataloader, seed=0).dataset
    assert train.counts == {"studio": 12, "street": 12}
    assert val.counts == {"studio": 6, "street": 6, "sketch": 18}
    assert test.counts == {"sketch": 18}
    assert MODELS.build(cfg.model).num_classes == len(train.metainfo["classes"])
