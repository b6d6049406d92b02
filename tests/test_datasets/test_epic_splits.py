import math
import os
import pickle
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mmaction_mbcd.datasets.epic_splits import (
    CLASSES,
    COLUMNS,
    EpicSegment,
    read_split,
    seconds,
    write_csv,
)
from mmaction_mbcd.preparation import epic_splits
from mmaction_mbcd.preparation.epic_splits import read_pickle, read_splits
from tests_support import ROOT, load_tool

SPLITS = (
    Path(os.environ.get("MBCD_SPLITS") or ROOT.parent / "shared" / "data" / "splits")
    / "epic"
)
COUNTS = dict(D1=(1543, 435, 1978), D2=(2495, 750, 3245), D3=(3897, 974, 4871))
KITCHENS = dict(D1="P08", D2="P01", D3="P22")


def read_here(path):
    """:func:`read_pickle` without its process, which takes longer than a small file."""
    return epic_splits._segments(epic_splits._table(path), path)


READERS = {".pkl": read_here, ".csv": read_split}

convert = load_tool("data/epic/convert_splits")


def record(uid=7, **changes):
    row = dict(
        uid=uid,
        participant_id="P08",
        video_id="P08_01",
        narration='open, "the" fridge',
        start_timestamp="00:01:04.09",
        stop_timestamp="00:01:05.84",
        start_frame=3845,
        stop_frame=3950,
        verb="open",
        verb_class=2,
    )
    return {**row, **changes}


def save(path, rows):
    """Writes rows as a table, to a pickle or a CSV."""
    table = pd.DataFrame(rows)
    if path.suffix == ".csv":
        table.to_csv(path, index=False)
        return path
    # Text as Python objects, as in the published files.
    for name in table.columns:
        if not pd.api.types.is_numeric_dtype(table[name]):
            table[name] = table[name].astype(object)
    table.columns = pd.Index(table.columns, dtype=object)
    table.to_pickle(path)
    return path


# --- the published files ----------------------------------------------------


@pytest.fixture(scope="module")
def published():
    if not SPLITS.is_dir():
        pytest.skip(f"the real split files are not in {SPLITS} (set MBCD_SPLITS)")
    return read_splits(SPLITS)


def test_published_segments(published):
    for domain, counts in COUNTS.items():
        parts = [published[f"{domain}_{split}"] for split in ("train", "test")]
        assert (len(parts[0]), len(parts[1]), sum(map(len, parts))) == counts
        for segment in parts[0] + parts[1]:
            assert segment.participant_id == KITCHENS[domain]
            assert segment.video_id.startswith(f"{KITCHENS[domain]}_")
            # 60 frames per second: time and frame agree to a frame.
            assert -1 <= 60 * segment.start - segment.start_frame <= 1
            assert -1 <= 60 * segment.stop - segment.stop_frame <= 1
    every = [segment for part in published.values() for segment in part]
    assert len({segment.uid for segment in every}) == 10094 == len(every)
    assert published["D1_train"][0] == EpicSegment(
        uid=12915,
        participant_id="P08",
        video_id="P08_01",
        narration="open fridge",
        start_timestamp="00:00:04.09",
        stop_timestamp="00:00:05.84",
        start_frame=245,
        stop_frame=350,
        verb="open",
        verb_class=2,
    )
    # Each class's name is a verb of its own id and of no other.
    ids = Counter((s.verb, s.verb_class) for s in every if s.verb in CLASSES)
    assert sorted(ids) == sorted((name, i) for i, name in enumerate(CLASSES))
    assert CLASSES == ("take", "put", "open", "close", "wash", "cut", "mix", "pour")


def test_conversion_keeps_every_row(published, tmp_path, capsys):
    assert convert.main([str(SPLITS), str(tmp_path / "out")]) == 0
    files = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert files == [f"D{d}_{s}.csv" for d in (1, 2, 3) for s in ("test", "train")]
    assert read_splits(tmp_path / "out", ".csv") == published
    out = capsys.readouterr().out
    for counts in COUNTS.values():
        assert all(str(n) in out for n in counts)
    assert "…" not in out


@pytest.mark.parametrize(
    "old, new",
    [
        (b"pandas.core.indexes.base", b"pandas.indexes.base"),
        (b"pandas.core.indexes.range", b"pandas.indexes.range"),
        (b"numpy.core.multiarray", b"numpy._core.multiarray"),
    ],
)
def test_other_module_names(published, tmp_path, old, new):
    data = (SPLITS / "D1_test.pkl").read_bytes()
    # A short string holds its length in the byte before it; a frame holds its own.
    coded = [bytes([0x8C, len(s)]) + s for s in (old, new)]
    assert data.count(coded[0]) == 1 and data[2:3] == b"\x95"
    data = data.replace(*coded)
    size = int.from_bytes(data[3:11], "little") + len(new) - len(old)
    path = tmp_path / "D1_test.pkl"
    path.write_bytes(data[:3] + size.to_bytes(8, "little") + data[11:])
    assert read_pickle(path) == published["D1_test"]


# --- unpickling -------------------------------------------------------------


class Call:
    """Pickles as a call."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "function, args, name",
    [
        (os.system, ("touch {}",), f"{os.system.__module__}.system"),
        (eval, ("open({!r}, 'w')",), "builtins.eval"),
        (exec, ("open({!r}, 'w')",), "builtins.exec"),
        (getattr, (pd.DataFrame, "eval"), "builtins.getattr"),
        (pd.read_pickle, ("{}",), "pandas.*read_pickle"),
        (np.load, ("{}",), "numpy.*load"),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_malicious_pickle(tmp_path, function, args, name, protocol):
    mark = tmp_path / "mark"
    args = [a.format(str(mark)) if isinstance(a, str) else a for a in args]
    path = tmp_path / "D1_train.pkl"
    path.write_bytes(pickle.dumps(Call(function, *args), protocol))
    if protocol < 3:
        name = name.replace("builtins", "(builtins|__builtin__)")
    refused = f"{path} is refused: it names {name}, which"
    with pytest.raises(ValueError, match=refused):
        read_here(path)
    assert not mark.exists()


def test_dotted_name_is_refused(tmp_path):
    """Protocol 4 could reach a method through an admitted class."""
    path = tmp_path / "D1_train.pkl"
    text = b"\x80\x04\x8c\x06pandas\x8c\x0eDataFrame.eval\x93."
    path.write_bytes(text)
    with pytest.raises(ValueError, match="names pandas.DataFrame.eval"):
        read_pickle(path)


def test_numeric_index_of_old_pandas():
    admitted = epic_splits._admitted()
    for name in ("Int64Index", "UInt64Index", "Float64Index"):
        assert admitted["pandas.core.indexes.numeric", name] is pd.Index
    assert not any(m == "builtins" and n != "slice" for m, n in admitted)


@pytest.mark.parametrize("keep", [0, 1, 40, 0.5, 0.99])
def test_damaged_pickle(tmp_path, keep):
    path = save(tmp_path / "D1_train.pkl", [record(i) for i in range(9)])
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    with pytest.raises(ValueError, match="D1_train.pkl is damaged: "):
        read_here(path)


def test_pickle_of_something_else(tmp_path):
    path = tmp_path / "D1_train.pkl"
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(ValueError, match="D1_train.pkl holds a list; expected"):
        read_pickle(path)


# --- rows -------------------------------------------------------------------

both = pytest.mark.parametrize("suffix", READERS)


@both
def test_rows(tmp_path, suffix):
    rows = [record(1), record(5, verb_class=0), record(6, narration=None)]
    segments = READERS[suffix](save(tmp_path / f"D1_train{suffix}", rows))
    rows[2]["narration"] = ""
    assert segments == [EpicSegment(**row) for row in rows]
    assert (segments[0].start, segments[0].stop) == pytest.approx((64.09, 65.84))
    assert all(type(s.uid) is type(s.verb_class) is int for s in segments)


@both
@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(verb_class=float("nan")), "verb_class is missing"),
        (dict(verb_class=8), "verb_class 8 is none of the 8 classes (0 to 7: take"),
        (dict(verb_class=-1), "verb_class -1 is none of the 8 classes"),
        (dict(verb_class=1.5), "verb_class '1.5' is not an integer"),
        (dict(verb_class=float("inf")), "verb_class 'inf' is not an integer"),
        (dict(verb_class="two"), "verb_class 'two' is not an integer"),
        (dict(stop_frame=3845), "stop_frame 3845 is not after start_frame 3845"),
        (dict(stop_frame=3000), "stop_frame 3000 is not after start_frame 3845"),
        (dict(start_frame=-1), "start_frame -1 is negative"),
        (dict(start_frame=float("nan")), "start_frame is missing"),
        (
            dict(stop_timestamp="00:01:04.00"),
            "stop_timestamp 00:01:04.00 is not after start_timestamp 00:01:04.09",
        ),
        (dict(start_timestamp="soon"), "'soon' is not a time HH:MM:SS.ff"),
        (dict(stop_timestamp="00:61:00"), "'00:61:00' is not a time HH:MM:SS.ff"),
        (dict(start_timestamp=None), "start_timestamp is missing"),
        (dict(video_id="../P08_01"), "video_id '../P08_01' is not the name of a video"),
        (dict(uid=1), "uid 1 stands in an earlier row already"),
    ],
)
def test_faulty_row(tmp_path, suffix, changes, message):
    rows = [record(1), {**record(2), **changes}, record(3)]
    path = save(tmp_path / f"D1_train{suffix}", rows)
    with pytest.raises(ValueError) as error:
        READERS[suffix](path)
    where = "line 3" if suffix == ".csv" else "row 1"
    assert str(error.value).startswith(f"{path}, {where}: {message}")


@both
@pytest.mark.parametrize("column", COLUMNS)
def test_missing_column(tmp_path, suffix, column):
    row = record(1)
    del row[column]
    path = save(tmp_path / f"D1_train{suffix}", [row])
    if column in ("narration", "verb"):
        assert getattr(READERS[suffix](path)[0], column) == ""
        return
    with pytest.raises(ValueError, match=f"{path} lacks the column '{column}'; it has"):
        READERS[suffix](path)


HEADER = ",".join(COLUMNS)
ROW = "1,P08,P08_01,café,00:00:01,00:00:02,60,120,take,0"


@pytest.mark.parametrize(
    "data, message",
    [
        (f"{HEADER}\n\n{ROW[:-9]}\n", "line 3: verb_class is missing"),
        (f"{HEADER}\n{ROW},0\n", "Expected 10 fields in line 2, saw 11"),
        (f'{HEADER}\n{ROW[:12]},"\n', "not a CSV file: .* inside string"),
        (f"{HEADER},uid\n{ROW},1\n", "has the column 'uid' twice"),
        ("", "is not a CSV file: No columns"),
        (f"{HEADER}\n{ROW}\n".encode("latin-1"), "line 2: the byte 0x.. is not U"),
        (f"{HEADER}\n{ROW}\n".encode("utf-16"), "line 1: the file is in UTF-16"),
    ],
)
def test_damaged_csv(tmp_path, data, message):
    path = tmp_path / "D1_train.csv"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(ValueError, match=message) as error:
        read_split(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_csv_of_another_program(tmp_path):
    """A byte order mark, Windows' line ends, empty lines."""
    path = tmp_path / "D1_train.csv"
    path.write_bytes(f"\n{HEADER}\n{ROW}\n\n".lstrip().encode("utf-8-sig"))
    expected = [replace(EpicSegment(**record()), narration="café")]
    (segment,) = read_split(path)
    assert (segment.narration, segment.stop, segment.verb_class) == ("café", 2.0, 0)
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert read_split(path) == [segment]
    write_csv(expected, path)
    assert read_split(path) == expected


@pytest.mark.parametrize(
    "text, value",
    [
        ("00:00:04.09", 4.09),
        ("01:02:03", 3723.0),
        ("00:10:00.50", 600.5),
        *((bad, math.nan) for bad in ("4.09", "00:61:00", "00:00:-1", "nan", "")),
    ],
)
def test_seconds(text, value):
    assert seconds(text) == pytest.approx(value, abs=1e-9, nan_ok=True)


# --- conversion -------------------------------------------------------------


def write_six(folder, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(epic_splits.SPLIT_NAMES):
        kitchen = KITCHENS[name[:2]]
        rows = [
            record(10 * i + k, participant_id=kitchen, video_id=f"{kitchen}_01")
            for k in range(2)
        ]
        rows[1].update(changes.get(name, {}))
        save(folder / f"{name}.pkl", rows)
    return folder


def test_convert_dry_run(tmp_path, capsys):
    source = write_six(tmp_path / "in")
    assert convert.main([str(source), str(tmp_path / "out"), "--dry-run"]) == 0
    assert "nothing written" in " ".join(capsys.readouterr().out.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(D2_test=dict(verb_class=9)), "D2_test.pkl, row 1: verb_class 9 is none"),
        (dict(D3_test=dict(uid=0)), "uid 0 stands in {}/D1_train.pkl and in"),
        ("missing", "error: {} lacks D3_test.pkl\n"),
        ("code", "{}/D3_test.pkl is refused: it names"),
    ],
)
def test_convert_faults(tmp_path, capsys, changes, message):
    faults = changes if isinstance(changes, dict) else {}
    source = write_six(tmp_path / "in", **faults)
    if changes == "missing":
        (source / "D3_test.pkl").unlink()
    elif changes == "code":
        (source / "D3_test.pkl").write_bytes(pickle.dumps(Call(os.system, "true")))
    assert convert.main([str(source), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message.format(source) in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_write_is_atomic(tmp_path):
    path = tmp_path / "D1_train.csv"
    write_csv([EpicSegment(**record(1))], path)
    before = path.read_bytes()

    def fails():
        yield EpicSegment(**record(2))
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError):
        write_csv(fails(), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["D1_train.csv"]
