"""Small trees in the layouts of HAC and EPIC-Kitchens, through the command line.

The dataset configs are the package's own, with smaller pictures; the networks are
small. Every count below is worked out by hand from COUNTS.
"""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest

from helpers.forked import run_script
from media import EPIC_FOLDER, write_clip, write_epic, write_split
from mmaction_mbcd.datasets.epic_splits import read_split, write_csv

# Rows of the train and of the test split.
COUNTS = dict(
    hac=dict(human=(4, 2), animal=(3, 1), cartoon=(2, 3)),
    epic_kitchens=dict(D1=(3, 2), D2=(3, 1), D3=(2, 3)),
)
TARGET = dict(hac="cartoon", epic_kitchens="D3")
MODALITIES = ("video", "audio", "flow")
# As one real name has it.
SPACED = "test_0 "

# --- processes


def run(folder, repo, tool, *args, check=True, timeout=100):
    """Runs a tool; returns its exit code and all that it printed."""
    folder.mkdir(parents=True, exist_ok=True)
    done = run_script(repo / "tools" / f"{tool}.py", *args, cwd=folder, timeout=timeout)
    output = done.stdout + done.stderr
    if check:
        assert done.returncode == 0, output[-3000:]
    return SimpleNamespace(code=done.returncode, output=output)


def evaluate(folder, repo, config, checkpoint, *args):
    """The metrics and the counts of ``tools/test.py``."""
    out = folder / "results.json"
    done = run(
        folder, repo, "test", config, checkpoint, "--out", out,
        "--work-dir", folder / "work", *args,
    )  # fmt: skip
    return json.loads(out.read_text()), done.output


# --- trees


def write_hac_tree(root):
    """Labels 0 and 1; one clip of the target has no sound."""
    for place, (domain, counts) in enumerate(COUNTS["hac"].items()):
        for split, count in zip(("train", "test"), counts, strict=True):
            stems = [f"{split}_{i}" for i in range(count)]
            if split == "test":
                stems[0] = SPACED
            for i, stem in enumerate(stems):
                write_clip(root, domain, stem, seed=10 * place + i)
            rows = [(f"{stem}.mp4", i % 2) for i, stem in enumerate(stems)]
            write_split(root, domain, split, rows)
    (root / "cartoon" / "audio" / "test_2.wav").unlink()
    return root


def write_epic_tree(root):
    """The annotations as the converter makes them from the published pickles."""
    write_epic(root)
    for domain, counts in COUNTS["epic_kitchens"].items():
        for split, count in zip(("train", "test"), counts, strict=True):
            path = root / EPIC_FOLDER / f"{domain}_{split}.csv"
            rows = [replace(r, verb_class=r.uid % 2) for r in read_split(path)[:count]]
            write_csv(rows, path)
    return root


CLIPS = """
_base_ = "{base}/datasets/published_clips.py"
_shape = dict(type="FormatShape", input_format="NCTHW", collapse=True)
published = dict(
    augment=[
        dict(type="ResizeClip", scale=(-1, 36)),
        dict(type="RandomResizedCrop"),
        dict(type="ResizeClip", scale=(32, 32), keep_ratio=False),
        dict(type="ClipFlip", flip_ratio=0.5),
        _shape,
    ],
    rgb_whole=[
        dict(type="ResizeClip", scale=(-1, 36)),
        dict(type="CenterCrop", crop_size=32),
        _shape,
    ],
    flow_whole=[
        dict(type="ResizeClip", scale=(-1, 36)),
        dict(type="CenterCrop", crop_size=36),
        _shape,
    ],
    spectrogram=[
        dict(type="TileWaveform", length=16000),
        dict(type="LogSpectrogram", nperseg=512, noverlap=353),
    ],
)
del _shape
"""
RUN = """
_base_ = [
    "{base}/default_runtime.py",
    "./datasets/{name}.py",
    "{base}/models/small_scratch.py",
    "{base}/schedules/adam_16e.py",
]
model = dict(
    num_classes={{{{_base_.num_classes}}}},
    modalities={{{{_base_.modalities}}}},
    num_domains=2,
)
visualizer = dict(vis_backends=[dict(type="LocalVisBackend")])
optim_wrapper = dict(optimizer=dict(lr=0.03))
train_cfg = dict(max_epochs=2, val_interval=1)
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False)
val_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False)
test_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False)
"""
METHOD = """
_base_ = ["./{name}.py", "{base}/methods/{method}.py"]
model = {{{{_base_.method.model}}}}
optim_wrapper = {{{{_base_.method.optim_wrapper}}}}
custom_hooks = {hooks}
"""
METHODS = dict(hac="mbcd", epic_kitchens="erm")
# A teacher that forgets its random weights within two epochs of three steps.
HOOKS = dict(hac='[dict(type="TeacherEMAHook", beta=0.5)]', epic_kitchens="[]")


@pytest.fixture(scope="module", params=["hac", "epic_kitchens"])
def setting(request, repo, tmp_path_factory):
    """A tree and its config file, for each of the two datasets."""
    return make_setting(request.param, repo, tmp_path_factory)


@pytest.fixture(scope="module")
def hac(repo, tmp_path_factory):
    return make_setting("hac", repo, tmp_path_factory)


@pytest.fixture(scope="module")
def epic(repo, tmp_path_factory):
    return make_setting("epic_kitchens", repo, tmp_path_factory)


_MADE = {}


def make_setting(name, repo, factory):
    if name not in _MADE:
        folder = factory.mktemp(name)
        base = repo / "configs" / "mbcd" / "_base_"
        (folder / "datasets").mkdir()
        # The dataset's own config, unchanged, beside smaller clips.
        shutil.copy(base / "datasets" / f"{name}.py", folder / "datasets")
        names = dict(base=base, name=name, method=METHODS[name], hooks=HOOKS[name])
        for path, text in {
            "datasets/published_clips.py": CLIPS,
            f"{name}.py": RUN,
            "run.py": METHOD,
        }.items():
            (folder / path).write_text(text.format(**names))
        write = write_hac_tree if name == "hac" else write_epic_tree
        _MADE[name] = SimpleNamespace(
            name=name,
            folder=folder,
            config=folder / "run.py",
            root=write(folder / "data"),
            counts=COUNTS[name],
            sources=[d for d in COUNTS[name] if d != TARGET[name]],
            target=TARGET[name],
            trained={},
        )
    return _MADE[name]


def trained(setting, repo, *domains):
    """Trains once per choice of sources: ``(best checkpoint, its logged metrics)``."""
    if domains not in setting.trained:
        work = setting.folder / "-".join(("work", *domains))
        sources = ["--sources", *domains] if domains else []
        run(
            work, repo, "train", setting.config, "--work-dir", work,
            "--data-root", setting.root, "--seed", 0, *sources,
        )  # fmt: skip
        (best,) = work.glob("best_source_top1_epoch_*.pth")
        (scalars,) = work.glob("*/vis_data/scalars.json")
        rows = map(json.loads, scalars.read_text().splitlines())
        logged = {row["step"]: row for row in rows if "source/top1" in row}
        assert list(logged) == [1, 2]  # a validation per epoch
        # Of equally good epochs the later one, as in the published code.
        epoch = max(logged, key=lambda e: (logged[e]["source/top1"], e))
        assert best.stem == f"best_source_top1_epoch_{epoch}"
        setting.trained[domains] = best, logged[epoch]
    return setting.trained[domains]


# --- what is measured


def keys_of(role, domains=(), beside=False, silent=False):
    """The metrics by hand: ``role``'s, its domains', its modalities', the student's."""
    keys = {f"{role}/{k}" for k in ("N", "top1", "mean_class")}
    keys |= {f"{role}/{d}/{k}" for d in domains for k in ("N", "top1")}
    keys |= {f"{role}/{m}/top1" for m in MODALITIES}
    if silent:
        keys.add(f"{role}/audio/N")
    return keys | ({f"student/{k}" for k in keys} if beside else set())


def check(setting, result, role, counts, silent=0):
    """Keys and counts. ``counts``: ``{domain: rows}``; ``silent``: clips unheard."""
    several = counts if role == "source" or len(counts) > 1 else ()
    student = METHODS[setting.name] == "mbcd"
    metrics = result["metrics"]
    assert set(metrics) == keys_of(role, several, student, silent)
    total = sum(counts.values())
    expected = {role: total} | {f"{role}/{d}": counts[d] for d in several}
    if silent:
        expected[f"{role}/audio"] = total - silent
    if student:
        expected |= {f"student/{key}": n for key, n in expected.items()}
    assert result["N"] == expected
    for key, value in metrics.items():
        if key.endswith("/N"):
            assert value == expected[key.removesuffix("/N")]
            continue
        assert 0 <= value <= 1
        group = key.rpartition("/")[0]
        if key.endswith("top1"):  # hits of that many samples
            hits = value * expected.get(group, total)
            assert hits == pytest.approx(round(hits), abs=1e-6), key
    fused = sum(metrics[f"{role}/{d}/top1"] * n for d, n in counts.items() if several)
    if several:
        assert metrics[f"{role}/top1"] * total == pytest.approx(fused)


def same_as_logged(result, logged):
    for key, value in result["metrics"].items():
        assert logged[key] == pytest.approx(value, abs=1e-6), key
    # Nothing is compared if the model is wrong throughout.
    assert any(value > 0 for key, value in result["metrics"].items() if "top1" in key)


def test_multi_source(setting, repo):
    best, logged = trained(setting, repo)
    result, output = evaluate(
        setting.folder / "full", repo, setting.config, best,
        "--data-root", setting.root,
    )  # fmt: skip
    counts = {setting.target: sum(setting.counts[setting.target])}
    silent = int(setting.name == "hac")
    check(setting, result, "target", counts, silent)
    assert result["N"]["target"] == 5  # 2 and 3 of either dataset
    assert result["in_domain"] is False and result["seed"] == 0
    assert "target/top1" in output
    assert not any(key.startswith("target") for key in logged)


def test_in_domain_repeats_the_logged_validation(setting, repo):
    best, logged = trained(setting, repo)
    result, _ = evaluate(
        setting.folder / "in_domain", repo, setting.config, best, "--in-domain",
        "--data-root", setting.root,
    )  # fmt: skip
    check(setting, result, "source", {d: setting.counts[d][1] for d in setting.sources})
    assert result["N"]["source"] == 3 and result["in_domain"] is True
    same_as_logged(result, logged)


@pytest.mark.parametrize("name", ["hac", pytest.param("epic", marks=pytest.mark.long)])
def test_single_source_with_two_targets(name, request, repo):
    setting = request.getfixturevalue(name)
    source, *targets = setting.counts
    best, logged = trained(setting, repo, source)
    common = ["--data-root", setting.root, "--sources", source]
    result, _ = evaluate(setting.folder / "single", repo, setting.config, best, *common)
    counts = {d: sum(setting.counts[d]) for d in targets}
    check(setting, result, "target", counts, silent=int(setting.name == "hac"))
    assert result["N"]["target"] == 9  # 4 and 5 of either dataset
    result, _ = evaluate(
        setting.folder / "single_in", repo, setting.config, best, *common, "--in-domain"
    )
    check(setting, result, "source", {source: 2})
    same_as_logged(result, logged)


# --- damaged media


@pytest.fixture(scope="module")
def damaged(hac):
    """HAC's tree with a video of the target cut off, and that video."""
    root = hac.folder / "damaged"
    shutil.copytree(hac.root, root)
    victim = root / "cartoon" / "videos" / "test_1.mp4"
    victim.write_bytes(victim.read_bytes()[:-500])
    return root, victim


def on_error(policy, *splits):
    return [f"{split}_dataloader.dataset.on_error={policy}" for split in splits]


def test_skip_evaluates_the_rest_and_says_so(hac, damaged, repo):
    root, victim = damaged
    best, _ = trained(hac, repo)
    result, output = evaluate(
        hac.folder / "skip", repo, hac.config, best, "--data-root", root,
        "--cfg-options", *on_error("skip", "test"),
    )  # fmt: skip
    metrics = result["metrics"]
    assert metrics.pop("target/skipped") == 1
    check(hac, result, "target", {"cartoon": 4}, silent=1)
    assert "sample 'cartoon/test_1' is skipped" in output and str(victim) in output


@pytest.mark.parametrize("workers", [0, 1])
def test_without_skip_a_damaged_file_ends_the_run(hac, damaged, repo, workers):
    root, victim = damaged
    best, _ = trained(hac, repo)
    done = run(
        hac.folder / f"raise_{workers}", repo, "test", hac.config, best,
        "--data-root", root, "--work-dir", hac.folder / "raise_work", "--cfg-options",
        f"test_dataloader.num_workers={workers}",
        check=False, timeout=60,
    )  # fmt: skip
    assert done.code == 2
    last = done.output.strip().splitlines()[-1]
    assert last.startswith("test.py: error: ") and str(victim) in last
    assert "cut off" in last and "Traceback" not in done.output


# --- damaged annotations: whatever the policy, one error that names the place


HAC_FAULTS = [
    ("skip", "train_1.mp4,1", "train_1.mp4,nan", "line 2: label 'nan' is none of the"),
    ("raise", "train_1.mp4,1", "train_1.mp4,nan", "line 2: label 'nan' is none of the"),
    ("skip", "train_1.mp4,1", "train_1.mp4", "line 2: expected `file,label`"),
    ("skip", "train_1.mp4", "../../x.mp4", "line 2: '../../x.mp4' is not the name"),
]
EPIC_FAULTS = [
    # By hand: rows of D3_train are (11, 24) and (30, 33), lines 2 and 3.
    ("skip", ",open,0\n", ",open,\n", "line 2: verb_class is missing"),
    ("skip", ",30,33,", ",33,30,", "line 3: stop_frame 30 is not after start_"),
    ("raise", ",30,33,", ",33,30,", "line 3: stop_frame 30 is not after start_"),
    ("skip", ",stop_frame,", ",stop,", "lacks the column 'stop_frame'"),
    ("skip", ",P22_01", ",../P22_01", "'../P22_01' is not the name of a video"),
]


def fails(setting, repo, root, annotation, policy, message, folder):
    done = run(
        folder, repo, "train", setting.config, "--data-root", root,
        "--work-dir", folder / "work", "--target", setting.sources[0],
        "--cfg-options", *on_error(policy, "train", "val", "test"),
        check=False, timeout=60,
    )  # fmt: skip
    last = done.output.strip().splitlines()[-1]
    assert done.code == 2 and last.startswith("train.py: error: ")
    assert str(annotation) in last and message in last
    assert "During handling of the above exception" not in done.output
    assert not list(folder.rglob("*.pth"))


@pytest.mark.parametrize(("policy", "old", "new", "message"), HAC_FAULTS)
def test_hac_annotations(hac, repo, tmp_path, policy, old, new, message):
    # Media are not reached; the annotations are all that there is.
    shutil.copytree(hac.root / "HAC_Splits", tmp_path / "data" / "HAC_Splits")
    path = tmp_path / "data" / "HAC_Splits" / "HAC_train_only_cartoon.csv"
    text = path.read_bytes().decode()
    assert old in text
    path.write_bytes(text.replace(old, new, 1).encode())
    fails(hac, repo, tmp_path / "data", path, policy, message, tmp_path / "run")


@pytest.mark.parametrize(("policy", "old", "new", "message"), EPIC_FAULTS)
def test_epic_annotations(epic, repo, tmp_path, policy, old, new, message):
    folder = tmp_path / "data" / EPIC_FOLDER
    shutil.copytree(epic.root / EPIC_FOLDER, folder)
    path = folder / "D3_train.csv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    fails(epic, repo, tmp_path / "data", path, policy, message, tmp_path / "run")
