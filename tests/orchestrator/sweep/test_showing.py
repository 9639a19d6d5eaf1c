"""What a person sees of a sweep while it runs."""

from __future__ import annotations

import io
import math
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.sweep.hparams_board import write_hparams
from orchestrator.sweep.lines import TrialLines
from orchestrator.sweep.live import TrialTable


def test_a_line_says_how_a_trial_ended(capsys: pytest.CaptureFixture[str]) -> None:
    """With its settings, how many there are, and what it reached."""
    lines = TrialLines("loss", ["lr", "net/width"], total=3)
    config = {"lr": 0.012345, "net": {"width": 4}}
    lines.ended("trial_00001", config, "finished", {"loss": 0.5, "training_iteration": 1}, "")
    lines.ended("trial_00000", config, "diverged", {"loss": math.inf, "training_iteration": 2}, "")
    lines.ended("trial_00002", config, "failed", {}, "ValueError: no")
    assert capsys.readouterr().err.splitlines() == [
        "Trial 1 (lr=0.01235, net/width=4): loss 0.5 after 1 report; 1 of 3 ended",
        "Trial 0 (lr=0.01235, net/width=4): loss inf after 2 reports, diverged; 2 of 3 ended",
        "Trial 2 (lr=0.01235, net/width=4): failed: ValueError: no; 3 of 3 ended",
    ]


def test_the_table_shows_running_trials_and_the_best() -> None:
    """A trial that has ended leaves the table and becomes a line; a diverged one is never the best."""
    console = Console(file=io.StringIO(), width=100, force_terminal=False)
    table = TrialTable("acc", "max", ["lr"], 20, console)
    table.reported("trial_00000", {"lr": 0.1}, {"acc": 0.7, "training_iteration": 1, "time_total_s": 2.0})
    table.reported("trial_00001", {"lr": 0.2}, {"acc": 0.9, "training_iteration": 1, "time_total_s": 1.0})
    worst = {"acc": -math.inf, "training_iteration": 2, "diverged": True}
    table.reported("trial_00000", {"lr": 0.1}, worst)
    table.ended("trial_00000", {"lr": 0.1}, "diverged", worst, "")
    for number in range(2, 20):
        table.reported(f"trial_{number:05d}", {"lr": 1.0}, {"acc": 0.1, "training_iteration": 1})
    table.tick()
    drawn = io.StringIO()
    Console(file=drawn, width=100).print(table.table())
    table.close()
    assert "1 of 20 trials" in drawn.getvalue()
    assert "best acc 0.9 (lr=0.2)" in drawn.getvalue()
    assert "and 7 more" in drawn.getvalue()
    assert "Trial 0 (lr=0.1): acc -inf after 2 reports, diverged; 1 of 20 ended" in console.file.getvalue()  # type: ignore[attr-defined]


def test_tensorboard_compares_trials_by_their_configurations(tmp_path: Path) -> None:
    """The HParams tab finds the configuration, the last and the best value of each trial."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write_hparams(str(tmp_path), {"lr": 0.1, "net": {"width": 4}}, "loss", 0.5, 0.25, 3)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert events.Scalars("sweep/best_loss")[0].value == 0.25
    assert events.Scalars("sweep/last_loss")[0].step == 3
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"net/width" in content
