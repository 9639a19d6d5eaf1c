"""The code in docs/lightning.md is what people paste when they move over, so it must run as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import orchestrator
from orchestrator.legacy import modernize

GUIDE = Path(__file__).resolve().parents[1] / "docs" / "lightning.md"


def blocks() -> list[str]:
    """The Python code of the guide, in order."""
    return re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)


def run(code: str, folder: Path) -> str:
    """Run `code` as a script of its own, and return what it says."""
    (folder / "train.py").write_text(code, encoding="utf-8")
    command = [sys.executable, "train.py"]
    completed = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    said = completed.stdout + completed.stderr
    assert completed.returncode == 0, said
    return said


@pytest.mark.ray
def test_the_code_runs(tmp_path: Path) -> None:
    """The blocks in a row train in one process and then on two workers, without one warning or Lightning."""
    ours = [block for block in blocks() if "import lightning" not in block]
    ours.append("import sys\nprint('loaded:', 'lightning' in sys.modules)")
    said = run("\n".join(ours), tmp_path)
    assert said.index("Runs in this process") < said.index("Runs on 2 Ray workers")
    assert "Parameter containing" in said and "loaded: False" in said
    assert "warning" not in said.lower()
    assert list(tmp_path.glob("logs/lightning_logs/version_0/checkpoints/last*.ckpt"))


@pytest.mark.extras
def test_the_code_with_lightnings_objects_runs(tmp_path: Path) -> None:
    """The block on real Lightning objects runs after those that it builds on."""
    pytest.importorskip("lightning")
    chosen = [block for block in blocks() if "devices=2" not in block]
    assert any("import lightning" in block for block in chosen)
    run("\n".join(chosen), tmp_path)
    assert list(tmp_path.glob("theirs/lightning_logs/version_0/metrics.csv"))


def test_the_older_forms_in_the_guide_are_known() -> None:
    """Every older argument that its table names is one that becomes today's."""
    table = GUIDE.read_text(encoding="utf-8").partition("## Older forms")[2].partition("##")[0]
    names = set(re.findall(r"Trainer\((\w+)=", table)) | {"distributed_backend", "weights_summary"}
    values = {"accelerator": "ddp", "precision": 16, "max_steps": None, "gpus": 1, "num_processes": 1}
    assert len(names) >= 10
    known = ["accelerator", "precision", "max_steps"]
    for name in names:
        given = {name: values.get(name)}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("orchestrator.legacy._told", set())
            with pytest.warns(FutureWarning, match="is an older form"):
                modernize(given, known)


def test_the_utilities_in_the_guide_are_there() -> None:
    """Every name that its section on utilities lists can be imported."""
    section = GUIDE.read_text(encoding="utf-8").partition("## Utilities")[2].partition("##")[0]
    listed = set(re.findall(r"`(\w+)`", section)) - {"MisconfigurationError"}
    assert listed <= set(orchestrator.utilities.__all__) and len(listed) >= 9


def test_every_difference_has_its_reason() -> None:
    """Each row of the table says what Lightning does, what is done here, and why."""
    rows = re.findall(
        r"^\|(.+)\|$", GUIDE.read_text(encoding="utf-8").partition("## What is different")[2], re.M
    )
    cells = [[cell.strip() for cell in row.split("|")] for row in rows]
    assert len(cells) > 30
    assert [row for row in cells if len(row) != 3 or not all(row)] == []
