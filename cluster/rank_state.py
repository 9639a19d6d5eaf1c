"""What one rank is doing at this moment, seen from another thread of its process: where its callable is in
the code, whether it computes, and how many collective calls it has made.

Looking needs nothing of the callable, which may be blocked for good: its stack is read from the interpreter,
twice, half a second apart, with the processor time that its thread used in between. It costs nothing before
and changes nothing. A process whose native code holds the interpreter's lock cannot look at itself: then the
call does not return, and `cluster.native_stack` looks from outside.
"""

from __future__ import annotations

import contextlib
import linecache
import os
import sys
import sysconfig
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from types import FrameType

_BETWEEN_S = 0.5
_OWN = ("cluster", "ray", "torch")
_STANDARD = os.path.realpath(sysconfig.get_path("stdlib")) + os.sep
_INSTALLED = frozenset({"site-packages", "dist-packages"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One call on a stack.

    Attributes:
        file, line: Where it is.
        function: The function's name.
        module: The dotted name of its module.
        text: The line itself, stripped; empty where the file is not there.
        is_users: It belongs neither to this project nor to an installed package.
    """

    file: str
    line: int
    function: str
    module: str
    text: str
    is_users: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RankState:
    """What a rank is doing.

    Attributes:
        frames: The stack of the callable's thread, outermost first; empty where no callable runs.
        moved: The stack changed while it was looked at.
        load: The share of one core that the thread used meanwhile, 0 to 1.
        calls: Collective calls made in the default process group since it was formed; None where it cannot
            be told.
        where: What the callable says that it is doing, such as "epoch 1, step 40".
        holds_lock: Native code there holds the interpreter's lock; it was looked at from outside.
    """

    frames: tuple[Frame, ...]
    moved: bool = False
    load: float = 0.0
    calls: int | None = None
    where: str | None = None
    holds_lock: bool = False

    @property
    def has_returned(self) -> bool:
        """Whether no callable runs here: it has returned, or not begun."""
        return not self.frames


def observe(thread_id: int | None, native_id: int | None, hidden: Collection[str]) -> RankState:
    """Look at the thread in which the callable runs; takes half a second.

    Args:
        thread_id: Python's number of the thread; None where no callable runs.
        native_id: The kernel's.
        hidden: Top-level packages, beside those known here, whose frames are not the user's.
    """
    first = _stack(thread_id, hidden)
    began, used = time.monotonic(), _used_s(native_id)
    time.sleep(_BETWEEN_S)
    last = _stack(thread_id, hidden)
    load = (_used_s(native_id) - used) / (time.monotonic() - began)
    return RankState(
        frames=last, moved=first != last, load=min(1.0, max(0.0, load)), calls=count_collectives()
    )


def count_collectives() -> int | None:
    """Return how many collective calls this process has made in the default process group; None without one,
    or where its backend does not count.
    """
    dist = sys.modules.get("torch.distributed")
    if dist is None or not dist.is_available() or not dist.is_initialized():
        return None
    with contextlib.suppress(Exception):  # an inner door of torch: no number is worth no failure
        return int(dist.distributed_c10d._get_default_group()._get_sequence_number_for_group())
    return None


def _stack(thread_id: int | None, hidden: Collection[str]) -> tuple[Frame, ...]:
    frame = sys._current_frames().get(thread_id) if thread_id is not None else None
    return tuple(_frame(item, hidden) for item in reversed(list(_outwards(frame))))


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _frame(frame: FrameType, hidden: Collection[str]) -> Frame:
    file, module = frame.f_code.co_filename, str(frame.f_globals.get("__name__", ""))
    line = frame.f_lineno or frame.f_code.co_firstlineno
    return Frame(
        file=file,
        line=line,
        function=frame.f_code.co_name,
        module=module,
        text=linecache.getline(file, line).strip(),
        is_users=is_users(file, module, hidden),
    )


def is_users(file: str, module: str, hidden: Collection[str] = ()) -> bool:
    """Whether a frame belongs neither to this project, nor to torch, Ray, or another installed package.

    >>> is_users("/home/me/train.py", "__main__"), is_users("<frozen runpy>", "runpy")
    (True, False)

    Args:
        file: Of its code.
        module: The dotted name of its module.
        hidden: Top-level packages whose frames are not the user's.
    """
    if module.partition(".")[0] in (*_OWN, *hidden) or file.startswith("<frozen"):
        return False
    return _INSTALLED.isdisjoint(file.split(os.sep)) and not os.path.realpath(file).startswith(_STANDARD)


def _used_s(native_id: int | None) -> float:
    """Return the processor time of one thread in seconds; of the whole process where the kernel shows no
    threads.
    """
    try:
        with open(f"/proc/self/task/{native_id}/stat", encoding="ascii") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return time.process_time()
