"""Every config resolves and builds; every family takes real steps."""

import ast
import copy
import functools
import itertools
import json
import re
import shutil
from pathlib import Path
from unittest import mock

import pytest
import torch
from mmaction.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from media import write_epic, write_own
from mmaction_mbcd import cli
from tests_support import load_tool
from toy_runner import QuickRunner

ROOT = Path(__file__).parent.parent / "configs" / "mbcd"
LEAVES = sorted(
    p.relative_to(ROOT).as_posix()
    for p in ROOT.rglob("*.py")
    if "_base_" not in p.parts
)
TARGETS = dict(
    synth_action="sketch", hac="cartoon", epic_kitchens="D3", own_videos="studio"
)
# But for variants for one dataset, which that dataset's leaf of the method combines.
METHODS = sorted(
    p.stem
    for p in (ROOT / "_base_" / "methods").glob("*.py")
    if not p.stem.endswith(tuple(f"_{dataset}" for dataset in TARGETS))
)
# Ablations stand on the data of their table, and like DSU and the second order on
# the synthetic actions; add-ons where their papers have them.
ABLATIONS = dict(
    synth_action=("table", "mbcd_"),
    hac=("table5_",),
    epic_kitchens=("table4_", "table7_"),
)
PUBLISHED_ADD_ONS = {f"{m}_gmp" for m in ("rna_net", "simmmdg", "moosa", "cmrf")} | {
    f"{m}_mer_dg" for m in ("erm", "simmmdg", "cmrf")
}
ADD_ONS = dict(
    synth_action={"moosa_gmp", "erm_mer_dg", "mbcd_dsu"},
    hac=PUBLISHED_ADD_ONS,
    epic_kitchens=PUBLISHED_ADD_ONS,
)
# Those whose steps are taken here, on real files; every method's are in
# test_methods.py. With the paper's encoders one baseline and one inner step.
STEPPED = [
    *(f"synth_action/{m}.py" for m in ("erm", "mbcd", "nel")),
    "own_videos/small/mbcd.py",
    *(
        pytest.param(leaf, marks=pytest.mark.long)
        for leaf in (
            *(f"synth_action/{m}.py" for m in ("ema", "mbcd_dsu", "cmrf")),
            "hac/erm.py",
            "epic_kitchens/mbcd.py",
            "own_videos/mbcd.py",
        )
    ),
]


@pytest.fixture(scope="session")
def trees(tiny_data, tmp_path_factory):
    """A small tree of every dataset, in its published layout."""
    hac = tmp_path_factory.mktemp("hac")
    (hac / "HAC_Splits").mkdir()
    names = dict(studio="human", street="animal", sketch="cartoon")
    for synth, name in names.items():
        shutil.copytree(tiny_data / synth, hac / name)
        for split in ("train", "test"):
            shutil.copy(
                tiny_data / "Synth_Splits" / f"Synth_{split}_only_{synth}.csv",
                hac / "HAC_Splits" / f"HAC_{split}_only_{name}.csv",
            )
    own = write_own(tmp_path_factory.mktemp("own"))
    for domain in ("kitchen", "garden", "studio"):
        for i in range(4):  # any sound and flow will do
            clip = sorted((tiny_data / "street" / "videos").glob("*.mp4"))[i].stem
            for axis in "xy":
                target = own / "flow" / domain / f"clip {i}_flow_{axis}.mp4"
                target.parent.mkdir(parents=True, exist_ok=True)
                source = tiny_data / "street" / "flow" / f"{clip}_flow_{axis}.mp4"
                shutil.copy(source, target)
            target = own / "audio" / domain / f"clip {i}.wav"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(tiny_data / "street" / "audio" / f"{clip}.wav", target)
    epic = write_epic(tmp_path_factory.mktemp("epic"))
    return dict(synth_action=tiny_data, hac=hac, epic_kitchens=epic, own_videos=own)


def family(leaf):
    return leaf.partition("/")[0]


def steps_of(pipeline):
    for step in pipeline:
        if isinstance(step, list):
            yield from steps_of(step)
        else:
            yield step


@functools.cache
def read(leaf):
    """A config as it is, to look at."""
    return Config.fromfile(ROOT / leaf)


def load(leaf, trees):
    """A config for its small tree, at 64 pixels and with random weights."""
    cfg = copy.deepcopy(read(leaf))
    small = family(leaf) == "synth_action"
    cli.set_datasets(cfg, data_root=str(trees[family(leaf)]))
    if family(leaf) == "own_videos":
        cli.set_domains(cfg, target=["studio"])
        cli.infer_class_counts(cfg)
    for split in cli.SPLITS:
        loader = cfg[f"{split}_dataloader"]
        loader.update(
            batch_size=4 if small else 2, num_workers=0, persistent_workers=False
        )
        for pipeline in loader.dataset.pipelines.values() if not small else ():
            for step in steps_of(pipeline):
                if step.type == "ResizeClip":
                    step.scale = tuple(64 if s > 0 else s for s in step.scale)
                elif step.type == "CenterCrop":
                    step.crop_size = 64
    for encoder in cfg.model.encoders.values():
        encoder.pretrained = None
    return cfg


class _Encoders:
    """Builds equal encoders once; what is looked at below does not change them."""

    def build(self, config):
        return self._built(json.dumps(config))

    @functools.cache  # noqa: B019  one object
    def _built(self, config):
        return MODELS.build(json.loads(config))


_ENCODERS = _Encoders()


@functools.cache
def _built_on_meta(model):
    # MMPretrain's ResNet reads numbers from torch.linspace while it is built.
    linspace = functools.partial(torch.linspace, device="cpu")
    with (
        torch.device("meta"),
        mock.patch("torch.linspace", linspace),
        mock.patch("mmaction_mbcd.models.modality_encoders.MODELS", _ENCODERS),
        # Nothing to draw there, and it takes the larger part of the time.
        mock.patch.object(torch.Tensor, "normal_", lambda self, *args, **kwargs: self),
    ):
        return MODELS.build(json.loads(model))


_DATA = {}


def _read_data(dataset):
    """A dataset and its first item, read once for equal configs."""
    key = json.dumps(dataset)
    if key not in _DATA:
        data = DATASETS.build(dataset)
        item = data[0]
        _DATA[key] = data, item[0] if isinstance(item, list) else item
    return _DATA[key]


@pytest.mark.parametrize("leaf", LEAVES)
def test_a_config_resolves_and_fits(leaf, trees):
    """Model, data, optimizer wrapper and hooks can be built and fit each other."""
    init_default_scope("mmaction")
    cfg = load(leaf, trees)
    cli.check_settings(cfg)
    model = _built_on_meta(json.dumps(cfg.model.to_dict()))
    for split, use in zip(cli.SPLITS, ("train", "val", "test"), strict=True):
        loader = cfg[f"{split}_dataloader"]
        data, item = _read_data(loader.dataset.to_dict())
        assert data.use == use and data.targets == (TARGETS[family(leaf)],)
        assert len(data.metainfo["classes"]) == model.num_classes
        assert list(data.modalities) == model.modalities
        assert list(item["inputs"]) == model.modalities
        assert all(item["data_samples"].present.values())
    assert cfg.model.num_domains == 2
    wrapper, hooks = cfg.optim_wrapper.type, cfg.get("custom_hooks") or []
    if model.inner_step is not None:
        assert wrapper == "MBCDOptimWrapper"
    if any(o.needs_teacher for o in model.objectives):
        assert "TeacherEMAHook" in [hook.type for hook in hooks]
    assert cfg.default_hooks.checkpoint.save_best == "source/top1"


@pytest.mark.parametrize("leaf", LEAVES)
def test_a_dumped_config_is_the_config(leaf, tmp_path):
    text = read(leaf).pretty_text
    (tmp_path / "dumped.py").write_text(text)
    assert Config.fromfile(tmp_path / "dumped.py").to_dict() == read(leaf).to_dict()
    long = [line for line in text.splitlines() if len(line) > 88]
    assert all(line.lstrip().startswith("checkpoint=") for line in long)  # a name


@pytest.mark.parametrize("leaf", STEPPED)
def test_a_training_and_an_evaluation_step(leaf, trees, tmp_path):
    cfg = load(leaf, trees)
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


@pytest.mark.parametrize("dataset", [*TARGETS, "own_videos/small"])
def test_the_leaves_of_a_dataset(dataset):
    """Every method, its add-ons, its ablations; all but add-ons only combine."""
    leaves = {p.stem: p.read_text() for p in (ROOT / dataset).glob("*.py")}
    methods = {
        m
        for m in METHODS
        if not m.startswith(("table", "mbcd_"))
        or m.startswith(ABLATIONS.get(dataset, ()))
    }
    assert set(leaves) == methods | ADD_ONS.get(dataset, set())
    for method in methods:
        assert f"methods/{method}" in leaves[method]
        assert "_base_.method.model" in leaves[method]


@pytest.mark.parametrize("leaf", LEAVES)
def test_a_leaf_is_at_most_six_lines(leaf):
    tree = ast.parse((ROOT / leaf).read_text())
    statements = [n for n in tree.body if not isinstance(n, ast.Expr)]
    assert sum(n.end_lineno - n.lineno + 1 for n in statements) <= 6


def parts(leaf):
    cfg = read(leaf)
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


@pytest.mark.parametrize("dataset", ["synth_action", "epic_kitchens"])
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
def test_the_rows_of_table_four(dataset, leaf, expected):
    found = parts(f"{dataset}/{leaf}.py")
    assert {k for k, on in found.items() if on} == set(expected.split())


@pytest.mark.parametrize("dataset", ["synth_action", "hac"])
def test_the_rows_of_table_five(dataset):
    modes = [
        read(f"{dataset}/{name}.py").model.neck.mode
        for name in ("table5_no_dropout", "table5_fixed_dropout", "mbcd")
    ]
    assert modes == ["none", "fixed", "adaptive"]


@pytest.mark.parametrize("dataset", ["synth_action", "epic_kitchens"])
def test_the_rows_of_table_seven(dataset):
    betas = [
        read(leaf).custom_hooks[0].beta
        for leaf in LEAVES
        if leaf.startswith(f"{dataset}/table7_")
    ]
    assert betas == [0.9, 0.99, 0.999, 0.9999]


# What docs/tables.md says of ablations and add-ons on other data.
TABLES_MD = (ROOT.parent.parent / "docs" / "tables.md").read_text()
OPTIONS = re.findall(r"^\| `(\w+)` \| `([^|]*=[^|]*)` \|$", TABLES_MD, re.M)
FILES = re.findall(r"```python\n# (\w+)\.py\n(.*?)```", TABLES_MD, re.S)


def resolved(path):
    """What a run reads: not the method's name, and no base's unused parts."""
    cfg = path if isinstance(path, Config) else Config.fromfile(path)
    return {k: v for k, v in cfg.to_dict().items() if k not in ("method", "dsu", "gmp")}


def written(folder, dataset, name):
    """The leaf of a dataset that has none, in the words of those that have one."""
    source = next(p for p in ROOT.glob(f"*/{name}.py") if p.parent.name != dataset)
    text = source.read_text().replace(source.parent.name, dataset)
    text = text.replace('"../', f'"{ROOT.as_posix()}/')
    text = text.replace('"./', f'"{(ROOT / dataset).as_posix()}/')
    if dataset != "synth_action":  # whose schedule is short
        text = text.replace("{{_base_.short_beta}}", "0.999")
    (folder / "leaf.py").write_text(text)
    return folder / "leaf.py"


def test_every_ablation_s_way_to_other_data_is_documented():
    wanted = {m for m in METHODS if m.startswith(("table", "mbcd_"))}
    assert {name for name, _ in OPTIONS + FILES} == wanted | {"mbcd_dsu", "cmrf_gmp"}


@pytest.mark.parametrize("dataset", ["hac", "epic_kitchens"])
@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_documented_options_resolve_to_the_ablation(dataset, name, options, tmp_path):
    path = str(ROOT / dataset / "mbcd.py")
    args = load_tool("train").parse_args([path, "--cfg-options", *options.split()])
    cfg = Config.fromfile(path)
    cfg.merge_from_dict(args.cfg_options)
    assert resolved(cfg) == resolved(written(tmp_path, dataset, name))


@pytest.mark.parametrize(("name", "text"), FILES)
def test_documented_files_resolve_to_the_leaf(name, text, tmp_path):
    (tmp_path / "configs").symlink_to(ROOT.parent)
    (tmp_path / "own.py").write_text(text)
    (dataset,) = set(re.findall(r"configs/mbcd/(?!_base_)(\w+)/", text))
    expected = resolved(written(tmp_path, dataset, name))
    assert resolved(tmp_path / "own.py") == expected


def test_paper_values():
    cfg = Config.fromfile(ROOT / "_base_/methods/mbcd.py").method
    assert cfg.custom_hooks[0].beta == 0.999  # Table 7
    assert cfg.optim_wrapper.inner_lr == 1e-4 and cfg.optim_wrapper.order == 1
    assert cfg.model.objectives[1].weight == 1.0


def test_the_paper_s_encoders(trees):
    init_default_scope("mmaction")
    cfg = load("hac/mbcd.py", trees)
    model = _built_on_meta(json.dumps(cfg.model.to_dict()))
    widths = {m: e.feature_channels for m, e in model.encoders.items()}
    assert widths == dict(video=2304, audio=512, flow=2048)  # appendix
    for name, p in model.encoders.named_parameters():
        assert p.requires_grad == ("layer4" in name), name
    assert cfg.optim_wrapper.optimizer.lr == 1e-4
    assert cfg.train_cfg.max_epochs == 20
    whole = read("hac/mbcd.py")
    assert whole.train_dataloader.batch_size == 16
    dropouts = [
        read(f"hac/{m}.py").model.encoders.video.get("dropout", 0)
        for m in ("erm", "ema", "mbcd")
    ]
    assert dropouts == [0.5, 0, 0]


def test_dataloaders_of_the_two_runners_agree(trees):
    """Validation holds the sources' test split and, for curves, the target."""
    init_default_scope("mmaction")
    cfg = load("synth_action/mbcd.py", trees)
    val = Runner.build_dataloader(cfg.val_dataloader, seed=0).dataset
    test = Runner.build_dataloader(cfg.test_dataloader, seed=0).dataset
    train = Runner.build_dataloader(cfg.train_dataloader, seed=0).dataset
    assert train.counts == {"studio": 12, "street": 12}
    assert val.counts == {"studio": 6, "street": 6, "sketch": 6}
    assert test.counts == {"sketch": 18}
    assert MODELS.build(cfg.model).num_classes == len(train.metainfo["classes"])


@pytest.mark.parametrize("leaf", [x for x in LEAVES if "/published/" in x])
def test_published_leaves(leaf):
    """Nine scripts, of which MBCD's alone loads all of VGGSound's file."""
    cfg = read(leaf)
    audio, mbcd = cfg.model.encoders.audio, leaf.endswith("mbcd.py")
    assert ("skip" in audio.pretrained) == ("zero_init_residual" in audio.backbone)
    assert ("skip" in audio.pretrained) != mbcd
    assert audio.get("stem_norm_eval", True) != mbcd
    for m in ("video", "flow"):
        assert cfg.model.encoders[m].stem_norm_eval is False
    dataset = cfg.test_dataloader.dataset
    expected = "full" if family(leaf) == "hac" else "test"
    assert (dataset.eval_split, dataset.sampling) == (expected, "published")


@pytest.mark.parametrize("leaf", LEAVES)
def test_every_config_of_the_papers_datasets_says_its_sampling(leaf):
    sampling = read(leaf).train_dataloader.dataset.get("sampling")
    said = ast.get_docstring(ast.parse((ROOT / leaf).read_text()))
    if family(leaf) in ("hac", "epic_kitchens"):
        assert sampling == "published" and "Sampling: published." in said
    else:
        assert sampling in (None, "repaired")
