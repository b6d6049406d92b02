"""What documents repeat, or point to, is so."""

import re

import pytest
import yaml

import mmaction_mbcd
from tests_support import ROOT

PAGES = [ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("**/*.md"))]


def test_the_citation_names_the_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == mmaction_mbcd.__version__
    (paper,) = citation["references"]
    assert paper["year"] == 2026 and len(paper["authors"]) == 5


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_and_named_files_exist(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert (page.parent / target).exists(), target
    # A file that is given with its folder; <...>, {...} and * stand for several.
    for name in re.findall(
        r"`((?:configs|tests|tools|docs|requirements)/[^` ]*)`", text
    ):
        if not re.search(r"[<{*]|DATASET|METHOD|_build", name):
            assert (ROOT / name).exists(), name


def test_every_method_has_a_page_in_the_table():
    folder = ROOT / "docs" / "methods"
    bases = {p.stem for p in (ROOT / "configs/mbcd/_base_/methods").glob("*.py")}
    methods = {m for m in bases if not m.startswith(("table", "mbcd_", "cmrf_"))}
    pages = {p.stem for p in folder.glob("*.md")} - {"index"}
    assert pages == methods | {"mer_dg"}
    index = (folder / "index.md").read_text()
    assert {m for m in re.findall(r"\| \[[^]]+\]\((\w+)\.md\)", index)} == pages
