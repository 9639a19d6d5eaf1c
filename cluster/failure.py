"""Turns the failures of a group into one error that reads like the failure of one process.

The worker that fails describes it: the exception itself, the user's own frames, where it was, its last lines
of output. The driver picks the first cause among what arrives, and raises that exception with its own type;
the rest is told in notes. A broken connection to a peer is a consequence: it is picked only if nothing else
failed. An exception that cannot be rebuilt becomes a `RemoteError` with the same text.
"""

from __future__ import annotations

import contextlib
import re
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from cluster.errors import PeerLost, RemoteError, RunLost, WorkerDied
from cluster.ranks import WorkerInfo
from cluster.serialization import load, round_trip

_BROKEN_LINK = re.compile(
    r"gloo/transport|Connection (reset|closed|refused)|Broken pipe|NCCL (error|communicator was aborted)|"
    r"Socket Timeout|store.*(timed out|timeout)|remote process exited",
    re.IGNORECASE,
)
_OWN_PACKAGE = Path(__file__).parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One rank's failure, as it travels to the driver.

    Attributes:
        rank: the rank that failed.
        time_s: when, in seconds since the epoch on that node's clock.
        exception: the exception, pickled; None if it cannot be rebuilt elsewhere.
        type_name, message: what the exception was.
        broken_link: it looks like the loss of a peer, and so like the consequence of another rank's failure.
        where: what the callable said it was doing.
        frames: the user's own frames, innermost last, with the chain of causes.
        output: the last lines that rank printed, unless the driver has shown them already.
    """

    rank: int
    time_s: float
    exception: bytes | None
    type_name: str
    message: str
    broken_link: bool
    where: str | None
    frames: str
    output: tuple[str, ...] = ()

    @property
    def is_death(self) -> bool:
        """The process itself ended, rather than its callable."""
        return self.type_name == WorkerDied.__name__ and self.exception is None

    @property
    def is_lost_run(self) -> bool:
        """The callable cannot go on after the loss of another rank."""
        return self.broken_link or self.type_name == f"{RunLost.__module__}.{RunLost.__name__}"


def describe(
    error: BaseException, *, rank: int, where: str | None, hidden: Sequence[str], output: Sequence[str]
) -> Failure:
    """Describe an exception on the worker where it was raised.

    Args:
        error: as caught, with its traceback.
        rank: the rank of this worker.
        where: what the callable was doing.
        hidden: further top-level packages whose frames do not belong to the user.
        output: the last lines printed here.
    """
    return Failure(
        rank=rank,
        time_s=time.time(),
        exception=_portable(error),
        type_name=_type_name(error),
        message=str(error),
        broken_link=is_broken_link(error),
        where=where,
        frames=_frames(error, hidden),
        output=tuple(output),
    )


def describe_death(rank: int, cause: str) -> Failure:
    """A worker's process ended, as the driver sees it."""
    return Failure(
        rank=rank,
        time_s=time.time(),
        exception=None,
        type_name=WorkerDied.__name__,
        message=cause,
        broken_link=False,
        where=None,
        frames="",
    )


def choose_first(failures: Sequence[Failure]) -> Failure:
    """The first cause: the earliest, and a broken link only if there is nothing else."""
    return min(failures, key=lambda failure: (failure.broken_link, failure.time_s, failure.rank))


def rebuild(first: Failure, workers: Sequence[WorkerInfo], finished: Sequence[int]) -> BaseException:
    """The exception to raise in the driver.

    Args:
        first: the first cause.
        workers: all workers, in rank order.
        finished: the ranks whose callable had returned.

    Returns:
        The exception itself, or a WorkerDied or RemoteError, with notes that say where it came from.
    """
    worker = workers[first.rank]
    place = f"rank {worker.rank} of {worker.world_size} on node {worker.node_ip} (pid {worker.pid})"
    error: BaseException
    if first.is_death:
        error = WorkerDied(
            f"The process of {place} ended: {first.message}. "
            "The run was stopped and nothing of it is left; start it again, from a checkpoint if one exists.",
            rank=worker.rank,
            node_ip=worker.node_ip,
            pid=worker.pid,
            cause=first.message,
        )
    else:
        error = _unpickle(first)
        error.add_note(f"Raised on {place}" + (f", {first.where}" if first.where else "") + ":")
        if first.frames:
            error.add_note(first.frames.rstrip())
    if first.output:
        error.add_note(
            f"Last output of rank {worker.rank}:\n" + "\n".join(f"  | {line}" for line in first.output)
        )
    if first.broken_link and finished:
        ranks = ", ".join(map(str, finished))
        error.add_note(f"Rank {ranks} had returned already. Does every rank make the same collective calls?")
    consequences = len(workers) - len(finished) - 1
    if consequences:
        error.add_note(f"{consequences} other rank{'s' if consequences > 1 else ''} failed in consequence.")
    return error


def explain_death(message: str) -> str:
    """Why a process ended, in a few words, from Ray's long message."""
    text = " ".join(message.split())
    told, _, _ = text.partition("Some common causes include")  # what follows is Ray's guessing
    for pattern, cause in _DEATHS:
        if re.search(pattern, told, re.IGNORECASE):
            return cause
    code = re.search(r"exit code (\d+)", told)
    if code:
        return f"it exited with code {code.group(1)}"
    return told[:300].rstrip(". ") or "unknown"


_DEATHS = (
    (
        r"memory monitor|OutOfMemory|low on memory|memory pressure",
        "it was killed because its node ran out of memory",
    ),
    (r"receives? a SIGTERM", "it was ended by SIGTERM"),
    (r"ray\.kill", "it was killed by ray.kill"),
    (
        r"unavailable|node.{0,80}(died|dead|terminated|removed|lost)|preempt|drain",
        "its node was lost or is out of reach",
    ),
    (
        r"connection error code 2|SIGKILL|End of file",
        (
            "it was killed (by the kernel for lack of memory, by a crash in native code, by os._exit, "
            "or by hand)"
        ),
    ),
)


def _unpickle(first: Failure) -> BaseException:
    if first.exception is not None:
        try:
            error = load(first.exception)
        except Exception:
            error = None
        if isinstance(error, _Parts):
            error = error.rebuild()
        if isinstance(error, BaseException):
            return error
    return RemoteError(f"{first.type_name}: {first.message}", type_name=first.type_name)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """An exception in parts: for classes whose constructor takes other arguments than `args` tells pickle."""

    kind: type[BaseException]
    args: tuple[Any, ...]
    state: dict[str, Any]

    def rebuild(self) -> BaseException:
        """Make the exception without calling its constructor."""
        error = self.kind.__new__(self.kind, *self.args)
        error.__dict__.update(self.state)
        return error


def _portable(error: BaseException) -> bytes | None:
    """The exception pickled, whole or in parts, if it comes back as what it was; else None."""
    found = round_trip(error)
    if found is not None and _is_same(found[1], error):
        return found[0]
    found = round_trip(_Parts(kind=type(error), args=error.args, state=error.__dict__))
    if found is not None:
        with contextlib.suppress(Exception):
            if _is_same(found[1].rebuild(), error):
                return found[0]
    return None


def _is_same(copy: Any, error: BaseException) -> bool:
    return type(copy).__qualname__ == type(error).__qualname__ and str(copy) == str(error)


def _type_name(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _chain(error: BaseException) -> list[BaseException]:
    """The exception and what led to it, innermost cause first."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return chain[::-1]


def is_broken_link(error: BaseException) -> bool:
    """Whether an exception, or what led to it, looks like the loss of a peer."""
    return any(map(_tells_of_a_peer, _chain(error)))


def _tells_of_a_peer(error: BaseException) -> bool:
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"DistNetworkError", "DistStoreError", "DistBackendError", PeerLost.__name__}:
        return True
    return isinstance(error, RuntimeError) and _BROKEN_LINK.search(str(error)) is not None


def _frames(error: BaseException, hidden: Sequence[str]) -> str:
    parts = []
    for link in _chain(error):
        lines = traceback.format_list(_own_frames(link.__traceback__, hidden))
        parts.append("".join(lines) + "".join(traceback.format_exception_only(link)))
    return "which led to\n".join(parts)


def _own_frames(tb: TracebackType | None, hidden: Sequence[str]) -> list[traceback.FrameSummary]:
    """The frames that are the user's; the last frame if none is."""
    kept, last = [], []
    for frame, line in traceback.walk_tb(tb):
        summary = traceback.FrameSummary(
            frame.f_code.co_filename, line, frame.f_code.co_name, lookup_line=True, locals=None
        )
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        file = Path(frame.f_code.co_filename)
        last = [summary]
        if package not in ("ray", "torch", *hidden) and file.parent != _OWN_PACKAGE:
            kept.append(summary)
    return kept or last
