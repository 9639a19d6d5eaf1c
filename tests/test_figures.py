"""The tables of figures are written from results, and from nothing else."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
RESULT: dict[str, Any] = {
    "name": "step",
    "question": "What does a step cost?",
    "against": "plain",
    "rows": [
        {"contender": "plain", "metric": "us", "median": 809.04, "ratio": 1.0},
        {"contender": "ours", "metric": "us", "median": 839.2, "ratio": 1.0373},
        {"contender": "ours", "metric": "MiB", "median": 3.0, "ratio": None},
    ],
    "date": "2026-11-21",
    "versions": {"python": "3.11.7", "torch": "2.13"},
    "machine": {"system": "Linux", "machine": "x86_64", "cpus": 2},
}


@pytest.fixture
def table() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "benchmarks" / "table.py"))


def test_a_table_has_all_figures(table: dict[str, Any]) -> None:
    """A line for each contender and figure."""
    assert table["table"](RESULT).splitlines() == [
        "| What does a step cost? | figure | median | x plain |",
        "|---|---|---|---|",
        "| plain | us | 809 | 1.00 |",
        "| ours | us | 839.2 | 1.04 |",
        "| ours | MiB | 3 |  |",
    ]


def test_the_origin_stands_once_below_what_was_taken_together(table: dict[str, Any]) -> None:
    """Date, versions and machine, again where they differ."""
    page = "<!-- figures --><!-- /figures -->"
    one = "2026-11-21; python 3.11.7, torch 2.13; Linux x86_64, 2 CPUs."
    other = one.replace("2026", "2027")
    text = table["with_figures"](page, [RESULT, RESULT, {**RESULT, "date": "2027-11-21"}])
    assert [line for line in text.splitlines() if line.startswith("20")] == [one, other]


def test_only_what_is_between_the_marks_is_replaced(table: dict[str, Any]) -> None:
    """Again and again with the same result; a page without marks is refused."""
    page = "# Title\n<!-- figures -->\nold\n<!-- /figures -->\nend\n"
    once = table["with_figures"](page, [RESULT])
    assert once.startswith("# Title\n<!-- figures -->\n\n| What") and once.endswith(
        "<!-- /figures -->\nend\n"
    )
    assert "old" not in once and table["with_figures"](once, [RESULT]) == once
    for wrong in ("", "<!-- figures -->", "<!-- /figures --><!-- figures -->", page + page):
        with pytest.raises(ValueError, match="marks"):
            table["with_figures"](wrong, [RESULT])


def test_both_pages_have_the_marks(table: dict[str, Any]) -> None:
    """README and the page on performance can be written."""
    for page in table["PAGES"]:
        assert "2026-11-21; python" in table["with_figures"](page.read_text(encoding="utf-8"), [RESULT])
