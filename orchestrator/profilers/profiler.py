"""The base class of profilers: actions with names begin and end, and at the end of a call there is a report.

A profiler belongs to one process. On a group every rank has a copy, which reports into a file of its own;
rank 0's measurements come back into the driver's object. Between calls it holds plain values only, so that it
pickles. Only the main thread of training may use it.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


class Profiler(ABC):
    """Subclass it and give `start`, `stop` and `summary`.

    Args:
        dirpath: Folder of the reports; the trainer's `log_dir` when None.
        filename: The report is a file ``{stage}-{filename}.txt``, on a group
            ``{stage}-{filename}-{rank}.txt``; without a name rank 0's report goes to the log.
    """

    def __init__(self, dirpath: str | os.PathLike[str] | None = None, filename: str | None = None) -> None:
        self.dirpath = None if dirpath is None else Path(dirpath)
        self.filename = filename
        self._stage = ""
        self._rank: int | None = None
        self._log_dir: Path | None = None

    @abstractmethod
    def start(self, action_name: str) -> None:
        """Begin to measure an action. Another may be running: then it is within that one."""

    @abstractmethod
    def stop(self, action_name: str) -> None:
        """End an action that `start` began."""

    @abstractmethod
    def summary(self) -> str:
        """Return the report; an empty string when there is nothing to say."""

    def step(self) -> None:  # noqa: B027 - most profilers need not know
        """Called between two batches."""

    @contextmanager
    def profile(self, action_name: str) -> Iterator[str]:
        """Measure what runs inside ``with``; yields the name."""
        self.start(action_name)
        try:
            yield action_name
        finally:
            self.stop(action_name)

    def setup(
        self, stage: str, rank: int | None = None, log_dir: str | os.PathLike[str] | None = None
    ) -> None:
        """Begin a call of the trainer.

        Args:
            stage: fit, validate, test or predict.
            rank: This process's, on a group; None where there is one process.
            log_dir: Where reports go unless the user said otherwise.
        """
        self._stage, self._rank = stage, rank
        self._log_dir = None if log_dir is None else Path(log_dir)

    def teardown(self, stage: str) -> None:  # noqa: B027 - not all have something to end
        """End what is still running; also after a failure."""

    def describe(self, say: Callable[[str], None]) -> None:
        """Report: into the file if there is a filename, else through `say`, which only rank 0 does aloud."""
        text = self.summary()
        if not text:
            return
        if self.filename is None:
            say(text)
            return
        path = self.path_for(".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")

    def path_for(self, extension: str, part: str = "") -> Path:
        """Return the file for a kind of report.

        Args:
            extension: With its dot.
            part: What tells it from others of the same call.
        """
        rank = "" if self._rank is None else str(self._rank)
        names = (self._stage, self.filename or "profile", part, rank)
        return (self.dirpath or self._log_dir or Path.cwd()) / ("-".join(filter(None, names)) + extension)


class PassThroughProfiler(Profiler):
    """Measures nothing: what ``trainer.profiler`` is when none was asked for."""

    def start(self, action_name: str) -> None:
        """Do nothing."""

    def stop(self, action_name: str) -> None:
        """Do nothing."""

    def summary(self) -> str:
        """Return an empty string."""
        return ""


class Nesting:
    """The actions that are running, the innermost last; says what is wrong when they do not nest."""

    def __init__(self) -> None:
        self.running: list[str] = []

    def start(self, action_name: str) -> None:
        """Take note of a beginning.

        Raises:
            ValueError: An action of this name is running.
        """
        if action_name in self.running:
            raise ValueError(
                f"The profiler's action {action_name!r} began again before it ended. Use another name inside."
            )
        self.running.append(action_name)

    def stop(self, action_name: str) -> None:
        """Take note of an end.

        Raises:
            ValueError: No action of this name is running.
        """
        if action_name not in self.running:
            raise ValueError(f"The profiler's action {action_name!r} ended without having begun. Call start.")
        self.running.remove(action_name)
