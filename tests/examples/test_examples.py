"""Every example runs to its last line, without a warning, and shows what it says. Small settings: what they
teach is tested elsewhere."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run_example(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> str:
    """Run the script in `folder` as its readers would; return what it prints."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [name, "--root-dir", "here", *words])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    finally:
        torch.set_num_threads(threads)
    assert [path.name for path in folder.iterdir()] == ["here"]
    return capsys.readouterr().out


def test_regression_on_parquet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A third of the variance is explained after a few epochs."""
    said = run_example("tabular.py", tmp_path, monkeypatch, capsys, "--max-epochs", "8")
    found = re.search(r"Explained variance of the best epoch: ([\d.]+)\.", said)
    assert found is not None and float(found[1]) > 0.33


def test_a_small_gpt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A byte costs less than guessing, and it writes."""
    said = run_example("gpt.py", tmp_path, monkeypatch, capsys, "--max-steps", "30", "--width", "32")
    found = re.match(r"([\d.]+) bits a byte", said)
    assert found is not None and float(found[1]) < 6
    assert "The statement " in said


def test_fine_tuning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A hundred images of new digits are enough."""
    said = run_example("finetune.py", tmp_path, monkeypatch, capsys, "--max-epochs", "10")
    found = re.search(r"accuracy ([\d.]+)\.", said)
    assert found is not None and float(found[1]) > 0.8


def test_a_gan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Both optimizers step, and two images are drawn."""
    said = run_example("gan.py", tmp_path, monkeypatch, capsys, "--max-epochs", "2")
    assert said.rstrip().endswith("116 optimizer steps, half of each kind.")
    assert len(said.splitlines()) == 17


def test_a_script_that_was_moved_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It prints what it tested."""
    assert "test_loss" in run_example("moved.py", tmp_path, monkeypatch, capsys, "--max-epochs", "2")


def test_going_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped in the middle of an epoch and resumed, the weights are the same."""
    assert "Equal to the last bit." in run_example(
        "resume.py", tmp_path, monkeypatch, capsys, "--max-steps", "60"
    )


@pytest.mark.ray
def test_surviving_a_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A worker is killed, and the weights are those of an undisturbed run."""
    said = run_example("survive.py", tmp_path, monkeypatch, capsys, "--max-epochs", "1")
    assert "Equal to the last bit." in said
    assert '"event": "recovery"' in (tmp_path / "here/lightning_logs/version_1/events.jsonl").read_text()
