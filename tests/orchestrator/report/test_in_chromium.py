"""The pages as a browser shows them: drawn, without an error, and telling what is under the pointer."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.report.page import Told, make_page
from tests.chromium import dump_dom, needs_chromium, photograph
from tests.orchestrator.report.test_page import make_run

MOVE = """<script>
const seen = document.querySelector("svg[data-curves]"), place = seen.getBoundingClientRect();
const [x, y] = [place.left + place.width * 0.8, place.top + 50];
seen.dispatchEvent(new PointerEvent("pointermove", { clientX: x, clientY: y }));
</script>"""

pytestmark = needs_chromium


def write_page(folder: Path, runs: int) -> Path:
    """The page of a run, or of two beside each other, with the pointer on its first chart."""
    told = [Told.read(make_run(folder / name, lr=lr)) for name, lr in [("one", 0.1), ("two", 0.2)][:runs]]
    page = folder / "page.html"
    page.write_text(make_page(*told).replace("</body>", MOVE + "</body>"))
    return page


def test_it_answers_the_pointer(tmp_path: Path) -> None:
    """Both runs' values at the pointer are told."""
    told = dump_dom(write_page(tmp_path, 2)).partition('<g class="mark">')[2].partition("</g>")[0]
    assert told.count("<text") == 2 and "(logs/one)" in told and "step " in told


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_run_can_be_photographed(tmp_path: Path, dark: bool) -> None:
    """In both schemes."""
    photograph(write_page(tmp_path, 1), f"run-{'dark' if dark else 'light'}", dark=dark)


def test_two_runs_can_be_photographed(tmp_path: Path) -> None:
    """Beside each other."""
    photograph(write_page(tmp_path, 2), "two-runs", height=1900)


def test_a_script_that_fails_is_noticed(tmp_path: Path) -> None:
    """Else no other test of a page could fail by it."""
    page = tmp_path / "page.html"
    page.write_text("<script>throw new Error('planned')</script>")
    with pytest.raises(AssertionError, match="planned"):
        dump_dom(page)
