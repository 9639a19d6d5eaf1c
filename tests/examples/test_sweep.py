"""The example of a sweep runs as its readers run it, and again with more trials."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "sweep.py"


def run_example(folder: Path, *arguments: str) -> str:
    """Run the script in `folder` and return what it printed; show everything if it fails."""
    completed = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr
    assert "warning" not in completed.stderr.lower(), completed.stderr
    return completed.stdout


@pytest.mark.ray
def test_it_finds_good_settings_on_real_data(tmp_path: Path) -> None:
    """The winner reads nine of ten unseen digits, and the page about the sweep is there."""
    said = run_example(tmp_path, "--trials", "6")
    accuracy = re.search(r"test_acc\D*([\d.]+)", said)
    assert accuracy is not None, said
    assert float(accuracy[1]) >= 0.9
    folder = tmp_path / "runs" / "sweep" / "digits"
    assert str(folder / "report.html") in said
    assert "saved by stopping early" in (folder / "report.html").read_text(encoding="utf-8")
