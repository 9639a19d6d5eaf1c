"""The main example runs as its readers run it: as a script, on Ray workers and in one process."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "digits.py"


def run_example(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the script in `folder`, and show what it said if it fails."""
    completed = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr
    return completed


@pytest.mark.ray
def test_it_learns_to_read(tmp_path: Path) -> None:
    """As `make demo` runs it, the sweep's best model reads 95 of 100 unseen digits, without one warning."""
    completed = run_example(tmp_path)
    accuracy = re.search(r"Its test accuracy: ([\d.]+)\.", completed.stdout)
    assert accuracy is not None, completed.stdout
    assert float(accuracy[1]) >= 0.95
    assert "warning" not in (completed.stdout + completed.stderr).lower()


@pytest.mark.ray
@pytest.mark.slow
def test_it_leaves_everything_in_its_folder(tmp_path: Path) -> None:
    """In one process too, data, checkpoints and events lie under --root-dir, and nothing beside it."""
    folder = tmp_path / "here"
    completed = run_example(
        tmp_path, "--root-dir", folder.name, "--devices", "1", "--max-epochs", "2", "--trials", "1"
    )
    assert list(tmp_path.iterdir()) == [folder]
    written = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
    for pattern in (
        r"data/(train|val|test)\.parquet",
        r"train/version_0/events\.out\.tfevents\..*",
        r"train/version_0/checkpoints/epoch=.*\.ckpt",
        r"sweeps/sweep_0/.*/checkpoint\.ckpt",
    ):
        assert any(re.fullmatch(pattern, path) for path in written), (pattern, written)
    assert completed.stdout.rstrip().endswith(f"tensorboard --logdir {folder}")
