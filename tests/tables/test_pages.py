"""The pages' generated tables are those of the results, and what README says to type exists."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from lora2.config.parse import parse_yaml
from lora2.records.store import write_pages
from lora2.tables.pages import BLOCK, PAGES, first_table, main, refresh

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_tables_are_not_stale():
    assert main(["--check"]) == 0
    blocks = {path.name: len(BLOCK.findall(path.read_text(encoding="utf-8"))) for path in PAGES}
    assert blocks["embedded.md"] >= 4 and blocks["bench.md"] >= 1


def test_the_readme_stays_short_and_without_long_tables():
    assert len(README.splitlines()) <= 150
    rows = re.findall(r"(?:^\|.*\n)+", README, re.M)
    assert all(len(table.splitlines()) <= 12 for table in rows)


def test_every_test_that_a_page_names_exists():
    files = list((ROOT / "tests").rglob("test_*.py"))
    known = {path.name for path in files}
    for path in files:
        text = path.read_text(encoding="utf-8")
        known |= set(re.findall(r"def (test_\w+)", text) + re.findall(r'"(test_\w+\.py)":', text))
    named = [name for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
             for name in re.findall(r"\btest_\w+(?:\.py)?", path.read_text(encoding="utf-8"))
             ]  # fmt: skip
    known |= {"test_matched", "test_mismatched"}  # splits
    assert len(named) > 40 and [name for name in named if name not in known] == []


def test_a_changed_table_is_noticed(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "t.md").write_text("# T\n\n| a |\n|---|\n| 1 |\n\n## U\n\nrest\n")
    text = "x\n<!-- begin results/t.md -->\nold\n<!-- end -->\ny\n"
    fresh = refresh(text, tmp_path)
    assert "### T" in fresh and "| 1 |" in fresh and "old" not in fresh and "rest" not in fresh
    assert refresh(fresh, tmp_path) == fresh


def test_a_stale_page_is_named_and_only_written_without_check(tmp_path, capsys):
    page, same = tmp_path / "page.md", tmp_path / "same.md"
    page.write_text("old")
    same.write_text("same")
    texts = {page: "new", same: "same"}
    assert write_pages(texts, ["--check"], "make report") == 1 and page.read_text() == "old"
    assert capsys.readouterr().err == "page.md is stale: run make report\n"
    assert write_pages(texts, [], "make report") == 0 and page.read_text() == "new"
    assert write_pages(texts, ["--check"], "make report") == 0
    texts[page] = "newer"
    assert write_pages(texts, ["--chek"], "make report") == 2 and page.read_text() == "new"


def test_a_missing_table_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        refresh("<!-- begin results/none.md -->\n<!-- end -->", tmp_path)


def test_the_first_table_is_taken_with_the_notes_under_it():
    whole = "# A\n\n## best\n\n| x |\n|---|\n\n- Runs of 2 commits are mixed.\n\n## B\n\n| y |"
    first = "### A\n\n#### best\n\n| x |\n|---|\n\n- Runs of 2 commits are mixed."
    assert first_table(whole) == first


def test_what_a_quickstart_takes_stands_in_the_readme_alone():
    assert re.search(r"make quickstart .* \d+ minutes on two cores", README)
    for path in (ROOT / "Makefile", *(ROOT / "docs").glob("*.md")):
        assert not re.search(r"\d+ min[^.]*\son two cores", path.read_text(encoding="utf-8")), path


def test_both_versions_of_the_paper_are_named_alike():
    citation = parse_yaml((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    (paper,) = citation["references"]
    numbers = [one["value"].removeprefix("arXiv:") for one in paper["identifiers"]]
    assert numbers == ["2408.06854v1", "10.1016/j.neucom.2025.130859"]
    first_lines = README.partition("## As a library")[0]
    audit = (ROOT / "results" / "paper" / "audit.md").read_text(encoding="utf-8")
    for number in numbers:
        assert number in first_lines and number in audit
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])


def test_links_and_make_targets_exist():
    for link in re.findall(r"\]\(((?!http)[^)#]+)\)", README):
        assert (ROOT / link).exists(), link
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.M))
    (tables,) = re.findall(r"^TABLES := (.*)", makefile, re.M)
    targets |= {f"reproduce-{table}" for table in tables.split()}
    assert set(re.findall(r"\bmake (?:-s )?([a-z0-9-]+)", README)) - targets == set()
    for script in re.findall(r"\bscripts/[a-z_]+\.(?:py|sh)", README):
        assert (ROOT / script).is_file(), script
