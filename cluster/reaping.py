"""Waits until processes of this machine are gone, so that whoever looks after a shutdown finds nothing."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time
from collections.abc import Sequence


def wait_gone(pids: Sequence[int], timeout_s: float) -> list[int]:
    """Wait until none of the processes exists any more, at most `timeout_s` seconds.

    Args:
        pids: process ids of this machine; they need not be this process's children.
        timeout_s: seconds for all of them together.

    Returns:
        Those that still exist.
    """
    deadline = time.monotonic() + timeout_s
    return [pid for pid in pids if not _gone_by(pid, deadline)]


def _gone_by(pid: int, deadline: float) -> bool:
    if sys.platform == "linux":
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            return True
        except OSError:  # a kernel without pidfd
            return _poll_gone(pid, deadline)
        try:
            waiter = select.poll()
            waiter.register(handle, select.POLLIN)
            waiter.poll(max(0.0, deadline - time.monotonic()) * 1000)
        finally:
            os.close(handle)
    return _poll_gone(pid, deadline)


def _poll_gone(pid: int, deadline: float) -> bool:
    """Look every few milliseconds: nothing tells when a parent has noticed that its child ended."""
    while True:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        if time.monotonic() >= deadline:
            return False
        with contextlib.suppress(InterruptedError):
            time.sleep(0.005)
