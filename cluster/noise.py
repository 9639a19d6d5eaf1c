"""Keeps Ray's own notice of a worker's death off the terminal, because the group reports that death itself,
once.

Ray prints such a notice for every process that ends unasked, also with its log forwarding off. Only notices
that name a process of a group of ours are held back. Where a version of Ray prints them in another way, they
appear.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable
from typing import Any

_PID = re.compile(r"Worker PID: (\d+)")

_muted: set[int] = set()
_original: Callable[..., Any] | None = None
_lock = threading.Lock()


def mute_deaths(pids: Iterable[int]) -> None:
    """From now on hold back notices that name one of these processes."""
    global _original
    from ray._private import worker

    with _lock:
        _muted.update(pids)
        if _original is None and hasattr(worker, "print_to_stdstream"):
            _original = worker.print_to_stdstream
            worker.print_to_stdstream = _print_the_rest


def unmute() -> None:
    """Have everything printed again."""
    global _original
    with _lock:
        _muted.clear()
        if _original is not None:
            from ray._private import worker

            worker.print_to_stdstream = _original
            _original = None


def names_muted(line: str) -> bool:
    """Whether a line is Ray's notice of the death of a process that is muted."""
    return any(int(pid) in _muted for pid in _PID.findall(line))


def _print_the_rest(data: dict[str, Any], *args: Any, **options: Any) -> None:
    original = _original
    lines = [line for line in data.get("lines", ()) if not names_muted(str(line))]
    if lines and original is not None:
        original({**data, "lines": lines}, *args, **options)
