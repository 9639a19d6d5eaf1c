"""Environment variables that are changed for a while: what was changed, and how to put it back.

Putting back leaves alone what someone else has set in the meantime.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

Changes = dict[str, tuple[str | None, str | None]]
"""For each variable its value before and after; None: not set."""


def changes_since(before: Mapping[str, str]) -> Changes:
    """The variables of this process that differ from those of `before`, a copy of `os.environ`."""
    return {
        name: (before.get(name), os.environ.get(name))
        for name in before.keys() | os.environ.keys()
        if before.get(name) != os.environ.get(name)
    }


def undo(changes: Changes) -> None:
    """Put variables back, but for those that no longer have the value they were changed to."""
    for name, (before, after) in changes.items():
        if os.environ.get(name) != after:
            continue
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before


@contextmanager
def defaulted(**values: str) -> Iterator[None]:
    """Set variables that are not set, for the duration of the block."""
    before = dict(os.environ)
    for name, value in values.items():
        os.environ.setdefault(name, value)
    changes = changes_since(before)
    try:
        yield
    finally:
        undo(changes)
