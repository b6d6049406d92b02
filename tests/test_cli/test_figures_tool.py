"""From a real run's folder to figures."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from helpers.forked import run_script
from mmaction_mbcd.analysis import figure_kinds
from mmaction_mbcd.analysis.figure_kinds import FigureOptions, make_figure
from mmaction_mbcd.analysis.run_folders import Run
from mmaction_mbcd.errors import UsageError

CONFIG = "configs/mbcd/synth_action/{}.py"


def run(repo, tool, *args, check=True):
    done = run_script(repo / tool, *args, cwd=repo, env={"OMP_NUM_THREADS": "1"})
    if check:
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def train(repo, data, folder, method, *options):
    """One epoch of three steps."""
    loaders = [f"{split}_dataloader.{key}" for split in ("train", "val", "test")
               for key in ("num_workers=0", "persistent_workers=False")]  # fmt: skip
    run(repo, "tools/train.py", CONFIG.format(method), "--data-root", data, "--seed", 0,
        "--work-dir", folder, "--cfg-options", "train_cfg.max_epochs=1",
        "train_dataloader.batch_size=8", "train_cfg.val_interval=1", *loaders,
        "default_hooks.balance.type=BalanceTraceHook", *options)  # fmt: skip


@pytest.fixture(scope="module")
def trained(repo, tiny_data, tmp_path_factory):
    """A run of MBCD."""
    folder = tmp_path_factory.mktemp("mbcd")
    train(repo, tiny_data, folder, "mbcd", "default_hooks.balance.interval=1")
    return folder


def drawn(out, name):
    """The data of a figure whose picture is one."""
    picture = Image.open(out / f"{name}.png").convert("L")
    assert picture.width > 500 and len(picture.getcolors()) > 50
    assert (out / f"{name}.svg").read_text().startswith("<?xml")
    return pd.read_csv(out / f"{name}.csv", keep_default_na=False)


def figure(kind, *runs, out, name=None, **options):
    make_figure(kind, runs, FigureOptions(out, **options))
    return drawn(out, name or kind)


def test_balance_by_the_tool(repo, trained, tmp_path):
    done = run(
        repo, "tools/figures.py", "balance", f"MBCD={trained}", "--out", tmp_path
    )
    data = drawn(tmp_path, "balance")
    assert str(tmp_path / "balance.svg") in done.stdout.splitlines()
    kinds = {"s", "r", "drop_prob", "kept", "acc", "source", "target", "grad_cos"}
    assert set(data["trace"]) == kinds and set(data["run"]) == {"MBCD"}
    values = data.set_index(["trace", "modality"])["value"]
    s, r = values["s"], values["r"]
    mean = 0.5 * (s["video"] / s["audio"] + s["video"] / s["flow"])
    assert r["video"] == pytest.approx(mean)
    assert s.between(1 / 6, 1).all() and values["grad_cos"].abs().max() <= 1


@pytest.mark.long
def test_modalities_by_the_tool_equal_the_runs_own_validation(repo, trained, tmp_path):
    runs = [f"{weights}={trained}@{weights}" for weights in ("teacher", "student")]
    options = ["--roles", "source", "--out", tmp_path]
    run(repo, "tools/figures.py", "modalities", *runs, *options)
    found = drawn(tmp_path, "modalities").set_index(["run", "head"])["value"]
    logged = figure("curves", str(trained), out=tmp_path).iloc[-1]
    for head, key in (("fused", "source"), ("video", "source/video")):
        assert found["teacher", head] == pytest.approx(logged[f"{key}/top1"])
        assert found["student", head] == pytest.approx(logged[f"student/{key}/top1"])


def test_shift_of_several_runs(trained, tmp_path):
    """Figure 1(b): noise in one modality reaches it, and no other one's head."""
    runs = [f"{weights}={trained}@{weights}" for weights in ("teacher", "student")]
    data = figure("shift", *runs, out=tmp_path, clips=4, levels=[0.5, 8.0])
    assert set(data["run"]) == {"teacher", "student"} and (data["N"] == 4).all()
    keys = ["run", "shifted", "level"]
    fused = data[data["head"] == "fused"].set_index(keys)["top1"]
    assert len(fused) == 2 * 3 * 3 and fused.index.is_unique
    for name in ("teacher", "student"):  # the clean data are the same for all
        assert fused[name].xs(0.0, level="level").nunique() == 1
    alone = data[data["head"] == "audio"].set_index(keys)["top1"]
    for level in (0.5, 8.0):  # noise elsewhere leaves a modality's own head alone
        assert alone["teacher", "video", level] == alone["teacher", "video", 0.0]
    run = Run.parse(f"student={trained}@student")
    few = FigureOptions(tmp_path, clips=4, levels=[0.5, 8.0])
    clean, variants = figure_kinds._shifted(run, few)
    assert set(variants) == {(m, x) for m in ("video", "audio", "flow")
                             for x in (0.5, 8.0)}  # fmt: skip
    for (noisy, level), said in variants.items():
        for m in ("video", "audio", "flow"):
            moved = np.abs(said.logits[m] - clean.logits[m]).max()
            assert (moved > 0) == (m == noisy), (noisy, level, m)
    with pytest.raises(UsageError, match="one of the target's test clips"):
        figure("shift", *runs, out=tmp_path, roles=["source"])


@pytest.mark.long
def test_shapley_on_a_choice_of_clips(trained, tmp_path):
    data = figure("shapley", f"MBCD={trained}", out=tmp_path, clips=6, roles=["source"])
    assert (data["N"] == 6).all() and (data["role"] == "source").all()
    value = data.set_index(["quantity", "modalities"])["value"]
    full, none = value["accuracy", "video+audio+flow"], value["accuracy", ""]
    assert none == pytest.approx(1 / 6)
    assert value["shapley"].sum() == pytest.approx(full - none)


def test_errors_are_one_line(repo, tmp_path):
    args = ["curves", tmp_path / "nowhere", "--out", tmp_path]
    done = run(repo, "tools/figures.py", *args, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("figures.py: error: ") and "nowhere: no such run" in line


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("landscape", dict(through=True), "three weight vectors define a plane"),
        ("landscape", dict(points=4, clips=1), "choose an odd number"),
        ("shapley", dict(gigabytes=1e-6), "choose fewer by --clips"),
        ("curves", {}, "was the run validated"),
    ],
)
def test_what_cannot_be_shown(trained, tmp_path, kind, options, message):
    folder = trained
    if kind == "curves":  # a run whose log was not kept
        folder = tmp_path
        (folder / "mbcd.py").write_text((trained / "mbcd.py").read_text())
    with pytest.raises(UsageError, match=message):
        make_figure(kind, [str(folder)], FigureOptions(tmp_path, **options))


def test_runs_on_different_clips_do_not_share_a_figure(trained, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    config = (trained / "mbcd.py").read_text()
    (other / "mbcd.py").write_text(config.replace("'sketch'", "'street'"))
    (best,) = trained.glob("best_*.pth")
    (other / best.name).symlink_to(best)
    with pytest.raises(UsageError, match=r"mbcd0 and other are .* different clips"):
        make_figure(
            "shapley", [str(trained), str(other)], FigureOptions(tmp_path, clips=2)
        )


@pytest.mark.long
def test_every_kind_side_by_side(repo, trained, tiny_data, tmp_path):
    erm = tmp_path / "erm"
    train(repo, tiny_data, erm, "erm")
    runs = [f"MBCD={trained}", f"ERM={erm}"]
    few = dict(out=tmp_path, clips=6)
    data = figure("flatness", *runs, **few, directions=2)
    assert set(data["run"]) == {"MBCD", "ERM"} and len(data) == 2 * 2 * 2 * (1 + 10)
    start = data[(data["role"] == "target") & (data["gamma"] == 0)]
    figure("flatness", *runs, **few, directions=2, by_filter=True,
           name="flatness_by_filter")  # fmt: skip
    data = figure("landscape", *runs, **few, points=3, name="landscape_target")
    centre = data[(data["x"] == 0) & (data["y"] == 0)]
    for name in ("MBCD", "ERM"):
        loss = start.loc[start["run"] == name, "loss"].iloc[0]
        own = centre.loc[centre["run"] == name, "loss"].item()
        assert own == pytest.approx(loss, abs=1e-6)
    data = figure("embeddings", *runs, roles=["source", "target"], out=tmp_path)
    assert data.groupby("run").size().to_dict() == {"MBCD": 30, "ERM": 30}
    data = figure("balance", *runs, **few, gradients=True)
    held = data[data["trace"] == "grad_cos_clips"]
    assert set(held["run"]) == {"MBCD", "ERM"} and held["value"].abs().max() <= 1
    weights = [f"a={trained}@teacher", f"b={trained}@student", f"c={erm}"]
    data = figure("landscape", *weights, **few, through=True, points=3,
                  name="landscape_target")  # fmt: skip
    corners = data[data["corner"] != ""].set_index("corner")["loss"]
    assert set(corners.index) == {"a", "b", "c"}
    # The first corner is the model that the other landscape has in its middle.
    own = centre.loc[centre["run"] == "MBCD", "loss"].item()
    assert corners["a"] == pytest.approx(own, abs=1e-6)
