"""Reads the stack of a process that cannot look at itself, because native code in it holds the interpreter's
lock: a compilation, an extension that waits for its own network, a deadlock in a library.

Each worker keeps a signal handler of Python's `faulthandler`, which needs no lock, and a memory file that it
writes to. Another process of the same user on the same node sends the signal and reads the file. It costs
nothing before, and the process goes on afterwards as if nothing had been. Linux only; elsewhere, and where
the process is gone or has no such file, there is nothing to read.
"""

from __future__ import annotations

import contextlib
import faulthandler
import linecache
import os
import re
import signal
import sys
import time

from cluster.preflight import OWN_PACKAGES
from cluster.rank_state import Frame, RankState, is_users

_NAME = "cluster-stacks"
_BETWEEN_S = 0.5
_WAIT_S = 2.0
_LOOK_S = 0.02
_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_FRAME = re.compile(r'^  File "(.*)", line (\d+) in (.*)$')


def register() -> None:
    """Let others read this process's stacks from now on."""
    if sys.platform == "linux":
        faulthandler.register(_signal(), file=os.memfd_create(_NAME), all_threads=True)


def observe_process(pid: int, outermost: tuple[str, str]) -> RankState | None:
    """Say what another process of this machine is doing that has called `register`; takes half a second.

    Args:
        pid: The process.
        outermost: The end of the path of a file, and a function in it: the thread that is wanted has come
            through there, and its frames before that are left out.

    Returns:
        The state, without the count of calls; None where it cannot be read.
    """
    before_s = _used_s(pid)
    began = time.monotonic()
    first = read_stacks(pid)
    if first is None:
        return None
    time.sleep(max(0.0, _BETWEEN_S - (time.monotonic() - began)))
    frames = find_thread(read_stacks(pid) or "", outermost)
    load = (_used_s(pid) - before_s) / (time.monotonic() - began)
    moved = frames != find_thread(first, outermost)
    return RankState(frames=frames, moved=moved, load=min(1.0, load), holds_lock=True) if frames else None


def read_stacks(pid: int) -> str | None:
    """Return what `faulthandler` writes of all threads of a process; None where it cannot be had."""
    with contextlib.suppress(OSError):
        path = _file_of(pid)
        if path is None:
            return None
        with open(path, "rb") as file:
            start = file.seek(0, os.SEEK_END)
            os.kill(pid, _signal())
            until, size = time.monotonic() + _WAIT_S, start
            while time.monotonic() < until:
                time.sleep(_LOOK_S)
                known, size = size, file.seek(0, os.SEEK_END)
                if size == known > start:
                    break
            file.seek(start)
            return file.read().decode(errors="replace") or None
    return None


def find_thread(text: str, outermost: tuple[str, str]) -> tuple[Frame, ...]:
    """Return the stack of the thread that has come through a function, outermost first; pure but for reading
    the lines of source.

    Args:
        text: As `read_stacks` returns it.
        outermost: As for `observe_process`.
    """
    for thread in text.split("\n\n"):
        found = [match.groups() for line in thread.splitlines() if (match := _FRAME.match(line))]
        for index, (file, _, function) in enumerate(found):
            if file.endswith(outermost[0]) and function == outermost[1]:
                return tuple(_frame(*item) for item in found[index::-1])
    return ()


def _frame(file: str, line: str, function: str) -> Frame:
    module = _module_of(file)
    return Frame(
        file=file,
        line=int(line),
        function=function,
        module=module,
        text=linecache.getline(file, int(line)).strip(),
        is_users=is_users(file, module, OWN_PACKAGES),
    )


def _module_of(file: str) -> str:
    """Return the name of the module that a file is, as far as its path tells."""
    path = file.removesuffix(".py").removesuffix(f"{os.sep}__init__")
    for root in (_ROOT, *sys.path):
        if root and path.startswith(root + os.sep):
            return path[len(root) + 1 :].replace(os.sep, ".")
    return os.path.basename(path)


def _file_of(pid: int) -> str | None:
    folder = f"/proc/{pid}/fd"
    for name in os.listdir(folder):
        with contextlib.suppress(OSError):
            if os.readlink(f"{folder}/{name}").startswith(f"/memfd:{_NAME}"):
                return f"{folder}/{name}"
    return None


def _signal() -> int:
    """A signal that neither Python, Ray nor the kernel means anything by."""
    return int(signal.SIGRTMAX) - 2


def _used_s(pid: int) -> float:
    import psutil

    with contextlib.suppress(psutil.Error):
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)
    return 0.0
