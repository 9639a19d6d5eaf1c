"""Pages as Chromium shows them: what stands in them once their scripts have run, and pictures of them.

Pictures stay in ``build/screenshots`` of the checkout, for people to look at. A page whose script fails, or
whose picture is blank, fails the test.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import tempfile
import zlib
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FOLDER = Path(__file__).resolve().parents[1] / "build" / "screenshots"

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; .ci/run installs it")


def photograph(
    page: Path, name: str, height: int = 1400, width: int = 1050, dark: bool | None = None
) -> Path:
    """Return the picture of a page's upper part, ``build/screenshots/NAME.png``.

    Args:
        page: A file.
        name: Of the picture.
        height: In pixels.
        width: In pixels.
        dark: The scheme that is asked for, in which the page's first corner then has to be; None for any.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    picture = FOLDER / f"{name}.png"
    picture.unlink(missing_ok=True)
    _browse(
        page,
        f"--window-size={width},{height}",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        "--hide-scrollbars",
        f"--screenshot={picture}",
    )
    size, shades, corner = _look_at(picture.read_bytes())
    assert size == (width, height), f"{picture} has another size: {size}"
    assert shades > 50, f"{picture} is blank: it has {shades} distinct bytes"
    assert dark is None or (corner < 128) == dark, f"{picture} is in the other scheme: its corner is {corner}"
    return picture


def dump_dom(page: Path) -> str:
    """Return what stands in a page once its scripts have run."""
    return _browse(page, "--dump-dom")


def _browse(page: Path, *arguments: str) -> str:
    """Return what Chromium prints about a page in whose scripts nothing has failed."""
    with tempfile.TemporaryDirectory() as profile:
        command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
        command += ["--enable-logging=stderr", *arguments, page.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    failed = [line for line in done.stderr.splitlines() if "CONSOLE" in line and "Uncaught" in line]
    assert not failed, "\n".join(failed)
    return done.stdout


def _look_at(png: bytes) -> tuple[tuple[int, int], int, int]:
    """Return width and height of a picture, how many distinct bytes its rows are written with, and how bright
    its first pixel is.
    """
    size = struct.unpack(">II", png[16:24])
    rows, place = b"", 8
    while place < len(png):
        (length,) = struct.unpack(">I", png[place : place + 4])
        if png[place + 4 : place + 8] == b"IDAT":
            rows += png[place + 8 : place + 8 + length]
        place += length + 12
    plain = zlib.decompress(rows)  # of the first pixel no filter of PNG's takes anything off
    return (size[0], size[1]), len(set(plain)), max(plain[1:4])
