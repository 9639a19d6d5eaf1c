"""The record of a run, kept beside its logs: what it was made of, what happened, how it ended.

Two files in the version directory: ``run.json``, replaced whole when a call begins and when it ends, and
``events.jsonl``, to which a line is added for each event. The driver writes them, from what rank 0 tells it,
so a run whose workers are lost has them too; a training step writes nothing. Where no logger has a directory
there is no record. A disk that is full, or a folder that cannot be written, ends the record with one warning,
and never the run.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator import announcements, run_facts
from orchestrator.errors import MisconfigurationError
from orchestrator.goodput import TRAINING, Total, describe
from orchestrator.loggers.logger import Logger
from orchestrator.run_event import RunEvent
from orchestrator.run_files import EVENTS_FILE, FORMAT, RUN_FILE, origin_of, read_run
from orchestrator.stops import Interrupted, Preempted
from orchestrator.sweep.stopped import TrialStopped

if TYPE_CHECKING:
    from orchestrator.job import Job
    from orchestrator.trainer import Trainer

_FRAMES, _MOST_CHARACTERS = 8, 8000  # that are kept of where an error came from


class RunRecord:
    """The record of one call of a trainer.

    Args:
        trainer: Whose call.
        job: The call.

    Attributes:
        total: Where the call's time goes.
        has_trained: It has come to the first batch.
    """

    def __init__(self, trainer: Trainer, job: Job) -> None:
        self.total = Total()
        self.has_trained = False
        self._trainer, self._job = trainer, job
        self._started_s = time.time()
        self._last: RunEvent | None = None
        self._folder: Path | None = None
        self._content: dict[str, Any] = {}
        self._call: dict[str, Any] = {}
        self._data: dict[str, Any] = {}
        self._waiting: list[dict[str, Any]] = []
        self._is_open = self._is_over = False
        self._origin = None if job.ckpt_path is None else origin_of(job.ckpt_path)
        self._before = self._read_origin()  # now: it may be this very folder, which is about to be written to
        self._note("start", plan=trainer.plan.describe(), ckpt_path=job.ckpt_path)
        if trainer.plan.launched is None and all(isinstance(item, Logger) for item in trainer.loggers):
            self._open()  # else another's logger, which wants an empty folder, comes first

    @property
    def folder(self) -> Path | None:
        """Where the record is; None where there is none, or none yet."""
        return self._folder

    # ---------------------------------------------------------------- what happens

    def take(self, event: RunEvent) -> None:
        """Take what rank 0 tells."""
        self.total.take(event.account, event.seconds)
        self._last = event
        if event.kind == "train":
            self._data = self._call["data"] = event.details.get("data", {})
            if not self.has_trained:  # else a new rank 0 has taken a lost one's place
                self._compare()
            self.has_trained = True
            with self._kept_going():
                self._write()
        elif not self._is_open:
            self._open()
        if event.kind != "end":  # ours says more
            place: dict[str, Any] = {"epoch": event.epoch, "step": event.step}
            if event.kind == "epoch":
                place["train_s"] = round(sum(event.seconds[kind] for kind in TRAINING), 6)
            if event.kind == "checkpoint":
                place["path"] = self._within(str(event.details["path"]))
            self._note(event.kind, event.at_s, **{**event.details, **place})

    def _within(self, path: str) -> str:
        """Return a path as seen from the run's folder, where it lies in there."""
        if self._folder is None:
            return path
        with contextlib.suppress(ValueError):
            return Path(os.path.abspath(path)).relative_to(self._folder.absolute()).as_posix()
        return path

    def note(self, kind: str, **details: Any) -> None:
        """Note what the driver itself has seen: ``recovery``, ``again``."""
        self._note(kind, **details)

    def end(self, error: BaseException | None) -> None:
        """Note how the call has ended.

        Args:
            error: What it was left by; None where it returned.
        """
        self._open()
        state, last = self._trainer.state, self._last
        epochs, step, samples = state.epoch, state.global_step, state.samples_seen
        if last is not None:  # the driver's state is of before where workers have failed
            epochs, step, samples = last.epoch + (last.kind == "epoch"), last.step, last.samples
        seconds = {kind: round(value, 6) for kind, value in self.total.seconds().items()}
        result = {
            "ended": time.time(),
            "outcome": outcome(error),
            "error": None if error is None else _first_line(error),
            "where": _where(error) if outcome(error) == "failed" else None,
            "epochs": epochs,
            "steps": step,
            "samples": samples,
            "data": self._data,
            "metrics": {} if self._folder is None else self._metrics(),
            "goodput": seconds,
        }
        self._call |= result
        self._note("end", epoch=epochs, step=step, outcome=result["outcome"])
        with self._kept_going():
            self._write()
        self._is_over = True

    def describe(self) -> str:
        """Return where the time went, and where all this is written down, in one line."""
        told = describe(self.total.seconds())
        return told if self._folder is None else f"{told} Recorded in {_short(self._folder)}."

    def _read_origin(self) -> dict[str, Any] | None:
        """Return what the run was that this call goes on from; None where nobody knows."""
        if self._origin is not None:
            with contextlib.suppress(MisconfigurationError):
                return _identity(read_run(self._origin))
        return None

    def _compare(self) -> None:
        """Where the call goes on from another's checkpoint, tell what of code and data is not the same."""
        before = self._before
        if before is None:
            return
        now = _identity({**self._facts(), "calls": [{"fn": "fit", "data": self._data}]})
        if not (before["data"] and now["data"]):
            before["data"] = now["data"] = {}
        found = run_facts.differences(before, now)
        if found:
            told = "; ".join(f"{name}: {old!r} then, {new!r} now" for name, (old, new) in found.items())
            announcements.tell(
                f"Not all is as it was in {self._origin}, from where this run goes on: {told}."
            )
            self._note("differences", differences=found)

    # ---------------------------------------------------------------- files

    def _open(self) -> None:
        """Find the folder, and write what is known so far. Once."""
        if self._is_open:
            return
        self._is_open = True
        self._folder = directory_of(self._trainer)
        with self._kept_going():
            if self._folder is None:
                return
            self._folder.mkdir(parents=True, exist_ok=True)
            self._content = self._facts()
            before = [] if not (self._folder / RUN_FILE).exists() else read_run(self._folder)["calls"]
            self._call |= {
                "fn": self._job.fn,
                "started": self._started_s,
                "outcome": "running",
                "pid": os.getpid(),
                "plan": self._trainer.plan.describe(),
                "world_size": self._trainer.plan.num_workers,
                "ckpt_path": self._job.ckpt_path,
            }
            self._content["calls"] = [*before, self._call]
            self._write()
        waiting, self._waiting = self._waiting, []
        for line in waiting:
            self._append(line)

    def _facts(self) -> dict[str, Any]:
        trainer, job = self._trainer, self._job
        return {
            "format": FORMAT,
            "name": "" if self._folder is None else "/".join(self._folder.absolute().parts[-2:]),
            "hyperparameters": run_facts.hyperparameters(job.module, job.datamodule),
            "arguments": run_facts.arguments(trainer.settings),
            "environment": run_facts.environment(),
            "code": run_facts.code(job.module),
        }

    def _metrics(self) -> dict[str, Any]:
        with contextlib.suppress(Exception):  # a run that has ended in the middle of something
            return run_facts.numbers(self._trainer.callback_metrics)
        return {}

    def _note(self, kind: str, at_s: float | None = None, **details: Any) -> None:
        at_s = time.time() if at_s is None else at_s
        line = {"event": kind, "at": round(at_s, 6), "fn": self._job.fn, **run_facts.plain(details)}
        if self._is_open:
            self._append(line)
        else:
            self._waiting.append(line)

    def _append(self, line: dict[str, Any]) -> None:
        with self._kept_going():
            if self._folder is not None and not self._is_over:
                with open(self._folder / EVENTS_FILE, "a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")

    def _write(self) -> None:
        if self._folder is None or not self._content:
            return
        path = self._folder / RUN_FILE
        unfinished = path.with_name(f".{RUN_FILE}.{os.getpid()}.tmp")
        unfinished.write_text(json.dumps(self._content, indent=2) + "\n", encoding="utf-8")
        os.replace(unfinished, path)

    @contextlib.contextmanager
    def _kept_going(self) -> Iterator[None]:
        """A context in which what cannot be written ends the record, and not the run."""
        try:
            yield
        except (OSError, MisconfigurationError) as error:
            folder, self._folder = self._folder, None
            warnings.warn(f"The run goes on without its record in {folder}: {error}", stacklevel=4)


def directory_of(trainer: Trainer) -> Path | None:
    """Return where a trainer's runs are recorded: the directory of its first logger that has one."""
    for logger in trainer.loggers:
        found = logger.log_dir
        if found is not None:
            return Path(found)
    return None


def _identity(content: dict[str, Any]) -> dict[str, Any]:
    """Return what must be the same for a run to go on as if it had never stopped."""
    code, calls = content.get("code", {}), content["calls"]
    found = [call["data"] for call in calls if call.get("fn") == "fit" and call.get("data")]
    return {
        "code": {name: code.get(name) for name in ("module", "module_sha256", "commit")},
        "hyperparameters": content.get("hyperparameters", {}),
        "versions": content.get("environment", {}).get("versions", {}),
        "data": found[-1] if found else {},
    }


def outcome(error: BaseException | None) -> str:
    """Return in one word how a call has ended: finished, interrupted, preempted, stopped or failed."""
    if error is None:
        return "finished"
    if isinstance(error, Preempted):
        return "preempted"
    if isinstance(error, (Interrupted, KeyboardInterrupt)):
        return "interrupted"
    return "stopped" if isinstance(error, TrialStopped) else "failed"


def _short(folder: Path) -> str:
    """Return a folder as seen from the working directory, where it lies in there."""
    with contextlib.suppress(ValueError, OSError):
        return str(folder.absolute().relative_to(Path.cwd()))
    return str(folder)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"


def _where(error: BaseException | None) -> str:
    """Return where an error came from, for people to read: its notes, which a rank's own error has, else the
    last frames.
    """
    notes = "\n".join(getattr(error, "__notes__", ()))
    return (notes or "".join(traceback.format_exception(error, limit=-_FRAMES)))[-_MOST_CHARACTERS:].strip()
