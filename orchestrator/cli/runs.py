"""``orchestrator runs``: lists the runs below a folder, the newest first.

A run is a folder with a record (``run.json``), or one in which a logger has left its file (``hparams.yaml``,
``metrics.csv`` or TensorBoard events), or one with checkpoints. A ``config.yaml`` alone makes no run: it may
be what somebody writes for the next. It only looks: torch is not loaded, and nothing is written. What cannot
be read is left blank. A sweep is one row, whatever its trials have left.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import re
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator.errors import MisconfigurationError
from orchestrator.run_files import read_run

SUMMARY = "list the runs below a folder"

_MARKS = ("run.json", "hparams.yaml", "metrics.csv", "events.out.tfevents.*")
_SWEEP = "sweep.json"
_SKIPPED = frozenset({".git", ".venv", "venv", "node_modules", "__pycache__"})
_STEP = re.compile(r"step=(\d+)")
_EPOCH = re.compile(r"epoch=(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run, as its files tell.

    Attributes:
        folder: Where it is, below the folder that was asked for.
        changed: When its last call ended or, without a record, its files were last written, in seconds since
            1970.
        model: The class of the module, from the record or ``config.yaml``; else empty. ``sweep`` for a sweep.
        outcome: How its last call ended, from the record, and which call it was unless fit; else empty. The
            number of a sweep's trials.
        epoch: Epochs of the last fit, from the record, else of the last checkpoint, by its name; or None.
        step: Likewise.
        checkpoints: How many there are.
        size_bytes: Of all files.
    """

    folder: str
    changed: float
    model: str
    outcome: str
    epoch: int | None
    step: int | None
    checkpoints: int
    size_bytes: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the folder and ``--json``."""
    parser.add_argument("folder", nargs="?", type=Path, default=Path("."), help="where to look (here)")
    parser.add_argument("--json", action="store_true", help="print a JSON list instead of text")


def run(arguments: argparse.Namespace) -> int:
    """Print the runs and return 0; 2 if there is no such folder."""
    if not arguments.folder.is_dir():
        print(
            f"orchestrator runs: {arguments.folder} is not a folder. Name one with runs in it.",
            file=sys.stderr,
        )
        return 2
    found = find(arguments.folder)
    print(json.dumps([asdict(item) for item in found], indent=2) if arguments.json else format_text(found))
    return 0


def find(root: Path) -> list[Run]:
    """Return the runs below `root`, the newest first."""
    found = []
    for folder, below, files in os.walk(root):
        below[:] = sorted(name for name in below if name not in _SKIPPED)
        if _SWEEP in files:
            found.append(_look_at_sweep(root, Path(folder), below))
            below.clear()
            continue
        marked = any(fnmatch.fnmatchcase(name, mark) for name in files for mark in _MARKS)
        if marked or ("checkpoints" in below and any((Path(folder) / "checkpoints").glob("*.ckpt"))):
            found.append(_look(root, Path(folder)))
            below[:] = [name for name in below if name != "checkpoints"]
    return sorted(found, key=lambda item: (-item.changed, item.folder))


def _look(root: Path, folder: Path) -> Run:
    paths = [path for path in folder.iterdir() if path.is_file()]
    saved = [path for path in [*paths, *(folder / "checkpoints").glob("*")] if path.suffix == ".ckpt"]
    sizes = [path.stat() for path in dict.fromkeys([*paths, *saved])]
    names = " ".join(path.name for path in saved)
    steps, epochs = _STEP.findall(names), _EPOCH.findall(names)
    found = Run(
        folder=folder.relative_to(root).as_posix(),
        changed=max((item.st_mtime for item in sizes), default=folder.stat().st_mtime),
        model=_model(folder / "config.yaml"),
        outcome="",
        epoch=max(map(int, epochs), default=None),
        step=max(map(int, steps), default=None),
        checkpoints=len(saved),
        size_bytes=sum(item.st_size for item in sizes),
    )
    try:
        return _as_recorded(found, read_run(folder))
    except (MisconfigurationError, KeyError, TypeError, ValueError):
        return found


def _as_recorded(found: Run, content: dict[str, Any]) -> Run:
    """Return a run as its record tells it, where that says more."""
    found = replace(found, model=str(content["code"]["module"]).rpartition(".")[2] or found.model)
    if not content["calls"]:
        return found
    last = content["calls"][-1]
    fits = [call for call in content["calls"] if call.get("fn", "fit") == "fit" and call.get("steps")]
    fn = last.get("fn", "fit")
    return replace(
        found,
        changed=float(last.get("ended") or last.get("started") or found.changed),
        outcome=str(last["outcome"]) if fn == "fit" else f"{fn} {last['outcome']}",
        epoch=int(fits[-1]["epochs"]) if fits else found.epoch,
        step=int(fits[-1]["steps"]) if fits else found.step,
    )


def _look_at_sweep(root: Path, folder: Path, below: list[str]) -> Run:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    trials = sum(name.startswith("trial_") for name in below)
    return Run(
        folder=folder.relative_to(root).as_posix(),
        changed=max((path.stat().st_mtime for path in paths if path.parent != folder), default=0.0)
        or (folder / _SWEEP).stat().st_mtime,
        model="sweep",
        outcome=f"{trials} trial{'s' * (trials != 1)}",
        epoch=None,
        step=None,
        checkpoints=sum(path.suffix == ".ckpt" for path in paths),
        size_bytes=sum(path.stat().st_size for path in paths),
    )


def _model(path: Path) -> str:
    """Return the class of the module that a configuration names, or nothing."""
    import yaml

    try:
        model = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]
        return str(model["class_path"]).rpartition(".")[2]
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return ""


def format_text(runs: list[Run]) -> str:
    """Return one line a run."""
    if not runs:
        return "No runs."
    rows = [("WHEN", "MODEL", "OUTCOME", "EPOCH", "STEP", "CHECKPOINTS", "MIB", "FOLDER")]
    for item in runs:
        rows.append(
            (
                time.strftime("%Y-%m-%d %H:%M", time.localtime(item.changed)),
                item.model,
                item.outcome,
                "" if item.epoch is None else str(item.epoch),
                "" if item.step is None else str(item.step),
                str(item.checkpoints),
                f"{item.size_bytes / 2**20:.1f}",
                item.folder,
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])
        for row in rows
    )
