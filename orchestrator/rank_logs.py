"""Keeps what each rank of a group prints, in a file of its own in the run's folder: ``ranks/rank0.log``.

The driver writes them, from what the workers send, so they lie in one place on any number of nodes, and
outlive the workers. Only rank 0's text is shown in the terminal as well. Each call of the trainer, and each
process that takes a lost one's place, begins with a line that says which process it is. What Python prints
and warns of is in them; what C code writes to the file descriptors stays in Ray's own log files.

Where a run has no folder nothing is kept. A folder that cannot be written ends the keeping with one warning,
and never the run.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol, TextIO

FOLDER = "ranks"
_NAME = re.compile(r"rank(\d+)\.log")


def read_ends(folder: Path, most_bytes: int = 8192) -> dict[int, str]:
    """Return the last whole lines of each rank's log in a run's folder, by rank; empty without logs. Each
    state of a progress bar is a line.

    Args:
        folder: The run's.
        most_bytes: What is read of a log's end. A line that begins before it is left out.
    """
    ends: dict[int, str] = {}
    for path in (folder / FOLDER).glob("rank*.log"):
        name = _NAME.fullmatch(path.name)
        if name is None:
            continue
        with contextlib.suppress(OSError), open(path, "rb") as file:
            begin = max(0, file.seek(0, os.SEEK_END) - most_bytes)
            file.seek(max(0, begin - 1))  # the byte before tells whether a line begins here
            read = file.read()
            if begin > 0:
                read = re.split(rb"[\r\n]", read, maxsplit=1)[-1]
            ends[int(name[1])] = read.decode(errors="replace")
    return dict(sorted(ends.items()))


class Process(Protocol):
    """What a log says of the process that writes it."""

    @property
    def rank(self) -> int:
        """Its number."""
        ...

    @property
    def node_ip(self) -> str:
        """The address of its node."""
        ...

    @property
    def pid(self) -> int:
        """Its process's number on that node."""
        ...


class RankLogs:
    """The logs of one call.

    Args:
        folder: Returns the run's folder; None while it has none.
        fn: The call, such as ``"fit"``.
    """

    def __init__(self, folder: Callable[[], Path | None], fn: str) -> None:
        self._folder = folder
        self._fn = fn
        self._files: dict[int, TextIO] = {}
        self._heads: dict[int, str] = {}
        self._failed = False

    def begin(self, processes: Iterable[Process]) -> None:
        """Say which processes write from here on."""
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        for process in processes:
            self._heads[process.rank] = (
                f"--- {now} {self._fn}: rank {process.rank}, process {process.pid} on {process.node_ip}\n"
            )

    def take(self, rank: int, stream: str, text: str) -> None:
        """Add what a rank has printed on either of its streams."""
        self._write(rank, text)

    def close(self) -> None:
        """Write what was held back, and close the files."""
        for rank in list(self._heads):
            self._write(rank, "")
        files, self._files = self._files, {}
        for file in files.values():
            try:
                file.close()
            except OSError as error:
                self._give_up(error)

    def _write(self, rank: int, text: str) -> None:
        folder = None if self._failed else self._folder()
        if folder is None:
            return
        try:
            file = self._files.get(rank)
            if file is None:
                path = folder / FOLDER / f"rank{rank}.log"
                path.parent.mkdir(parents=True, exist_ok=True)
                file = self._files[rank] = open(path, "a", encoding="utf-8", errors="replace")  # noqa: SIM115
            file.write(self._heads.pop(rank, "") + text)
            file.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        if not self._failed:
            self._failed = True
            warnings.warn(f"The run goes on without its ranks' logs: {error}", stacklevel=4)
