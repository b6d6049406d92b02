"""The page of a grid: its numbers, what it does without runs, and a real browser."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from helpers.grids import START, FakeGrid
from mmaction_mbcd.errors import UsageError
from mmaction_mbcd.experiments import report, tables
from tests_support import load_tool

CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two methods, two targets, two seeds."""
    out = tmp_path_factory.mktemp("report") / "grid"
    return FakeGrid(out, rules=("source", "oracle"), reference="erm").finished()


@pytest.fixture(scope="module")
def data(finished):
    return report.gather(finished)


def table_of(data, rule="source", head=""):
    (found,) = [t for t in data["tables"] if (t["rule"], t["head"]) == (rule, head)]
    return found


class Page(HTMLParser):
    """Elements, and the text of each kind."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], {}
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        if self.tags:
            self.text.setdefault(self.tags[-1], []).append(data)


# --------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("head", ["", "video", "student/audio"])
@pytest.mark.parametrize("rule", ["source", "oracle"])
def test_the_numbers_are_those_of_the_tables(finished, data, rule, head):
    shown = table_of(data, rule, head)
    reference = next(iter(shown["differences"]), None)
    expected = tables.summarise(
        tables.read_records(finished, rule, "target", head), reference
    )
    frame = report._frame(shown)
    assert frame["method"].tolist() == expected["method"].tolist()
    assert frame["target"].tolist() == expected["target"].tolist()
    for name in ("N", "seeds", "mean", "std", "low", "high", "p_next"):
        np.testing.assert_array_equal(
            frame[name].astype(float), expected[name].astype(float)
        )
    assert (reference is None) == (head == "student/audio")  # of mbcd alone
    if reference is not None:
        columns = expected.reindex(columns=report._DIFFERENCE).astype(float)
        found = np.array(shown["differences"][reference], float)
        np.testing.assert_array_equal(found, columns)


def test_the_fused_head_is_compared_with_every_method(finished, data):
    compared = table_of(data)["differences"]
    assert list(compared) == ["erm", "mbcd"]
    ahead, behind = (np.array(compared[m], float)[:, 0] for m in ("erm", "mbcd"))
    # Rows are erm and mbcd by target; what one is above the other is below it.
    np.testing.assert_allclose(ahead[1::2], -behind[0::2])
    assert list(table_of(data, head="video")["differences"]) == ["erm"]


def test_confusion_counts_worked_by_hand():
    labels = np.array([0, 0, 1, 2, -1, 2])
    predicted = np.array([0, 1, 1, 0, 0, -1])
    counts = report.confusion(labels, predicted, 3)
    assert counts.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]


def test_classes_add_up_to_the_accuracy(data):
    frame = report._frame(table_of(data))
    for each in data["classes"]:
        if each["rule"] != "source":
            continue
        row = frame[
            (frame["method"] == each["method"]) & (frame["target"] == each["target"])
        ].iloc[0]
        accuracy = 100 * sum(each["right"]) / sum(each["clips"])
        assert accuracy == pytest.approx(row["mean"])
        assert sum(each["clips"]) == row["N"] * row["seeds"]
        assert np.sum(each["matrix"]) == sum(each["clips"])


def test_curves_are_the_logged_ones_in_percent(finished, data):
    run = finished.runs[-1]  # of mbcd, which reports a student beside
    (curve,) = [c for c in data["curves"] if finished.runs[c["run"]] is run]
    path = next(run.folder.path.glob("*/vis_data/scalars.json"))
    logged = [json.loads(line) for line in path.read_text().splitlines()]
    assert curve["epochs"] == [1, 2, 3]
    heads = {"", "video", "audio", "student", "student/video", "student/audio"}
    assert set(curve["source"]) == set(curve["target"]) == heads  # no domains
    for role, head, key in (
        ("source", "", "source/top1"),
        ("target", "video", "target/video/top1"),
        ("target", "student/audio", "student/target/audio/top1"),
    ):
        expected = [100 * row[key] for row in logged]
        assert curve[role][head] == pytest.approx(expected, abs=1e-9)
    assert curve["chosen"]["source"] == 1 + np.argmax(
        [row["source/top1"] for row in logged]
    )


def test_the_oracle_is_said_on_top(data):
    assert "rule oracle chooses checkpoints by the target's own" in data["warnings"][0]
    assert "(oracle)" in report.render(data)


def test_a_reference_that_is_no_method(finished):
    with pytest.raises(UsageError, match="'emr' is no method of the grid; .* erm, mb"):
        report.gather(finished, "emr")


def test_time_by_method(data):
    erm, mbcd = data["costs"]
    assert (erm["name"], erm["runs"], erm["train"], erm["test"]) == ("ERM", 4, 10, 0.5)
    assert mbcd["train"] == 15
    assert mbcd["hours"] == pytest.approx(4 * (900 + 30) / 3600)


def test_configs_differ_in_what_they_differ(data):
    (configs,) = data["configs"]
    assert configs["methods"] == ["ERM", "MBCD"]
    assert configs["differing"]["model.objectives.0.type"] == [
        '"ErmLoss"', '"MbcdLoss"',
    ]  # fmt: skip
    assert configs["overrides"] == [dict(methods=["ERM", "MBCD"], settings=["lr=0.01"])]
    assert configs["common"]["optim_wrapper.optimizer.lr"] == "0.01"
    target = configs["by_run"]["test_dataloader.dataset.target"]
    assert target == ['"street"', '"studio"']


def test_data_is_json_without_nan(data):
    text = json.dumps(data, allow_nan=False)
    assert json.loads(text) == data


# ----------------------------------------------------------- what may be wrong


def test_mixtures_are_said_on_top(tmp_path):
    grid = FakeGrid(tmp_path / "grid", targets=("street",), modalities=["video"])
    experiment = grid.plan()
    other = dict(revision="ffff+", versions=START["versions"] | dict(torch="2.8.0"))
    for i, run in enumerate(experiment.runs):
        grid.finish(run, **(other if i == 1 else {}))
    (experiment.out / "runs" / "synth_action" / "of_another_config").mkdir()
    data = report.gather(experiment)
    said = "\n".join(data["warnings"])
    assert "several revisions of the code: 0123456789ab, ffff+" in said
    assert "several versions of torch: 2.8.0, 2.9.0" in said
    assert "not committed" in said and "Not of this grid" in said
    assert [each["runs"] for each in data["environments"]] == [3, 1]
    assert "several versions of torch" in report.render(data)


def test_a_page_before_anything_ran(tmp_path):
    data = report.gather(FakeGrid(tmp_path / "grid").plan())
    assert data["counts"] == {"waiting": 8}
    assert data["curves"] == data["costs"] == data["configs"] == []
    page = report.render(data)
    assert "no run of" in page and "No run was started yet." in page


def test_a_page_of_one_run(tmp_path):
    grid = FakeGrid(
        tmp_path / "grid", methods=dict(erm=0.5), targets=("street",), seeds=(0,)
    )
    data = report.gather(grid.finished())
    (row,) = report._frame(table_of(data)).to_dict("records")
    assert np.isnan(row["std"]) and row["covers"] == "clips"
    assert data["findings"] == []  # it is the best of one
    assert f"{row['mean']:.1f}" in report.render(data)


def test_failures_and_damage_leave_the_rest(tmp_path):
    grid = FakeGrid(
        tmp_path / "grid", targets=("street",), seeds=(0, 1, 2), modalities=["video"]
    )
    experiment = grid.plan()
    failed, damaged, cut, *others = experiment.runs
    grid.fail(failed, "train: RuntimeError: no memory", "line 1\nline 2\nno memory\n")
    for run in (damaged, cut, *others):
        grid.finish(run)
    (damaged.folder.path / "predictions_last.npz").write_bytes(b"\x00 not a zip")
    (damaged.folder.path / "run.json").write_text("{")
    (damaged.folder.path / "results_source.json").write_text("[]")
    log = next(cut.folder.path.glob("*/vis_data/scalars.json"))
    log.write_text('{"source/top1": 0.5, "st')
    predictions = cut.folder.predictions_file("source")
    predictions.write_bytes(predictions.read_bytes()[:-40])

    data = report.gather(experiment)
    assert data["counts"] == dict(failed=1, finished=5)
    (failure,) = data["failures"]
    assert failure["error"] == "train: RuntimeError: no memory"
    assert failure["log"] == f"runs/synth_action/{failed.folder.path.name}/train.log"
    assert failure["tail"] == "line 1\nline 2\nno memory"
    assert sum(text.startswith("Damaged") for text in data["warnings"]) == 2
    # What is left is in the table: one seed of erm by each rule, all of mbcd.
    frame = report._frame(table_of(data))
    assert frame[["method", "seeds"]].to_numpy().tolist() == [["erm", 1], ["mbcd", 3]]
    assert cut not in [experiment.runs[c["run"]] for c in data["curves"]]
    page = report.render(data)
    assert "no memory" in page and failure["log"] in page


def test_pictures_of_the_folder_are_in_the_page(tmp_path):
    experiment = FakeGrid(tmp_path, targets=("studio",), seeds=(0,)).finished()
    folder = tmp_path / "figures"
    folder.mkdir()
    (folder / "flatness.svg").write_text("<svg/>")
    (folder / "flatness.png").write_bytes(b"\x89PNG, and larger")
    (folder / "huge.png").write_bytes(bytes(report._FIGURE_BYTES + 1))
    data = report.gather(experiment)
    (picture,) = data["figures"]
    assert picture == dict(
        name="flatness", address="data:image/svg+xml;base64,PHN2Zy8+"
    )
    assert data["large_figures"] == ["huge"]
    assert "in the folder <code>figures</code>: huge." in report.render(data)


def test_the_page_has_room_for_so_many_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "_ALL_FIGURES_BYTES", 10)
    for name, size in (("a", 6), ("b", 3), ("c", 2), ("d", 1)):
        (tmp_path / f"{name}.png").write_bytes(bytes(size))
    # Of two files of a picture the smaller one counts, however large the other is.
    (tmp_path / "d.svg").write_bytes(bytes(500))
    chosen, large = report._figures(tmp_path)
    assert [path.name for path in chosen] == ["b.png", "c.png", "d.png"]
    assert large == [tmp_path / "a"]


# ----------------------------------------------------------------------------- page

EVIL = "</script><script>document.title = 'caught'</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def evil(tmp_path_factory):
    """A grid all names of which are markup."""
    grid = FakeGrid(
        tmp_path_factory.mktemp("evil") / "<b>grid",
        methods={"erm": 0.5, "<img src=x onerror=alert(1)>": 0.6},
        names={"erm": EVIL},
        domains=("<i>a", "b"),
        targets=("<i>a",),
        classes=(EVIL, "c", "d"),
        modalities=("<u>video", "audio"),
    )
    experiment = grid.plan()
    *runs, last = experiment.runs
    for run in runs:
        grid.finish(run, processor=EVIL)
    grid.fail(last, EVIL)
    return report.gather(experiment)


def test_names_are_text(evil, data):
    page, other = report.render(evil), report.render(data)
    wanted = Page(other)
    found = Page(page)
    # Not one element more of these kinds than in a page of harmless names.
    for tag in ("script", "img", "i", "u"):
        assert found.tags.count(tag) == wanted.tags.count(tag)
    assert evil["methods"][0]["name"] == EVIL
    assert any(EVIL in text for text in found.text["th"])


def test_the_verb_writes_the_page(finished, capsys):
    assert load_tool("experiment").main(["report", "--out", str(finished.out)]) == 0
    path = finished.out / "report.html"
    assert str(path) in capsys.readouterr().out
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_nothing_is_loaded(data):
    page = Page(report.render(data))
    addresses = [v for k, v in page.attributes if k in ("src", "href", "action")]
    assert addresses and all(v.startswith(("#", "data:")) for v in addresses)
    content = "".join(page.text["style"] + page.text["script"])
    assert not re.search(r"url\(|@import|\bfetch\(|XMLHttpRequest|import\(", content)
    # The one address is a name: SVG's.
    assert set(re.findall(r"https?://[^\"' ]*", content)) == {
        "http://www.w3.org/2000/svg"
    }


def test_the_page_is_small(data):
    # 500 runs of 20 epochs were measured at 2.5 MB; what does not grow is little.
    assert len(report.render(data)) < 150_000


# ---------------------------------------------------------------------- real browser


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip(
        "playwright.sync_api", reason="the browser test needs playwright"
    )
    if CHROMIUM is None:
        pytest.skip("the browser test needs chromium")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield started
        started.close()


class Visit:
    """A page that is open, with all that it complained of or asked for."""

    def __init__(self, browser, path: Path, **settings):
        self.complaints, self.requests = [], []
        self.page = browser.new_context(**settings).new_page()
        self.page.on("console", lambda m: self.complaints.append(m.text))
        self.page.on("pageerror", lambda e: self.complaints.append(str(e)))
        self.page.on("request", lambda r: self.requests.append(r.url))
        self.address = path.as_uri()
        self.page.goto(self.address)

    def column(self, index):
        rows = self.page.locator("#results-app tbody tr")
        return [
            rows.nth(i).locator("td, th").nth(index).inner_text()
            for i in range(rows.count())
        ]

    def heads(self):
        return self.page.locator("#results-app thead th[data-column='1']")

    def lines(self, **of):
        wanted = "".join(f"[data-{key}='{value}']" for key, value in of.items())
        return self.page.locator(f"#curves-app path.line{wanted}").count()

    def box(self, group, value):
        return self.page.locator(
            f"fieldset[data-boxes='{group}'] input[value='{value}']"
        )

    def choice(self, title):
        return self.page.locator("#results-app").get_by_role("combobox", name=title)

    def end(self):
        """Closes it; it asked for nothing but itself and complained of nothing."""
        self.page.context.close()
        asked = [url for url in self.requests if not url.startswith("data:")]
        assert asked == [self.address] and self.complaints == []


@pytest.fixture(scope="module")
def written(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(report.render(data), encoding="utf-8")
    return path


def test_tables_sort_and_rules_switch(browser, written, data):
    visit = Visit(browser, written)
    assert [name.split("\n")[0] for name in visit.column(0)] == ["ERM", "MBCD"]
    frame = report._frame(table_of(data))
    means = frame.iloc[:2]["mean"]
    assert means[1] > means[0]
    head = visit.heads()
    assert head.get_attribute("aria-sort") == "none"
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert visit.column(0)[0] == "MBCD"
    # The figure's rows follow.
    panel = visit.page.locator("#forest .label").first
    assert panel.text_content().startswith("MBCD")
    head.locator("button").press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert visit.column(0)[0].startswith("ERM")

    first = visit.page.locator("#results-app tbody td").first
    first.hover()
    tip = visit.page.locator("#tip").inner_text()
    row = frame.iloc[0]
    assert f"[{row['low']:.1f}, {row['high']:.1f}], 95 % over clips and seeds" in tip
    visit.box("Columns", "interval").check()
    assert visit.column(2)[0] == f"[{row['low']:.1f}, {row['high']:.1f}]"
    with visit.page.expect_download() as download:
        visit.page.get_by_role("button", name="Save this table as CSV").click()
    saved = pd.read_csv(download.value.path())
    np.testing.assert_allclose(saved["mean"], frame["mean"], rtol=1e-5)
    assert saved["difference"].notna().sum() == 3  # of mbcd, two targets, average

    visit.choice("Checkpoint chosen by").select_option("oracle")
    shown = report._frame(table_of(data, "oracle")).iloc[0]
    assert visit.column(1)[0] == f"{shown['mean']:.1f} ± {shown['std']:.1f}"
    assert "(oracle)" in visit.page.locator("#results-caption").inner_text()
    visit.choice("Head").select_option("student")
    assert visit.column(0) == ["MBCD"]
    visit.end()


def test_curves_are_switched_off_and_on(browser, written):
    visit = Visit(browser, written)
    # Two targets, two roles: each method's two seeds and their mean.
    assert visit.lines(method="mbcd") == visit.lines(method="erm") == 12
    visit.box("Methods", "mbcd").uncheck()
    assert visit.lines(method="mbcd") == 0 and visit.lines(method="erm") == 12
    visit.box("Seeds", "1").uncheck()
    assert visit.lines(seed="1") == 0 and visit.lines() == 8
    visit.box("Heads", "video").check()
    assert visit.lines(head="video") == 8
    visit.box("Measured on", "target").uncheck()
    assert visit.lines() == 8
    visit.box("Methods", "mbcd").check()
    visit.box("Heads", "student").check()
    assert visit.lines(head="student", method="mbcd") == 4
    visit.end()


def test_it_fits_a_telephone_in_the_dark(browser, written):
    visit = Visit(
        browser, written, viewport=dict(width=360, height=700), color_scheme="dark"
    )
    widths = "[document.documentElement.scrollWidth, innerWidth]"
    assert visit.page.evaluate(widths) == [360, 360]
    background = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(map(int, re.findall(r"\d+", background))) < 150
    visit.end()


def test_tables_are_there_without_scripts(browser, written, data):
    visit = Visit(browser, written, java_script_enabled=False)
    table = visit.page.locator("#static-tables table").first
    row = report._frame(table_of(data)).iloc[0]
    expected = f"{row['mean']:.1f} ± {row['std']:.1f} [{row['low']:.1f}, "
    assert expected in " ".join(table.inner_text().split())
    assert not visit.page.locator("#curves").is_visible()
    visit.end()


def test_no_name_runs(browser, evil, tmp_path):
    path = tmp_path / "evil.html"
    path.write_text(report.render(evil), encoding="utf-8")
    visit = Visit(browser, path)
    assert visit.page.title() == "<b>grid: experiment report"
    assert visit.column(0)[0].startswith("</script><script>document.title")
    assert visit.page.locator("main img").count() == 0
    assert visit.lines() > 0
    visit.end()


@pytest.mark.parametrize("run", [False, True])
def test_pages_of_nothing_and_of_one_run(browser, tmp_path, run):
    grid = FakeGrid(
        tmp_path / "grid", methods=dict(erm=0.5), targets=("street",), seeds=(0,)
    )
    experiment = grid.finished() if run else grid.plan()
    path = tmp_path / "report.html"
    path.write_text(report.render(report.gather(experiment)), encoding="utf-8")
    visit = Visit(browser, path)
    assert visit.page.locator("#results-app").inner_text().strip()
    assert (visit.lines() > 0) == run
    visit.end()
