"""The example of elastic training runs as its readers run it, and finds one hash."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "elastic.py"


@pytest.mark.ray
def test_it_finds_one_hash(tmp_path: Path) -> None:
    """In this process and on two workers weights and metrics are the same, and the model learns to read."""
    completed = subprocess.run(
        [sys.executable, str(SCRIPT), "--workers", "1", "2"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr
    assert "The same bits on any number of workers." in completed.stdout
    accuracies = [float(found) for found in re.findall(r"accuracy ([\d.]+)", completed.stdout)]
    assert len(accuracies) == 2 and min(accuracies) > 0.8
    assert "warning" not in (completed.stdout + completed.stderr).lower()
