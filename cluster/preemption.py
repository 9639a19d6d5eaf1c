"""Being told to go: by SIGTERM to a worker, or by Ray, which drains a node before it takes it away.

A notice reaches whoever drives the run, who decides: go on elsewhere, or save and stop. It names the ranks
that must go and the moment at which they will be gone; nobody is killed for having been told. A worker whose
callable has not said that it heeds notices ends at once when it gets a SIGTERM, without a word, which the
driver sees as its death. Where this version of Ray does not tell which nodes it drains, there are no notices
of that kind.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cluster.ranks import WorkerInfo

logger = logging.getLogger("cluster")

GRACE_S = 30.0
"""Seconds between SIGTERM and SIGKILL where nobody says otherwise: as Kubernetes has it."""
EXIT_STATUS = 128 + signal.SIGTERM
"""How a shell shows a process that SIGTERM has ended."""
_POLL_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """Somebody must go.

    Attributes:
        reason: In words, such as "SIGTERM to rank 1 (pid 77 on node 10.0.0.2)".
        ranks: Those that must go; empty: the driver, and so the run as a whole.
        deadline: When they will be gone, on this process's `time.monotonic` clock, in seconds.
    """

    reason: str
    ranks: tuple[int, ...]
    deadline: float


OnNotice = Callable[[Notice], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToldToGo:
    """What a worker says to the driver when it has got a SIGTERM."""

    pid: int
    node_ip: str


def set_handler(told: Callable[[], None]) -> None:
    """Call `told` at each SIGTERM to this process, in place of Ray's handler, which ends it with a dump.

    Python runs it in the main thread, which in a worker never runs a callable. In another thread nothing is
    set.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda number, frame: told())


def end_quietly() -> None:
    """End this process as SIGTERM does, without a dump."""
    os._exit(EXIT_STATUS)


def sorted_out(
    on_event: Callable[[int, object], None] | None, on_notice: OnNotice
) -> Callable[[int, object], None]:
    """Return a listener to events that passes what workers were told on to `on_notice`, the rest to
    `on_event`."""

    def listen(rank: int, event: object) -> None:
        if isinstance(event, ToldToGo):
            reason = f"SIGTERM to rank {rank} (pid {event.pid} on node {event.node_ip})"
            on_notice(Notice(reason=reason, ranks=(rank,), deadline=time.monotonic() + GRACE_S))
        elif on_event is not None:
            on_event(rank, event)

    return listen


# ---------------------------------------------------------------- Ray's drains


def draining_nodes() -> dict[str, int]:
    """Return Ray's ids of the nodes that it drains, with the deadline as Unix time in milliseconds (0: none
    is known); nothing where this version of Ray does not tell."""
    try:
        from ray._private.state import state  # there is no public way to ask

        return dict(state.get_draining_nodes())
    except Exception:  # an inner door of Ray's: a surprise means that it does not tell, or not now
        logger.debug("Ray does not tell which nodes it drains", exc_info=True)
        return {}


def notices_of(
    draining: Mapping[str, int],
    workers: Sequence[WorkerInfo],
    driver_node: str,
    *,
    unix_s: float,
    monotonic_s: float,
) -> dict[str, Notice]:
    """Return what draining these nodes means for a run, by node; nodes that it does not use mean nothing.

    Args:
        draining: Deadlines by node id, as `draining_nodes` returns them.
        workers: Who runs where.
        driver_node: The node of this process.
        unix_s: Now, as Unix time in seconds.
        monotonic_s: Now, on the clock of `time.monotonic`.
    """
    found = {}
    for node, deadline_ms in draining.items():
        here = [worker for worker in workers if worker.node_id == node]
        if not here and node != driver_node:
            continue
        left_s = deadline_ms / 1000 - unix_s if deadline_ms else GRACE_S
        where = here[0].node_ip if here else "of the driver"
        found[node] = Notice(
            reason=f"Ray drains node {where}, which will be gone in {max(0.0, left_s):.0f} s",
            ranks=() if node == driver_node else tuple(worker.rank for worker in here),
            deadline=monotonic_s + left_s,
        )
    return found


class DrainWatch:
    """Asks Ray once a second which nodes it drains, in a thread of its own, until `close`.

    Args:
        workers: Returns who runs where, at present.
        on_notice: Called in that thread, once for each node.
    """

    def __init__(self, workers: Callable[[], Sequence[WorkerInfo]], on_notice: OnNotice) -> None:
        import ray

        self._workers = workers
        self._on_notice = on_notice
        self._here = ray.get_runtime_context().get_node_id()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="cluster-drains", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop asking."""
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        told: set[str] = set()
        while True:
            draining = draining_nodes()
            if draining:
                notices = notices_of(
                    draining,
                    self._workers(),
                    self._here,
                    unix_s=time.time(),
                    monotonic_s=time.monotonic(),
                )
                for node, notice in notices.items():
                    if node not in told:
                        told.add(node)
                        self._on_notice(notice)
            if self._closed.wait(_POLL_S):
                return
