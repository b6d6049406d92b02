"""Data that hang, kill, or cannot be read end a run with the sample's name."""

import ctypes
import gc
import multiprocessing
import os
import re
import signal
import subprocess
import threading
import time
import traceback
import uuid
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmaction.registry import DATASETS, TRANSFORMS
from mmaction.structures import ActionDataSample
from mmengine.evaluator import Evaluator
from mmengine.logging import MessageHub
from torch.utils.data import DataLoader

from helpers.listed import ListedDataset
from mmaction_mbcd.datasets import (
    MissingModalityError,
    ResumableSampler,
    UnreadableMediaError,
    collate_views,
)
from mmaction_mbcd.engine import (
    DataWorkerError,
    ResumableTrainLoop,
    TooManySkippedError,
    WatchfulTestLoop,
    WatchfulValLoop,
    data_faults,
)
from mmaction_mbcd.engine.data_faults import SkippedSamples


@DATASETS.register_module(force=True)
class ToyClips(ListedDataset):
    """Clips of numbers, whose files' names say how reading them goes."""

    METAINFO = dict(classes=("a", "b", "c"), domains=("d",))
    PLACEHOLDERS = {
        "RGB": ((2, 3), torch.float32),
        "Audio": ((3, 3), torch.float32),
    }


@TRANSFORMS.register_module(force=True)
class ReadToy:
    """Reads two or three channels, or does what a word in the file's name says."""

    def __call__(self, results):
        path = Path(results["filename"])
        name = path.name
        if "stop" in name:  # until somebody kills the process
            path.with_suffix(".pid").write_text(str(os.getpid()))
            time.sleep(600)
        if "slow" in name:
            time.sleep(0.6)
        if "hang" in name:
            time.sleep(600)
        if "lock" in name:  # a decoder that does not release the GIL
            ctypes.PyDLL(None).sleep(600)
        if "crash" in name:
            ctypes.string_at(0)
        if "damaged" in name:
            raise UnreadableMediaError.of(results, "it is broken")
        if "absent" in name:
            raise MissingModalityError("it is not there")
        channels = 2 if results["modality_key"] == "video" else 3
        results["imgs"] = np.random.rand(channels, 3).astype(np.float32)
        return results


def clips(tmp_path, *words, count=12, **kwargs):
    """Settings of a dataset of ``count`` clips; the first ones have these words."""
    rows = []
    for i in range(count):
        word = words[i] if i < len(words) else ""
        files = dict(video=tmp_path / f"{i}_{word}", audio=tmp_path / f"{i}")
        for path in files.values():
            path.touch()
        rows.append(dict(label=i % 3, files={m: str(p) for m, p in files.items()}))
    step = dict(type="ReadToy")
    pipelines = dict(video=[step], audio=[step])
    return dict(type="ToyClips", listed=rows, pipelines=pipelines, **kwargs)


class Model:
    """What the loops call."""

    def train(self):
        pass

    eval = train

    def train_step(self, data_batch, optim_wrapper):
        return {}

    def val_step(self, data_batch):
        return data_batch["data_samples"]

    test_step = val_step


def run(settings, use="train", workers=2, test=None):
    """One pass of a real loop over the clips; how many batches it had."""
    data = DATASETS.build(dict(settings, use="train" if use == "train" else "val"))
    loader = DataLoader(
        data,
        batch_size=4,
        sampler=ResumableSampler(data, shuffle=False, seed=0),
        num_workers=workers,
        collate_fn=collate_views,
    )
    batches = []
    runner = SimpleNamespace(
        hooks=[],
        call_hook=lambda name, **_: name.endswith("_iter") and batches.append(name),
        message_hub=MessageHub.get_instance(uuid.uuid4().hex),
        model=Model(),
        optim_wrapper=None,
        seed=0,
        val_loop=None,
        visualizer=SimpleNamespace(),
        _randomness_cfg={},
        _test_dataloader=test,
    )
    if use == "train":
        loop = runner._train_loop = ResumableTrainLoop(runner, loader, max_epochs=1)
    elif use == "val":
        loop = runner._val_loop = WatchfulValLoop(runner, loader, Evaluator([]))
    else:
        loop = runner._test_loop = WatchfulTestLoop(runner, loader, Evaluator([]))
    loop.run()
    return sum(name.startswith("after") for name in batches)


def no_workers(error):
    """Whether none is left, once the frames of the error are."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        error = getattr(error, "value", error)
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    gc.collect()
    return not multiprocessing.active_children()


# --- workers that hang or die ------------------------------------------------------


LONG = pytest.mark.long  # PyTorch may take five seconds to end the other worker


@pytest.mark.parametrize(
    ("use", "word"),
    [
        ("train", "lock"),
        pytest.param("val", "hang", marks=LONG),
        pytest.param("test", "lock", marks=LONG),
        pytest.param("train", "hang", marks=LONG),
    ],
)
def test_a_decoder_that_hangs_is_ended_and_its_file_named(tmp_path, use, word):
    """Also one that holds the GIL, where no Python thread could run."""
    bad = clips(tmp_path, "", "", word, read_timeout=0.7)
    begin, threads = time.monotonic(), threading.active_count()
    with pytest.raises(DataWorkerError) as error:
        run(bad, use)
    assert time.monotonic() - begin < 60
    text = str(error.value)
    assert text.startswith(
        f"reading sample 'd/2' (video: {tmp_path}/2_{word}) was not finished within 0.7"
    )
    assert "read_timeout" in text and "\n" not in text
    assert no_workers(error)
    deadline = time.monotonic() + 5  # PyTorch's queues end their threads by and by
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() == threads


def test_a_worker_that_is_killed_is_named_with_its_sample(tmp_path):
    bad = clips(tmp_path, "", "stop")

    def kill():
        path = tmp_path / "1_stop.pid"
        while not (path.exists() and path.read_text()):
            time.sleep(0.02)
        os.kill(int(path.read_text()), signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.raises(DataWorkerError) as error:
        run(bad)
    thread.join()
    assert re.match(
        r"data worker \d+ was killed by signal Killed while it was reading sample "
        rf"'d/1' \(video: {re.escape(str(tmp_path))}/1_stop\)\. ",
        str(error.value),
    )
    assert "memory" in str(error.value) and "num_workers" in str(error.value)
    assert no_workers(error)


def test_a_decoder_that_crashes_is_named_too(tmp_path):
    with pytest.raises(DataWorkerError, match="Segmentation fault while .* 'd/0'"):
        run(clips(tmp_path, "crash"), "val")


def test_reading_leaves_no_note_and_other_processes_have_none(tmp_path):
    settings = clips(tmp_path, use="train")
    data = DATASETS.build(settings)
    data[0]
    assert list(data.notes) == []
    loader = DataLoader(data, num_workers=2, collate_fn=list)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        assert len(list(loader)) == 12
        assert list(data.notes) == []
    # The workers' pipes close as their threads end.
    deadline = time.monotonic() + 30
    while len(os.listdir("/proc/self/fd")) > before + 1:
        assert time.monotonic() < deadline, os.listdir("/proc/self/fd")
        gc.collect()
        time.sleep(0.05)


def test_without_workers_the_log_names_what_takes_long(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(data_faults, "print_log", lambda text, **_: said.append(text))
    monkeypatch.setattr(data_faults, "_LOOK", 0.05)
    slow = clips(tmp_path, "slow", read_timeout=0.2)
    assert run(slow, workers=0) == 3
    (line,) = said
    assert f"reading sample 'd/0' (video: {tmp_path}/0_slow) takes longer" in line


def test_only_a_child_is_killed():
    """The ID of a process that has ended may be another one's."""
    other = subprocess.Popen(["sleep", "60"])
    grandchild = subprocess.run(
        ["sh", "-c", "sleep 60 >/dev/null 2>&1 & echo $!"],
        capture_output=True,
        text=True,
    )
    stranger = int(grandchild.stdout)
    try:
        data_faults._kill_child(stranger)
        os.kill(stranger, 0)  # it lives
        data_faults._kill_child(other.pid)
        assert other.wait(5) == -signal.SIGKILL
        data_faults._kill_child(other.pid)  # gone
    finally:
        os.kill(stranger, signal.SIGKILL)
        other.kill()


# --- samples that are skipped --------------------------------------------------------


def test_a_few_skipped_samples_do_not_stop_a_run(tmp_path):
    two = clips(tmp_path, "damaged", "damaged", on_error="skip", max_skipped=0)
    assert run(two, "train", 0) == run(two, "test", 0) == 3


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("use", ["train", "val", "test"])
def test_more_than_the_share_stops_the_run(tmp_path, use, workers):
    words = ["damaged", "absent", "", "damaged", "damaged"]
    bad = clips(tmp_path, *words, on_error="skip")
    with pytest.raises(TooManySkippedError) as error:
        run(bad, use, workers)
    first, *lines = str(error.value).splitlines()
    # The first batch has three.
    assert first.startswith("3 of 12 samples cannot be read, and max_skipped=0.01 of")
    expected = [
        "  damaged: 2",
        "    cannot read video of sample 'd/0' from ",
        "    cannot read video of sample 'd/3' from ",
        "  missing: 1",
        "    sample 'd/1' has no video: it is not there. ",
    ]
    for line, start in zip(lines, expected, strict=True):
        assert line.startswith(start)
    # A share that admits them.
    assert run(dict(bad, max_skipped=0.34), use, workers) == 3


@pytest.mark.parametrize("use", ["train", "val", "test"])
def test_a_run_in_which_nothing_is_readable_does_not_end_well(tmp_path, use):
    words = 12 * ["damaged"]
    bad = clips(tmp_path, *words, on_error="skip", max_skipped=1.0)
    with pytest.raises(TooManySkippedError, match="none of the 12 samples could be re"):
        run(bad, use, 0)


def loader(total, share):
    data = ListedDataset.__new__(ListedDataset)
    data.max_skipped = share
    return SimpleNamespace(dataset=data, sampler=range(total))


def batch(*reasons, view=0):
    samples = []
    for i, reason in enumerate(reasons):
        sample = ActionDataSample()
        facts = dict(sample_id=f"d/{i}", skipped=reason, view=view)
        sample.set_metainfo(facts | (dict(fault="damaged") if reason else {}))
        samples.append(sample)
    return dict(data_samples=samples)


@pytest.mark.parametrize(
    ("total", "share", "admitted"),
    # At least two pass; beyond them floor(share * total).
    [(10, 0.01, 2), (300, 0.01, 3), (499, 0.01, 4), (500, 0.01, 5), (10, 1.0, 10)],
)
def test_how_many_are_admitted(total, share, admitted):
    counter = SkippedSamples(loader(total, share))
    for _ in range(admitted):
        counter.add(batch("broken"))
    counter.add(batch("", ""))
    if admitted < total:
        with pytest.raises(TooManySkippedError, match=f"{admitted + 1} of {total} sam"):
            counter.add(batch("broken"))


def test_a_second_view_is_the_same_clip():
    counter = SkippedSamples(loader(100, 0.0))
    counter.add(batch("broken", "broken"))
    counter.add(batch("broken", "broken", view=1))
    assert (counter.seen, counter.count) == (2, 2)


# --- absence in the test data ----------------------------------------------------


def test_a_training_looks_at_its_test_data_before_the_first_step(tmp_path):
    """A misspelt folder of the target is not found out after a night of training."""
    good, lost = clips(tmp_path), clips(tmp_path, use="val")
    for row in lost["listed"]:
        row["files"] = dict(row["files"], audio=row["files"]["audio"] + "_gone")
    test = dict(dataset=lost)
    with pytest.raises(ValueError, match="test_dataloader: .*none of the 12 test"):
        run(good, workers=0, test=test)
    admitted = dict(dataset=dict(lost, absent_ok=["audio"]))
    assert run(good, workers=0, test=admitted) == 3
    # Test data that cannot be built at all are the test's affair.
    assert run(good, workers=0, test=dict(dataset=dict(lost, use="test"))) == 3
