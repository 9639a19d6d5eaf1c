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
def table(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
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
    one = "2026-11-21; python 3.11.7, torch 2.13; Linux x86_64, 2 CPUs."
    other = one.replace("2026", "2027")
    text = table["tables"]([RESULT, RESULT, {**RESULT, "date": "2027-11-21"}])
    assert [line for line in text.splitlines() if line.startswith("20")] == [one, other]


def test_only_what_is_between_the_marks_is_replaced(table: dict[str, Any]) -> None:
    """Again and again with the same result; a page without marks is refused."""
    page = "# Title\n<!-- figures -->\nold\n<!-- /figures -->\nend\n"
    once = table["with_figures"](page, "new")
    assert once == "# Title\n<!-- figures -->\n\nnew\n\n<!-- /figures -->\nend\n"
    assert table["with_figures"](once, "new") == once
    for wrong in ("", "<!-- figures -->", "<!-- /figures --><!-- figures -->", page + page):
        with pytest.raises(ValueError, match="marks"):
            table["with_figures"](wrong, "new")


def test_the_headlines_stand_beside_their_peers_and_goals(table: dict[str, Any]) -> None:
    """What has not been measured is left out; the ratio is to the peer that is named."""
    rows = [
        {"contender": "orchestrator, cold", "metric": "call_to_first_step_s", "median": 6.05},
        {"contender": "orchestrator, warm", "metric": "call_to_first_step_s", "median": 0.0627},
        {"contender": "two bare actors", "metric": "call_to_first_step_s", "median": 5.0},
        {"contender": "Ray TorchTrainer", "metric": "call_to_first_step_s", "median": 22.72},
    ]
    assert table["headlines"]({"startup": {"rows": rows}}).splitlines()[2:] == [
        "| first step of a cold `fit` on two workers | 6.05 s | two bare actors 5 s, Ray TorchTrainer 22.7 s "
        "| 1.21 | <= 1.15 |",
        "| first step of a warm `fit` | 0.063 s | Ray TorchTrainer 22.7 s |  | <= 0.15 s |",
    ]


def test_both_pages_have_the_marks(table: dict[str, Any]) -> None:
    """README and the page on performance can be written."""
    for page in (table["README"], table["PERFORMANCE"]):
        assert "the figures" in table["with_figures"](page.read_text(encoding="utf-8"), "the figures")
