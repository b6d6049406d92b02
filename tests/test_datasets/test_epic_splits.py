import importlib.util
import os
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mmaction_mbcd.datasets.epic_splits import (
    CLASSES,
    COLUMNS,
    EpicSegment,
    read_split,
    read_splits,
    seconds,
    split_file,
    write_csv,
)

ROOT = Path(__file__).parents[2]
SPLITS = (
    Path(os.environ.get("MBCD_SPLITS") or ROOT.parent / "shared" / "data" / "splits")
    / "epic"
)
COUNTS = dict(D1=(1543, 435, 1978), D2=(2495, 750, 3245), D3=(3897, 974, 4871))


def load_tool():
    path = ROOT / "tools" / "data" / "epic" / "convert_splits.py"
    spec = importlib.util.spec_from_file_location("tool_convert_splits", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


convert = load_tool()


@pytest.fixture
def real():
    if not SPLITS.is_dir():
        pytest.skip(f"the real split files are not in {SPLITS} (set MBCD_SPLITS)")
    return str(SPLITS)


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


@pytest.mark.parametrize("domain", COUNTS)
def test_published_counts(real, domain):
    parts = [read_split(f"{real}/{domain}_{s}.pkl") for s in ("train", "test")]
    assert (len(parts[0]), len(parts[1]), sum(map(len, parts))) == COUNTS[domain]
    kitchen = dict(D1="P08", D2="P01", D3="P22")[domain]
    for segment in parts[0] + parts[1]:
        assert segment.participant_id == kitchen
        assert segment.video_id.startswith(f"{kitchen}_")
        # 60 frames per second: time and frame agree to a frame.
        assert -1 <= 60 * segment.start - segment.start_frame <= 1
        assert -1 <= 60 * segment.stop - segment.stop_frame <= 1


def test_published_files_share_no_uid(real):
    splits = read_splits(real)
    uids = Counter(s.uid for segments in splits.values() for s in segments)
    assert len(uids) == 10094 and set(uids.values()) == {1}


def test_published_class_names(real):
    """Each name is a verb of its own id and of no other."""
    ids = {name: Counter() for name in CLASSES}
    for segments in read_splits(real).values():
        for segment in segments:
            if segment.verb in ids:
                ids[segment.verb][segment.verb_class] += 1
    assert [list(counter) for counter in ids.values()] == [[i] for i in range(8)]
    assert CLASSES == ("take", "put", "open", "close", "wash", "cut", "mix", "pour")


def test_published_first_row(real):
    assert read_split(f"{real}/D1_train.pkl")[0] == EpicSegment(
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
    with pytest.raises(pickle.UnpicklingError, match=name + ", which") as error:
        read_split(path)
    assert str(path) in str(error.value)
    assert not mark.exists()


def test_dotted_name_is_refused(tmp_path):
    """Protocol 4 could reach a method through an admitted class."""
    path = tmp_path / "D1_train.pkl"
    text = b"\x80\x04\x8c\x06pandas\x8c\x0eDataFrame.eval\x93."
    path.write_bytes(text)
    with pytest.raises(pickle.UnpicklingError, match="names pandas.DataFrame.eval"):
        read_split(path)


@pytest.mark.parametrize(
    "old, new",
    [
        (b"pandas.core.indexes.base", b"pandas.indexes.base"),
        (b"pandas.core.indexes.range", b"pandas.indexes.range"),
        (b"numpy.core.multiarray", b"numpy._core.multiarray"),
    ],
)
def test_other_module_names(real, tmp_path, old, new):
    source = Path(real, "D1_test.pkl")
    data = source.read_bytes()
    # A short string holds its length in the byte before it; a frame holds its own.
    coded = [bytes([0x8C, len(s)]) + s for s in (old, new)]
    assert data.count(coded[0]) == 1 and data[2:3] == b"\x95"
    data = data.replace(*coded)
    size = int.from_bytes(data[3:11], "little") + len(new) - len(old)
    path = tmp_path / "D1_test.pkl"
    path.write_bytes(data[:3] + size.to_bytes(8, "little") + data[11:])
    assert read_split(path) == read_split(source)


def test_numeric_index_of_old_pandas():
    from mmaction_mbcd.datasets.epic_splits import _admitted

    admitted = _admitted()
    for name in ("Int64Index", "UInt64Index", "Float64Index"):
        assert admitted["pandas.core.indexes.numeric", name] is pd.Index
    assert not any(m == "builtins" and n != "slice" for m, n in admitted)


@pytest.mark.parametrize("keep", [0, 1, 40, 0.5, 0.99])
def test_damaged_pickle(tmp_path, keep):
    path = save(tmp_path / "D1_train.pkl", [record(i) for i in range(9)])
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    with pytest.raises(ValueError, match="D1_train.pkl cannot be unpickled"):
        read_split(path)


def test_pickle_of_something_else(tmp_path):
    path = tmp_path / "D1_train.pkl"
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(ValueError, match="D1_train.pkl holds a list; expected"):
        read_split(path)


# --- rows -------------------------------------------------------------------

both = pytest.mark.parametrize("suffix", [".pkl", ".csv"])


def where(path, row):
    """How an error names the row with this index."""
    return f"{path}, line {row + 2}" if path.suffix == ".csv" else f"{path}, row {row}"


@both
def test_rows(tmp_path, suffix):
    path = save(tmp_path / f"D1_train{suffix}", [record(1), record(5, verb_class=0)])
    segments = read_split(path)
    assert segments == [
        EpicSegment(**record(1)),
        EpicSegment(**record(5, verb_class=0)),
    ]
    assert (segments[0].start, segments[0].stop) == pytest.approx((64.09, 65.84))
    assert all(type(s.uid) is type(s.verb_class) is int for s in segments)


@both
@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(verb_class=float("nan")), "verb_class is missing (NaN)"),
        (dict(verb_class=8), "verb_class 8 is none of the 8 classes (0 to 7: take"),
        (dict(verb_class=-1), "verb_class -1 is none of the 8 classes"),
        (dict(verb_class=1.5), "verb_class 1.5 is no integer"),
        (dict(verb_class=float("inf")), "verb_class inf is no integer"),
        (dict(stop_frame=3845), "stop_frame 3845 is not after start_frame 3845"),
        (dict(stop_frame=3000), "stop_frame 3000 is not after start_frame 3845"),
        (dict(start_frame=-1), "start_frame -1 is negative"),
        (dict(start_frame=float("nan")), "start_frame is missing (NaN)"),
        (
            dict(stop_timestamp="00:01:04.00"),
            "stop_timestamp 00:01:04.00 is not after start_timestamp 00:01:04.09",
        ),
        (dict(start_timestamp="soon"), "'soon' is no time HH:MM:SS.ff"),
        (dict(start_timestamp=None), "start_timestamp is missing (NaN)"),
        (dict(video_id="../P08_01"), "video_id '../P08_01' is not the name of a video"),
        (dict(uid=1), "uid 1 stands in"),
    ],
)
def test_faulty_row(tmp_path, suffix, changes, message):
    rows = [record(1), {**record(2), **changes}, record(3)]
    path = save(tmp_path / f"D1_train{suffix}", rows)
    with pytest.raises(ValueError) as error:
        read_split(path)
    text = str(error.value).replace("'1.5'", "1.5").replace("'inf'", "inf")
    assert text.startswith(f"{where(path, 1)}: {message}")
    if "uid" in changes:
        assert text.endswith(where(path, 0).split(", ")[1] + " already")


@both
@pytest.mark.parametrize("column", COLUMNS)
def test_missing_column(tmp_path, suffix, column):
    row = record(1)
    del row[column]
    path = save(tmp_path / f"D1_train{suffix}", [row])
    if column in ("narration", "verb"):
        assert getattr(read_split(path)[0], column) == ""
        return
    with pytest.raises(ValueError, match=f"{path} lacks the column '{column}'; it has"):
        read_split(path)


@both
def test_missing_narration(tmp_path, suffix):
    path = save(tmp_path / f"D1_train{suffix}", [record(1), record(2, narration=None)])
    assert [s.narration for s in read_split(path)] == ['open, "the" fridge', ""]


def test_damaged_csv(tmp_path):
    path = save(tmp_path / "D1_train.csv", [record(1), record(2)])
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ValueError, match="line 3: expected 10 fields"):
        read_split(path)
    path.write_text("")
    with pytest.raises(ValueError, match="lacks the column 'uid', .* it has none"):
        read_split(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is not a CSV file"):
        read_split(path)


def test_unknown_suffix_and_missing_file(tmp_path):
    with pytest.raises(ValueError, match="ends with .pkl or .csv"):
        read_split(tmp_path / "D1_train.parquet")
    for suffix in (".csv", ".pkl"):
        with pytest.raises(FileNotFoundError):
            read_split(tmp_path / f"D1_train{suffix}")


@pytest.mark.parametrize(
    "text, value",
    [("00:00:04.09", 4.09), ("01:02:03", 3723.0), ("00:10:00.50", 600.5)],
)
def test_seconds(text, value):
    assert seconds(text) == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("text", ["4.09", "00:61:00", "00:00:-1", "nan", "", None])
def test_no_time(text):
    with pytest.raises(ValueError, match="is no time"):
        seconds(text)


# --- conversion -------------------------------------------------------------


def write_six(folder, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    kitchens = dict(D1="P08", D2="P01", D3="P22")
    for i, name in enumerate(f"{d}_{s}" for d in kitchens for s in ("train", "test")):
        kitchen = kitchens[name[:2]]
        rows = [
            record(10 * i + k, participant_id=kitchen, video_id=f"{kitchen}_01")
            for k in range(2)
        ]
        rows[1].update(changes.get(name, {}))
        save(folder / f"{name}.pkl", rows)
    return folder


def test_convert_keeps_every_row(real, tmp_path, capsys):
    assert convert.main([real, str(tmp_path / "out")]) == 0
    files = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert files == [f"D{d}_{s}.csv" for d in (1, 2, 3) for s in ("test", "train")]
    for name in files:
        pickled = read_split(f"{real}/{name[:-3]}pkl")
        assert read_split(tmp_path / "out" / name) == pickled
    out = capsys.readouterr().out
    for counts in COUNTS.values():
        assert all(str(n) in out for n in counts)
    assert "…" not in out


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
    ],
)
def test_convert_faults(tmp_path, capsys, changes, message):
    source = write_six(tmp_path / "in", **changes)
    assert convert.main([str(source), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message.format(source) in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_convert_refuses_code(tmp_path, capsys):
    source = write_six(tmp_path / "in")
    (source / "D3_test.pkl").write_bytes(pickle.dumps(Call(os.system, "true")))
    assert convert.main([str(source), str(tmp_path / "out")]) == 2
    assert "system, which an annotation file" in capsys.readouterr().err


def test_convert_missing_files(tmp_path, capsys):
    source = write_six(tmp_path / "in")
    (source / "D1_test.pkl").unlink()
    assert convert.main([str(source), str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == f"error: {source} lacks D1_test.pkl\n"


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


def test_csv_is_preferred(tmp_path):
    folder = str(tmp_path)
    assert split_file(folder, "D1", "train") == f"{folder}/D1_train.pkl"
    save(tmp_path / "D1_train.pkl", [record(1)])
    save(tmp_path / "D1_train.csv", [record(1)])
    assert split_file(folder, "D1", "train") == f"{folder}/D1_train.csv"
