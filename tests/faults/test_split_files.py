"""Flipped bytes in EPIC-Kitchens' published pickles: an error, never the end."""

import os
import random
import resource
import time

import pandas as pd
import pytest

from mmaction_mbcd.preparation import epic_splits
from mmaction_mbcd.preparation.epic_splits import read_pickle


@pytest.fixture(scope="module")
def pickled(tmp_path_factory):
    """A file as the published ones are: text as objects, numbers as blocks."""
    rows = [
        dict(
            uid=100 + i,
            participant_id="P08",
            video_id=f"P08_{i % 9 + 1:02}",
            narration=f"open fridge {i}",
            start_timestamp=f"00:{i:02}:04.09",
            stop_timestamp=f"00:{i:02}:05.84",
            start_frame=3600 * i + 245,
            stop_frame=3600 * i + 350,
            verb="open",
            verb_class=2,
        )
        for i in range(40)
    ]
    table = pd.DataFrame(rows)
    for name in table.columns:
        if not pd.api.types.is_numeric_dtype(table[name]):
            table[name] = table[name].astype(object)
    table.columns = pd.Index(table.columns, dtype=object)
    path = tmp_path_factory.mktemp("split") / "D1_train.pkl"
    table.to_pickle(path, protocol=4)
    assert len(read_pickle(path)) == 40
    return path.read_bytes()


def flips(data, seed, count):
    chance = random.Random(seed)
    for _ in range(count):
        at, bit = chance.randrange(len(data)), 1 << chance.randrange(8)
        yield at, data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :]


def read_flipped(pickled, path, seed, count):
    """How many were read all the same, refused, and killed their reader."""
    ends = dict(read=0, refused=0, died=0)
    for at, data in flips(pickled, seed, count):
        path.write_bytes(data)
        try:
            segments = read_pickle(path)
            assert len(segments) <= 40, at
            ends["read"] += 1
        except ValueError as error:
            said = str(error)
            assert said.startswith(str(path)) and "\n" not in said, (at, said)
            ends["died" if "the process that read it died" in said else "refused"] += 1
    return ends


def test_a_flipped_bit_is_an_error_or_another_table(pickled, tmp_path):
    ends = read_flipped(pickled, tmp_path / "D1_train.pkl", 0, 25)
    assert ends["refused"] > 5 and sum(ends.values()) == 25


@pytest.mark.long
def test_thousands_of_flipped_bits(pickled, tmp_path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ends = read_flipped(pickled, tmp_path / "D1_train.pkl", 1, 3000)
    print(ends)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert sum(ends.values()) == 3000 and grown < 100_000  # KiB
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    assert peak < before + (epic_splits.MEMORY >> 10) + 50_000


# Opcodes of protocol 4: a string said to be long, a crash, a loop, and good manners.
HUGE = b"\x80\x04\x8e" + (1 << 33).to_bytes(8, "little") + b"x."
MEMO = b"\x80\x04Nr\xff\xff\xff\x7f."


@pytest.mark.parametrize("data", [HUGE, MEMO], ids=["a long bytes", "a far memo"])
def test_memory_is_limited(tmp_path, data):
    """The second asked the old reader for 32 GiB, and got them where there were."""
    path = tmp_path / "D1_train.pkl"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"^{path} is damaged: "):
        read_pickle(path)


def test_a_crash_and_a_loop_cost_the_file_only(tmp_path, monkeypatch):
    path = tmp_path / "D1_train.pkl"
    path.write_bytes(b"")
    monkeypatch.setattr(epic_splits, "_table", lambda path: os.abort())
    with pytest.raises(ValueError, match="is damaged: the process that read it died"):
        read_pickle(path)
    monkeypatch.setattr(epic_splits, "SECONDS", 0.5)
    monkeypatch.setattr(epic_splits, "_table", lambda path: time.sleep(60))
    begin = time.monotonic()
    with pytest.raises(ValueError, match="is damaged: it was not read within 0.5 s"):
        read_pickle(path)
    assert time.monotonic() - begin < 20


def test_a_file_that_is_too_long_is_not_opened(tmp_path):
    path = tmp_path / "D1_train.pkl"
    with open(path, "wb") as file:
        file.truncate(epic_splits.MEMORY)
    with pytest.raises(ValueError, match="is not a split file: it has 268,435,456 byt"):
        read_pickle(path)
