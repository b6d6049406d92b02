"""From a real run's folder to figures, in real processes."""

import pandas as pd
import pytest
import torch
from PIL import Image

from helpers.forked import run_script

CONFIG = "configs/mbcd/synth_action/{}.py"


def run(repo, tool, *args, check=True):
    done = run_script(repo / tool, *args, cwd=repo, env={"OMP_NUM_THREADS": "1"})
    if check:
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def train(repo, data, folder, method, *options):
    run(repo, "tools/train.py", CONFIG.format(method), "--data-root", data, "--seed", 0,
        "--work-dir", folder, "--cfg-options", "train_cfg.max_epochs=2",
        "train_dataloader.batch_size=8", "train_dataloader.num_workers=0",
        "train_dataloader.persistent_workers=False",
        "default_hooks.balance.type=BalanceTraceHook", *options)  # fmt: skip


@pytest.fixture(scope="module")
def trained(repo, tiny_data, tmp_path_factory):
    """Two epochs of three steps of MBCD."""
    folder = tmp_path_factory.mktemp("mbcd")
    train(repo, tiny_data, folder, "mbcd", "train_cfg.val_interval=1",
          "default_hooks.balance.interval=1")  # fmt: skip
    return folder


def figure(repo, kind, *args, out, names=None):
    done = run(repo, "tools/figures.py", kind, *args, "--out", out)
    for name in names or [kind]:
        picture = Image.open(out / f"{name}.png").convert("L")
        assert picture.width > 500 and len(set(picture.getdata())) > 50
        assert (out / f"{name}.svg").read_text().startswith("<?xml")
    return done, pd.read_csv(out / f"{(names or [kind])[0]}.csv")


def test_balance_from_the_log(repo, trained, tmp_path):
    _, data = figure(repo, "balance", f"MBCD={trained}", out=tmp_path)
    kinds = {"s", "r", "drop_prob", "kept", "acc", "source", "target", "grad_cos"}
    assert set(data["trace"]) == kinds and set(data["run"]) == {"MBCD"}
    values = {k: v.set_index(["modality", "epoch"])["value"] for k, v in
              data.groupby("trace")}  # fmt: skip
    s, r = values["s"], values["r"]
    epoch = s.index[-1][1]
    video, audio, flow = (s[m, epoch] for m in ("video", "audio", "flow"))
    assert r["video", epoch] == pytest.approx(0.5 * (video / audio + video / flow))
    assert s.between(1 / 6, 1).all() and values["grad_cos"].abs().max() <= 1


def test_modalities_equal_the_runs_own_validation(repo, trained, tmp_path):
    student = f"student={trained}@student"
    _, data = figure(repo, "modalities", f"teacher={trained}", student, "--roles",
                     "source", out=tmp_path)  # fmt: skip
    (best,) = trained.glob("best_*.pth")
    epoch = int(best.stem.rpartition("_")[2])
    figure(repo, "curves", trained, out=tmp_path)
    logged = pd.read_csv(tmp_path / "curves.csv").set_index("epoch").loc[epoch]
    found = data.set_index(["run", "head"])["value"]
    for head, key in (("fused", "source"), ("video", "source/video")):
        assert found["teacher", head] == pytest.approx(logged[f"{key}/top1"])
        assert found["student", head] == pytest.approx(logged[f"student/{key}/top1"])


def test_shapley_on_a_choice_of_clips(repo, trained, tmp_path):
    done, data = figure(repo, "shapley", f"MBCD={trained}", "--clips", 6,
                        "--roles", "source", out=tmp_path)  # fmt: skip
    assert (data["N"] == 6).all() and (data["role"] == "source").all()
    value = data.set_index(["quantity", data["modalities"].fillna("")])["value"]
    full, none = value["accuracy", "video+audio+flow"], value["accuracy", ""]
    assert none == pytest.approx(1 / 6)
    assert value["shapley"].sum() == pytest.approx(full - none)
    assert str(tmp_path / "shapley.csv") in done.stdout


def test_errors_are_one_line(repo, trained, tmp_path):
    for args, message in (
        (["curves", tmp_path / "nowhere"], "no such run folder or checkpoint"),
        (["landscape", trained, "--through"], "three weight vectors define a plane"),
        (["landscape", trained, "--points", 4], "choose an odd number"),
        (["shapley", trained, "--gigabytes", 1e-6], "choose fewer by --clips"),
    ):
        done = run(repo, "tools/figures.py", *args, "--out", tmp_path, check=False)
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].startswith("figures.py: error: ")
        assert message in done.stderr.splitlines()[-1]


@pytest.mark.long
def test_every_kind_side_by_side(repo, trained, tiny_data, tmp_path):
    erm = tmp_path / "erm"
    train(repo, tiny_data, erm, "erm")
    runs = [f"MBCD={trained}", f"ERM={erm}"]
    few = ["--clips", 6]
    _, data = figure(repo, "flatness", *runs, *few, "--directions", 2, out=tmp_path)
    assert set(data["run"]) == {"MBCD", "ERM"} and len(data) == 2 * 2 * 2 * (1 + 10)
    figure(repo, "flatness", *runs, *few, "--directions", 2, "--filter-normalised",
           out=tmp_path, names=["flatness_by_filter"])  # fmt: skip
    _, data = figure(repo, "landscape", *runs, *few, "--points", 3, out=tmp_path,
                     names=["landscape_target"])  # fmt: skip
    centre = data[(data["x"] == 0) & (data["y"] == 0)]
    start = pd.read_csv(tmp_path / "flatness.csv").query(
        "role == 'target' & gamma == 0"
    )
    for name in ("MBCD", "ERM"):
        loss = start.loc[start["run"] == name, "loss"].iloc[0]
        own = centre.loc[centre["run"] == name, "loss"].item()
        assert own == pytest.approx(loss, abs=1e-6)
    _, data = figure(repo, "embeddings", *runs, "--roles", "source", "target",
                     out=tmp_path)  # fmt: skip
    assert data.groupby("run").size().to_dict() == {"MBCD": 30, "ERM": 30}
    _, data = figure(repo, "balance", *runs, "--gradients", *few, out=tmp_path)
    held = data[data["trace"] == "grad_cos_clips"]
    assert set(held["run"]) == {"MBCD", "ERM"} and held["value"].abs().max() <= 1
    through = [f"a={trained}@teacher", f"b={trained}@student",
               f"c={trained}/epoch_1.pth@student"]  # fmt: skip
    _, data = figure(repo, "landscape", *through, "--through", *few, "--points", 3,
                     out=tmp_path, names=["landscape_target"])  # fmt: skip
    assert set(data["corner"].dropna()) == {"a", "b", "c"}
    before = torch.load(trained / "epoch_1.pth", weights_only=False)
    assert before["meta"]["epoch"] == 1
