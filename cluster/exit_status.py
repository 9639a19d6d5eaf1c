"""Keeps the exit status of a script that Ctrl-C has ended: 130, where ending Ray would make it 1.

CPython notes that a script was left by KeyboardInterrupt, and ends the process accordingly after its exit
handlers; but it forgets it as soon as one of those runs code from a string, as Ray's do. So it is reminded by
a handler that runs after them. Where another Python keeps its notes otherwise, the status stays 1.
"""

from __future__ import annotations

import atexit
import contextlib
import sys


def keep_interrupts() -> None:
    """From now on remind Python at exit; to be called before Ray is imported, so as to run after it."""
    atexit.unregister(_remind)
    atexit.register(_remind)


def _remind() -> None:
    last = getattr(sys, "last_type", None)  # of what has ended the script
    if last is not None and issubclass(last, KeyboardInterrupt) and not hasattr(sys, "ps1"):
        with contextlib.suppress(KeyboardInterrupt):
            exec("raise KeyboardInterrupt")
