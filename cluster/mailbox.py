"""What a worker says to the driver while a callable runs: a numbered queue that the driver long-polls.

Putting never blocks and never waits for the driver. Numbers count up from 0 within a run without gaps; an
item is kept until the driver has acknowledged its number, so a poll that was lost is answered again with the
same items. `close` ends the run's queue: the polls after it return what is left and say so. Printed text is
merged into one item until it is handed out, and when more than `MAX_TEXT` characters wait, the oldest are
dropped and counted, so that a driver that hangs cannot fill the worker's memory.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

MAX_TEXT = 4_000_000
_LINGER_S = 0.005  # a burst of events is answered by one poll


@dataclass(slots=True, kw_only=True)
class Item:
    """One thing said: kind is "event", "ask", "broken", "joined", "stdout" or "stderr"; data is a pickle,
    the text, or empty.
    """

    number: int
    kind: str
    data: bytes | str


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The answer to a poll: the items after the acknowledged number, and whether the queue ends there."""

    items: tuple[Item, ...]
    closed: bool


class Mailbox:
    """The queue of one run on one worker. All methods may be called from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._items: deque[Item] = deque()
        self._next = 0
        self._handed = -1  # highest number ever given to a poll: later items may still grow
        self._urgent = False
        self._closed = False
        self._text = 0
        self._answers: dict[int, bytes] = {}

    def put(self, kind: str, data: bytes, *, urgent: bool = False) -> int | None:
        """Add an item and return its number; None after `close`, when it is dropped."""
        with self._changed:
            return self._append(kind, data, urgent=urgent)

    def write(self, stream: str, text: str) -> None:
        """Add printed text; `stream` is "stdout" or "stderr"."""
        with self._changed:
            last = self._items[-1] if self._items else None
            if last is not None and last.kind == stream and last.number > self._handed and not self._closed:
                assert isinstance(last.data, str)
                last.data += text
            else:
                self._append(stream, text, urgent=False)
            self._text += len(text)
            if self._text > MAX_TEXT:
                self._drop_text()

    def close(self) -> None:
        """End the queue: what is in it can still be polled, nothing more comes."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def poll(self, acknowledged: int, wait_s: float) -> Batch:
        """All after number `acknowledged` (-1: everything); waits up to `wait_s` seconds for the first."""
        with self._changed:
            while self._items and self._items[0].number <= acknowledged:
                gone = self._items.popleft()
                self._text -= len(gone.data) if isinstance(gone.data, str) else 0
            self._changed.wait_for(lambda: bool(self._items) or self._closed, timeout=wait_s)
            if self._items and not self._urgent:
                self._changed.wait_for(lambda: self._urgent or self._closed, timeout=_LINGER_S)
            self._urgent = False
            self._handed = self._next - 1
            return Batch(items=tuple(self._items), closed=self._closed)

    def ask(self, data: bytes, still_open: Callable[[], bool] = lambda: True) -> bytes | None:
        """Put a question and wait for its answer; None when the queue is closed before one comes."""
        with self._changed:
            number = self._append("ask", data, urgent=True)
            if number is None:
                return None
            self._changed.wait_for(lambda: number in self._answers or self._closed or not still_open())
            return self._answers.pop(number, None)

    def answer(self, number: int, data: bytes) -> None:
        """Answer the question of that number."""
        with self._changed:
            self._answers[number] = data
            self._changed.notify_all()

    def _append(self, kind: str, data: bytes | str, *, urgent: bool) -> int | None:
        if self._closed:
            return None
        number = self._next
        self._next += 1
        self._items.append(Item(number=number, kind=kind, data=data))
        self._urgent = self._urgent or urgent
        self._changed.notify_all()
        return number

    def _drop_text(self) -> None:
        """Empty the oldest texts until half of what may wait is left."""
        for item in self._items:
            if self._text <= MAX_TEXT // 2:
                return
            if isinstance(item.data, str) and len(item.data) > 80:
                self._text -= len(item.data)
                item.data = f"\n[{len(item.data)} characters dropped: the driver was not reading]\n"
                self._text += len(item.data)
