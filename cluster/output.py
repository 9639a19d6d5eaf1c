"""Where a worker's prints go while a callable runs.

Rank 0's text is forwarded to the driver as it is written; other ranks' goes on to the process's own streams,
which Ray keeps in its log files. Either way the last lines are kept for a failure's report. Only Python's
`sys.stdout` and `sys.stderr` are taken: what C code writes to the file descriptors, and what forked children
write, goes to Ray's log files.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

TAIL_LINES = 20
_MAX_LINE = 500


class Tail:
    """The last `TAIL_LINES` lines of a text that comes in pieces."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=TAIL_LINES)
        self._open = ""

    def add(self, text: str) -> None:
        """Take the next piece; a carriage return starts its line anew, as a terminal would."""
        *whole, rest = (self._open + text).split("\n")
        self._lines.extend(line.rpartition("\r")[2][:_MAX_LINE] for line in whole)
        self._open = rest.rpartition("\r")[2][-_MAX_LINE:]

    def lines(self) -> tuple[str, ...]:
        """The last lines, oldest first, an unfinished one included."""
        return (*self._lines, self._open)[-TAIL_LINES:] if self._open else tuple(self._lines)


class Stream:
    """A stream in the place of `sys.stdout` or `sys.stderr`; all but writing is the original's business."""

    def __init__(self, original: TextIO, tail: Tail, forward: Callable[[str], None] | None) -> None:
        self._original = original
        self._tail = tail
        self._forward = forward
        self._pid = os.getpid()

    def write(self, text: str) -> int:
        """Forward or pass on the text; a forked child always writes to the original."""
        if os.getpid() != self._pid:
            return self._original.write(text)
        self._tail.add(text)
        if self._forward is None:
            return self._original.write(text)
        self._forward(text)
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Write each of the lines."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush the original; forwarded text is not held back."""
        self._original.flush()

    def isatty(self) -> bool:
        """False: the driver writes plain text."""
        return False

    def __getattr__(self, name: str) -> Any:
        """Everything else, such as `encoding` and `fileno`, is the original's."""
        return getattr(self._original, name)


@contextmanager
def captured(tail: Tail, forward: Callable[[str, str], None] | None) -> Iterator[None]:
    """Take `sys.stdout` and `sys.stderr` for the duration of the block.

    Args:
        tail: gets every line of both streams.
        forward: called with (stream name, text) instead of writing to the originals. None: they are written.
    """
    stdout, stderr = sys.stdout, sys.stderr

    def to(name: str) -> Callable[[str], None] | None:
        return None if forward is None else lambda text: forward(name, text)

    sys.stdout = Stream(stdout, tail, to("stdout"))
    sys.stderr = Stream(stderr, tail, to("stderr"))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = stdout, stderr
