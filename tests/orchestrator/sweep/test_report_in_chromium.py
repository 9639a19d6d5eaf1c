"""The page about a sweep as a browser shows it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.sweep.report import render
from tests.chromium import dump_dom, needs_chromium, photograph
from tests.orchestrator.sweep.test_report import trial

MANY = [
    trial(n, [(1 + n % 4) / (step + n / 9) for step in range(1, 10 - n % 7)], ["finished", "stopped"][n % 2],
          lr=10 ** (-n / 3), width=32 * (1 + n % 3), kind=["adam", "sgd"][n // 2 % 2])
    for n in range(8)
]  # fmt: skip
FAILED = [
    replace(trial(n, [], "failed", lr=1.0, width=32, kind="adam"), error="ValueError: no such width. " * 12)
    for n in (8, 9)
]
CLICK_AND_MOVE = """<script>
document.querySelectorAll("th")[3].click();
document.querySelector("[data-trial]").dispatchEvent(new MouseEvent("mouseover", { bubbles: true }));
</script>"""

pytestmark = needs_chromium


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_sweep_can_be_photographed(tmp_path: Path, dark: bool) -> None:
    """In both schemes."""
    page = tmp_path / "page.html"
    page.write_text(render("digits", "loss", "min", [*MANY, *FAILED]))
    photograph(page, f"sweep-{'dark' if dark else 'light'}", height=2400, dark=dark)


def test_a_sweep_without_results_can_be_photographed(tmp_path: Path) -> None:
    """It tells why its trials failed."""
    page = tmp_path / "page.html"
    page.write_text(render("typo", "loss", "min", FAILED))
    photograph(page, "failed-sweep", height=800)


def test_its_trials_are_sorted_and_found_in_all_charts(tmp_path: Path) -> None:
    """By a click on a heading, and by the pointer on one of their marks."""
    page = tmp_path / "page.html"
    page.write_text(render("digits", "loss", "min", MANY).replace("</body>", CLICK_AND_MOVE + "</body>"))
    shown = dump_dom(page)
    first = shown.partition("<tbody>")[2].partition("</tr>")[0]
    best = min(MANY, key=lambda record: record.best("loss", "min")[1])  # type: ignore[index]
    assert f'data-trial="{best.number}"' in first
    assert shown.count('class="trial on"') == 3 and shown.count('class="on"') == 1
