"""The notebook runs from its first cell to its last, as in a kernel: its classes live in ``__main__``."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "notebook.ipynb"
# What a kernel does: each cell is compiled by itself, under a name that is no file, in one namespace.
KERNEL = """
import json, sys
for number, cell in enumerate(json.load(open(sys.argv.pop()))["cells"]):
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), f"<cell {number}>", "exec"), globals())
"""


def test_it_is_kept_without_outputs() -> None:
    """So that its history shows what was written, not what was run."""
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.ray
def test_its_cells_run(tmp_path: Path) -> None:
    """In this process and on two workers it learns to read, and the report is there."""
    done = subprocess.run(
        [sys.executable, "-c", KERNEL, str(NOTEBOOK)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"alone ([\d.]+), on two workers ([\d.]+)", done.stdout)
    assert found is not None and min(float(found[1]), float(found[2])) > 0.85
    assert "report.html" in done.stdout and "ranks" in done.stdout
