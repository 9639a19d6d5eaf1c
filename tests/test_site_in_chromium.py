"""The documentation as a browser shows it, where `make docs` has built it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chromium import needs_chromium, photograph

SITE = Path(__file__).resolve().parents[1] / "build" / "site"

pytestmark = needs_chromium


@pytest.mark.parametrize("name", ["index", "elastic"])
def test_a_page_of_the_site_can_be_photographed(name: str) -> None:
    """The first page, and a long one."""
    page = SITE / f"{name}.html"
    if not page.is_file():
        pytest.skip(f"{page} is not there: run `make docs`")
    photograph(page, f"site-{name}", width=1400)
