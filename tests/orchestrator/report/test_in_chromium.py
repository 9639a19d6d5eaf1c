"""The page as a browser shows it: drawn, without an error, and telling what is under the pointer."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from orchestrator.report.page import Told, make_page
from tests.orchestrator.report.test_page import make_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MOVE = """<script>
addEventListener("error", (event) => document.body.append("failed: " + event.message));
const seen = document.querySelector("svg[data-curves]"), place = seen.getBoundingClientRect();
const [x, y] = [place.left + place.width * 0.8, place.top + 50];
seen.dispatchEvent(new PointerEvent("pointermove", { clientX: x, clientY: y }));
</script>"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; .ci/run installs it")


def browse(folder: Path, page: Path, *arguments: str) -> str:
    """What Chromium prints about the page."""
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1050,1400"]
    command += [f"--user-data-dir={folder / 'profile'}", *arguments, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def test_it_is_drawn_and_answers_the_pointer(tmp_path: Path) -> None:
    """Both runs' values at the pointer are told, and nothing fails."""
    one, other = Told.read(make_run(tmp_path / "one")), Told.read(make_run(tmp_path / "two", lr=0.2))
    page = tmp_path / "page.html"
    page.write_text(make_page(one, other).replace("</body>", MOVE + "</body>"))
    shown = browse(tmp_path, page, "--dump-dom")
    assert "failed: " not in shown.partition("</script>\n<script>")[0]
    told = shown.partition('<g class="mark">')[2].partition("</g>")[0]
    assert told.count("<text") == 2 and "(logs/one)" in told and "step " in told


def test_it_can_be_photographed(tmp_path: Path) -> None:
    """A picture of the size that was asked for, which is not blank."""
    page, picture = tmp_path / "page.html", tmp_path / "page.png"
    page.write_text(make_page(Told.read(make_run(tmp_path / "one"))))
    browse(tmp_path, page, f"--screenshot={picture}")
    data = picture.read_bytes()
    assert struct.unpack(">II", data[16:24]) == (1050, 1400)
    assert len(data) > 20_000
