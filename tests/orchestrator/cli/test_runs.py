"""`orchestrator runs`: which folders are runs, and what is told of them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from orchestrator.cli import main, runs


def make_run(folder: Path, age_s: float, model: str = "") -> None:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "epoch=1-step=20.ckpt").write_bytes(b"x" * 2**20)
    (folder / "checkpoints" / "epoch=2-step=30.ckpt").write_bytes(b"x" * 2**20)
    if model:
        (folder / "config.yaml").write_text(f"model:\n  class_path: {model}\n")
    for path in folder.rglob("*"):
        os.utime(path, (1e9 - age_s, 1e9 - age_s))


def test_runs_are_found_newest_first(tmp_path: Path) -> None:
    """A logger's file or checkpoints make a run, a configuration does not; environments are not searched."""
    (tmp_path / "config.yaml").write_text("model:\n  class_path: nets.Own\n")
    make_run(tmp_path / "logs" / "version_0", 100)
    make_run(tmp_path / "logs" / "version_1", 50, "nets.Own")
    make_run(tmp_path / ".venv" / "x", 0)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "metrics.csv").write_text("step\n")
    os.utime(tmp_path / "notes" / "metrics.csv", (1e9, 1e9))
    assert [item.folder for item in runs.find(tmp_path)] == ["notes", "logs/version_1", "logs/version_0"]
    assert runs.find(tmp_path)[1] == runs.Run(
        folder="logs/version_1",
        changed=1e9 - 50,
        model="Own",
        outcome="",
        epoch=2,
        step=30,
        checkpoints=2,
        size_bytes=2 * 2**20 + len("model:\n  class_path: nets.Own\n"),
    )


def test_they_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Text has a line for each run under a line of names; --json a list of the same."""
    make_run(tmp_path / "a", 100, "nets.Own")
    assert main(["runs", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["WHEN", "MODEL", "OUTCOME", "EPOCH", "STEP", "CHECKPOINTS", "MIB", "FOLDER"]
    assert lines[1].split()[2:] == ["Own", "2", "30", "2", "2.0", "a"]
    assert main(["runs", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["step"] == 30


def test_a_record_says_more(tmp_path: Path) -> None:
    """The module's class and how the last call ended; a record that cannot be read says nothing."""
    call = {"fn": "fit", "outcome": "preempted"}
    for name, content in {
        "a": {"format": 1, "code": {"module": "train.Net"}, "calls": [call]},
        "b": {"format": 1, "code": {"module": "train.Net"}, "calls": []},
        "c": {"format": 99},
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps(content))
    found = {item.folder: (item.model, item.outcome) for item in runs.find(tmp_path)}
    assert found == {"a": ("Net", "preempted"), "b": ("Net", ""), "c": ("", "")}


def test_epochs_steps_and_times_are_the_records(tmp_path: Path) -> None:
    """Where there are no checkpoints too; another call than fit is named, and a report changes no time."""
    fit = {"fn": "fit", "outcome": "finished", "epochs": 3, "steps": 30, "ended": 1e9}
    check = {"fn": "validate", "outcome": "finished", "epochs": 0, "steps": 0, "started": 2e9}
    for name, calls in {"a": [fit], "b": [fit, check]}.items():
        (tmp_path / name).mkdir()
        content = {"format": 1, "code": {"module": "train.Net"}, "calls": calls}
        (tmp_path / name / "run.json").write_text(json.dumps(content))
    found = [(item.folder, item.changed, item.outcome, item.epoch, item.step) for item in runs.find(tmp_path)]
    assert found == [("b", 2e9, "validate finished", 3, 30), ("a", 1e9, "finished", 3, 30)]


def test_a_sweep_is_one_row(tmp_path: Path) -> None:
    """Its trials are not listed; `orchestrator report` shows them."""
    for name in ("trial_00000", "trial_00001"):
        make_run(tmp_path / "lrs" / name, 50)
    (tmp_path / "lrs" / "sweep.json").write_text("{}")
    (found,) = runs.find(tmp_path)
    assert (found.folder, found.model, found.outcome, found.checkpoints) == ("lrs", "sweep", "2 trials", 4)
    assert found.changed == 1e9 - 50


def test_nothing_found_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An empty folder has no runs; a folder that is not there is an error."""
    assert main(["runs", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "No runs.\n"
    assert main(["runs", str(tmp_path / "nowhere")]) == 2


def test_a_damaged_configuration_is_left_blank(tmp_path: Path) -> None:
    """What cannot be read does not keep the others from being listed."""
    (tmp_path / "metrics.csv").write_text("step\n")
    (tmp_path / "config.yaml").write_text("model: [\n")
    assert [item.model for item in runs.find(tmp_path)] == [""]
