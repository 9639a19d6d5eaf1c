"""The traces of all ranks on one line of time: what is moved, what is told apart, what is refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli import main
from orchestrator.loggers import CSVLogger
from orchestrator.trace import merged
from tests.orchestrator.tiny import Tiny, loader, quiet_trainer


def trace(base_ns: int, *times_us: float) -> dict[str, Any]:
    """A trace as torch writes it, with a process 7 and so many operators."""
    name = {"ph": "M", "name": "process_name", "pid": 7, "args": {"name": "python"}}
    flow = {"ph": "s", "id": 3, "pid": 7, "tid": 7, "ts": 0.0, "name": "flow"}
    events = [{"ph": "X", "name": "op", "pid": 7, "tid": 7, "ts": ts, "dur": 1.0} for ts in times_us]
    return {"baseTimeNanoseconds": base_ns, "traceEvents": [name, flow, *events]}


def test_times_count_from_the_earliest_moment() -> None:
    """Each trace's own base is taken into account, and that of the run's events."""
    found = merged(
        {"rank-0": trace(2_000_000_000, 5.0), "rank-1": trace(2_001_000_000, 5.0)},
        [{"event": "start", "at": 1.5}, {"event": "odd"}],
    )["traceEvents"]
    assert [event["ts"] for event in found if event["name"] == "op"] == [500_005.0, 501_005.0]
    (mark,) = [event for event in found if event.get("cat") == "run"]
    assert (mark["name"], mark["ts"], mark["ph"]) == ("start", 0.0, "i")


def test_ranks_are_told_apart() -> None:
    """Processes of one number, and flows of one id, are two; each is called by its rank."""
    found = merged({"a": trace(0, 1.0), "b": trace(0, 1.0)}, [])["traceEvents"]
    assert len({event["pid"] for event in found}) == 2
    assert {event["id"] for event in found if "id" in event} == {"a:3", "b:3"}
    names = [event["args"]["name"] for event in found if event["name"] == "process_name"]
    assert names == ["a: python", "b: python"]


def test_a_profiled_run_is_merged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What torch's profiler has written in a fit, with the epochs of the run."""
    trainer = quiet_trainer(logger=CSVLogger(tmp_path), profiler="pytorch", max_epochs=2)
    trainer.fit(Tiny(), loader(40))
    folder = Path(str(trainer.log_dir))
    assert main(["trace", str(folder)]) == 0
    assert f"Wrote 1 trace into {folder / 'trace.json'}" in capsys.readouterr().out
    found = json.loads((folder / "trace.json").read_text())["traceEvents"]
    assert sum(event.get("cat") == "run" and event["name"] == "epoch" for event in found) == 2
    within = [event["ts"] for event in found if "training_step" in str(event["name"]) and "ts" in event]
    marks = {event["name"]: event["ts"] for event in found if event.get("cat") == "run"}
    assert within and all(marks["start"] < ts < marks["end"] for ts in within)


def test_what_is_no_trace_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By its name; without any, how to get one."""
    assert main(["trace", str(tmp_path)]) == 2
    assert "profiler='pytorch'" in capsys.readouterr().err
    (tmp_path / "x.pt.trace.json").write_text("{}")
    assert main(["trace", str(tmp_path)]) == 2
    assert "x.pt.trace.json is no trace" in capsys.readouterr().err
    (tmp_path / "x.pt.trace.json").unlink()
    (tmp_path / "y.pt.trace.json.gz").write_bytes(gzip.compress(json.dumps(trace(0, 1.0)).encode()))
    assert main(["trace", str(tmp_path)]) == 0
