"""The README's first example is what newcomers paste, so it must run as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"


@pytest.mark.ray
def test_the_first_example_runs(tmp_path: Path) -> None:
    """Pasted into a file, it trains in one process and then on Ray workers, without one warning."""
    block = re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    script = tmp_path / "train.py"
    script.write_text(block[1], encoding="utf-8")
    completed = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    said = completed.stdout + completed.stderr
    assert completed.returncode == 0, said
    assert said.index("Runs in this process") < said.index("Runs on 2 Ray workers")
    assert "warning" not in said.lower()
