"""--target, --sources and --data-root, and all that follows from them."""

import pytest
from mmengine.config import Config

from mmaction_mbcd import cli
from tests_support import load_tool

train, test = load_tool("train"), load_tool("test")


def resolve(tool, config, *options):
    middle = ["x.pth"] if tool is test else []
    return tool.build_config(tool.parse_args([str(config), *middle, *options]))


@pytest.fixture
def synth(repo, tiny_data, monkeypatch, tmp_path):
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(cli, "require_file", lambda *_: None)
    config = repo / "configs" / "mbcd" / "synth_action" / "mbcd.py"
    return config, ["--data-root", str(tiny_data)]


def domains(cfg):
    return [
        (cfg[f"{s}_dataloader"].dataset.get("sources"),
         cfg[f"{s}_dataloader"].dataset.target)
        for s in cli.SPLITS
    ]  # fmt: skip


def test_data_root_reaches_every_split(synth):
    config, root = synth
    cfg = resolve(train, config, *root)
    roots = {cfg[f"{s}_dataloader"].dataset.data_root for s in cli.SPLITS}
    assert roots == {root[1]}


def test_another_target(synth):
    config, root = synth
    cfg = resolve(train, config, *root, "--target", "street")
    assert domains(cfg) == [(None, "street")] * 3
    assert cfg.model.num_domains == 2
    assert cfg.val_dataloader.dataset.watch_target
    assert cfg.work_dir == "work_dirs/synth_action/mbcd_to-street"


def test_single_source_tests_on_every_other_domain(synth):
    config, root = synth
    cfg = resolve(train, config, *root, "--sources", "street", "--seed", "1")
    assert domains(cfg) == [(["street"], ["studio", "sketch"])] * 3
    assert cfg.model.num_domains == 1
    assert cfg.work_dir == "work_dirs/synth_action/mbcd_street_seed1"


def test_source_and_target(synth):
    config, root = synth
    options = ["--sources", "street", "--target", "sketch", "--modalities", "video"]
    cfg = resolve(train, config, *root, *options, "audio")
    assert domains(cfg) == [(["street"], "sketch")] * 3
    assert cfg.work_dir == ("work_dirs/synth_action/mbcd_street-to-sketch_video-audio")
    assert domains(resolve(test, config, *root, *options, "audio")) == domains(cfg)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target", "mars"], "unknown domain 'mars' in targets; known are"),
        (["--sources", "mars"], "unknown domain 'mars' in sources"),
        (["--sources", "street", "--target", "street"], "'street' is among the sour"),
        (["--sources", "street", "studio", "sketch"], "names every domain"),
        (["--data-root", "nowhere", "--target", "street"], "no synthetic dataset in"),
    ],
)
def test_refusals(synth, options, message):
    config, root = synth
    with pytest.raises(cli.UsageError, match=message):
        resolve(train, config, *root, *options)


def test_counts_that_the_config_leaves_open(synth):
    config, root = synth
    cfg = Config.fromfile(config)
    cli.set_datasets(cfg, data_root=root[1])
    cfg.model.num_classes = cfg.model.num_domains = None
    cli.infer_class_counts(cfg)
    assert (cfg.model.num_classes, cfg.model.num_domains) == (6, 2)
    cfg.model.num_classes = 5  # what the config says stays
    cli.infer_class_counts(cfg)
    assert cfg.model.num_classes == 5


def test_own_videos_need_a_target(repo, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    rows = "".join(f"{i}.mp4,{'xy'[i % 2]},{'abc'[i % 3]}\n" for i in range(6))
    (tmp_path / "annotations.csv").write_text("file,label,domain\n" + rows)
    config = repo / "configs" / "mbcd" / "own_videos" / "mbcd.py"
    root = ["--data-root", str(tmp_path)]
    with pytest.raises(cli.UsageError, match="neither `target` nor `sources`.*'a'"):
        resolve(train, config, *root)
    cfg = resolve(train, config, *root, "--target", "b")
    assert (cfg.model.num_classes, cfg.model.num_domains) == (2, 2)
