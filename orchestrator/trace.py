"""Puts the traces of all ranks, and the run's events, on one line of time, for Perfetto or chrome://tracing.

Each rank's `PyTorchProfiler` writes a file of its own, whose times count from a moment that stands in it.
Together they count from the earliest of these moments; processes are told apart by rank. Clocks of different
machines are taken as they are: what they are apart, their tracks are apart. A file that is no trace, or has
no such moment, is a `MisconfigurationError`.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.errors import MisconfigurationError
from orchestrator.run_files import read_events

_SUFFIXES = (".pt.trace.json", ".pt.trace.json.gz")


def read_traces(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the traces below a run's folder, by what their rank is called.

    Raises:
        MisconfigurationError: A file is no trace.
    """
    found = {}
    for path in sorted(folder.rglob("*.pt.trace.json*")):
        if not path.name.endswith(_SUFFIXES):
            continue
        try:
            data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            content = json.loads(data)
            content["traceEvents"], content["baseTimeNanoseconds"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise MisconfigurationError(
                f"{path} is no trace of torch's profiler: {type(error).__name__}: {error}. Remove it."
            ) from None
        found[path.name.partition(".pt.trace")[0]] = content
    return found


def merged(traces: Mapping[str, Mapping[str, Any]], events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return one trace of several.

    Args:
        traces: Content of each file, by what to call it.
        events: Of the run, as `read_events` returns them; marks on a track of their own.
    """
    began_us = [int(item["baseTimeNanoseconds"]) / 1000 for item in traces.values()]
    marks_us = [float(event["at"]) * 1e6 for event in events if "at" in event]
    begin_us = min([*began_us, *marks_us], default=0.0)
    found: list[dict[str, Any]] = []
    numbers: dict[tuple[str, Any], int] = {}
    for name, base_us in zip(traces, began_us, strict=True):
        for event in traces[name]["traceEvents"]:
            moved = dict(event)
            if "pid" in moved:
                key = name, moved["pid"]
                moved["pid"] = numbers.setdefault(key, len(numbers) + 1)
            if "ts" in moved:
                moved["ts"] = float(moved["ts"]) + base_us - begin_us
            if isinstance(moved.get("id"), (int, str)):  # flows must not cross from one rank to another
                moved["id"] = f"{name}:{moved['id']}"
            if moved.get("name") == "process_name":
                moved["args"] = {"name": f"{name}: {moved.get('args', {}).get('name', '')}".rstrip(": ")}
            found.append(moved)
    if marks_us:
        found.append({"ph": "M", "name": "process_name", "pid": 0, "args": {"name": "run"}})
    for event in events:
        if "at" in event:
            told = {name: value for name, value in event.items() if name not in ("event", "at")}
            mark = {"ph": "i", "s": "g", "pid": 0, "tid": 0, "cat": "run", "name": event["event"]}
            found.append({**mark, "ts": float(event["at"]) * 1e6 - begin_us, "args": told})
    return {"displayTimeUnit": "ms", "traceEvents": found}


def merge_run(folder: Path, target: Path) -> int:
    """Write the traces and events of the run in `folder` as one file, and return how many traces there were.

    Raises:
        MisconfigurationError: There are none, or one of them is no trace.
        OSError: The file cannot be written.
    """
    traces = read_traces(folder)
    if not traces:
        raise MisconfigurationError(
            f"There are no traces below {folder}. Train with Trainer(profiler='pytorch'), which writes them "
            "into the run's folder."
        )
    target.write_text(json.dumps(merged(traces, read_events(folder))), encoding="utf-8")
    return len(traces)
