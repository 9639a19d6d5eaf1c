"""A sweep's events are read back as records, and written as tables."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pyarrow.parquet as pq

from orchestrator.sweep.records import EventFile, TrialRecord, read, replay
from orchestrator.sweep.tables import result_row, write_tables


def write_some(folder: Path) -> None:
    """Two trials: one that was resumed, and one that diverged."""
    events = EventFile(str(folder))
    events.started("trial_00001", {"lr": 0.1, "net": {"width": 4}, "kind": Path})
    events.reported("trial_00001", {"training_iteration": 1, "loss": 0.5, "date": "today"})
    events.reported("trial_00001", {"training_iteration": 2, "loss": 0.1, "time_total_s": 2.0})
    events.started("trial_00001", {"lr": 0.1, "net": {"width": 4}, "kind": Path})
    events.reported("trial_00001", {"training_iteration": 2, "loss": 0.3, "time_total_s": 2.5})
    events.ended("trial_00001", "finished")
    events.started("trial_00000", {"lr": 9})
    events.reported("trial_00000", {"training_iteration": 1, "loss": math.inf, "diverged": True})
    events.ended("trial_00000", "diverged")


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    """In the order of numbers; a report that was made again after a crash counts once, as it was then."""
    write_some(tmp_path)
    worst, good = read(str(tmp_path))
    assert (worst.number, worst.status, worst.best("loss", "min")) == (0, "diverged", None)
    assert good.values("loss") == [(1, 0.5), (2, 0.3)]
    assert good.best("loss", "min") == (2, 0.3)
    assert good.best("loss", "max") == (1, 0.5)
    assert good.seconds == 2.5
    assert good.config == {"lr": 0.1, "net": {"width": 4}, "kind": "Path"}


def test_a_line_that_a_crash_cut_short_is_left_out(tmp_path: Path) -> None:
    """All whole lines count."""
    write_some(tmp_path)
    text = (tmp_path / "events.jsonl").read_text(encoding="utf-8")
    assert len(replay(text[: len(text) // 2].splitlines())) == 1
    assert read(str(tmp_path / "nowhere")) == []


def test_tables_have_a_row_for_each_trial_and_each_report(tmp_path: Path) -> None:
    """Parquet and CSV say the same; columns that some trials lack are empty there."""
    write_some(tmp_path)
    write_tables(str(tmp_path), read(str(tmp_path)), "loss", "min")
    results = pq.read_table(tmp_path / "results.parquet").to_pylist()
    assert [row["best_loss"] for row in results] == [None, 0.3]
    assert [row["config/net/width"] for row in results] == [None, 4]
    assert [row["config/lr"] for row in results] == [9.0, 0.1]
    assert len(pq.read_table(tmp_path / "reports.parquet")) == 3
    with open(tmp_path / "results.csv", encoding="utf-8", newline="") as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["diverged", "finished"]


def test_a_trial_without_reports_has_a_row_too() -> None:
    """It failed before its first one; it has taken the time from its start to its end."""
    row = result_row(TrialRecord(name="trial_00004", status="failed", error="E: no"), "loss", "min")
    assert (row["trial"], row["reports"], row["best_loss"], row["error"]) == (4, 0, None, "E: no")
    record = TrialRecord(name="trial_00004", status="failed", began=100.0)
    assert record.seconds == 0.0
    record.ended = 110.0
    assert record.seconds == 10.0
    record.resumed = 108.0  # the time between two starts is not the trial's
    assert record.seconds == 2.0
