"""Keeps ended-with worker groups warm for a while, so that the next call with equal needs starts in
milliseconds.

There is one pool per driver process. A group is lent to one borrower at a time. It comes back where it is
still alive and is used again for an equal `GroupSpec`; it ends after `IDLE_TIMEOUT_S` seconds of idleness,
when its room may be needed for another spec, when a source file of the user's has changed that its workers
may have imported, at `end`, or at exit.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cluster.errors import ClusterError
from cluster.group import WorkerGroup
from cluster.sources import Stamp, have_changed, stamps
from cluster.spec import GroupSpec

IDLE_TIMEOUT_S = 60.0


@dataclass(slots=True, kw_only=True)
class _Idle:
    group: WorkerGroup
    sources: dict[str, Stamp]  # the user's files as they were when workers may have imported them
    until: float = 0.0  # on the clock of time.monotonic


class _Pool:
    """The idle groups, oldest first, and the thread that ends them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._idle: list[_Idle] = []
        self._timer: threading.Thread | None = None
        self._pid = os.getpid()

    def take(self, spec: GroupSpec) -> _Idle | None:
        """An idle group of that spec, its process group formed anew; those found dead are ended, and those
        whose workers hold modules as they were before somebody changed them.
        """
        while True:
            with self._changed:
                found = next((idle for idle in self._idle if idle.group.spec == spec), None)
                if found is None:
                    return None
                self._idle.remove(found)
                self._changed.notify_all()
            if found.group.alive and not have_changed(found.sources):
                with contextlib.suppress(ClusterError):  # it died at this moment: then start another
                    found.group.reform()
                    return found
            found.group.shutdown()

    def put(self, lent: _Idle) -> None:
        """Keep a group for the idle time."""
        with self._changed:
            lent.until = time.monotonic() + IDLE_TIMEOUT_S
            self._idle.append(lent)
            if self._timer is None:
                self._timer = threading.Thread(target=self._end_old, name="cluster-pool-idle", daemon=True)
                self._timer.start()
            self._changed.notify_all()

    def end(self) -> None:
        """End all idle groups, and the thread with them."""
        with self._changed:
            idle, self._idle = self._idle, []
            timer = self._timer
            self._changed.notify_all()
        for each in idle:
            each.group.shutdown()
        if timer is not None and timer is not threading.current_thread():
            timer.join()

    def end_within(self, placement_group: Any) -> None:
        """End the idle groups that hold bundles of a placement group from outside, which others need now."""
        with self._changed:
            held = [idle for idle in self._idle if idle.group.spec.placement_group == placement_group]
            self._idle = [idle for idle in self._idle if idle not in held]
            self._changed.notify_all()
        for each in held:
            each.group.shutdown()

    def _end_old(self) -> None:
        """Body of the thread: sleep until the oldest is due; end with the last."""
        while True:
            with self._changed:
                if not self._idle:
                    self._timer = None
                    return
                wait_s = self._idle[0].until - time.monotonic()
                if wait_s > 0:
                    self._changed.wait(wait_s)
                    continue
                due = self._idle.pop(0)
            due.group.shutdown()


_pool = _Pool()


@contextlib.contextmanager
def lease(spec: GroupSpec) -> Iterator[WorkerGroup]:
    """Borrow a worker group for the duration of a block: a warm one of an equal spec, else a new one.

    Args:
        spec: what is needed.

    Yields:
        The group. After the block it is kept warm if it is still alive, also when the block raised; else it
        has ended.

    Raises:
        ClusterError: as `WorkerGroup.start`.
    """
    global _pool
    if _pool._pid != os.getpid():  # a forked child owns none of its parent's groups
        _pool = _Pool()
    pool = _pool
    lent = pool.take(spec) or _Idle(group=_start(pool, spec), sources={})
    lent.sources = {**stamps(), **lent.sources}
    atexit.unregister(end)
    atexit.register(end)  # registered after session's own, so it runs before it
    try:
        yield lent.group
    finally:
        _take_back(pool, lent)


def end() -> None:
    """End all idle groups now. Groups that are lent out are their borrowers' business."""
    if _pool._pid == os.getpid():
        _pool.end()


def _start(pool: _Pool, spec: GroupSpec) -> WorkerGroup:
    """A new group; idle ones end if their room is needed for it."""
    if spec.placement_group is not None:
        pool.end_within(spec.placement_group)
    return WorkerGroup.start(spec, make_room=pool.end)


def _take_back(pool: _Pool, lent: _Idle) -> None:
    if lent.group.alive:
        pool.put(lent)
    else:
        lent.group.shutdown()
