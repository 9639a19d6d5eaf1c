"""Callbacks that installed packages add to every Trainer, through the entry points
``orchestrator.callbacks_factory``.

Each entry point is a function without arguments that returns one callback or a list of them. The entry points
are looked up once a process; the functions are called for each Trainer, which so gets callbacks of its own. A
function that returns anything else raises `MisconfigurationError` naming it.
"""

from __future__ import annotations

import functools
from importlib.metadata import EntryPoint, entry_points

from orchestrator.callbacks.callback import Callback
from orchestrator.errors import MisconfigurationError

GROUP = "orchestrator.callbacks_factory"


@functools.cache
def _found() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=GROUP))


def callbacks_of_factories() -> list[Callback]:
    """Return new callbacks of all factories that are installed, in the order of their names."""
    callbacks: list[Callback] = []
    for entry in sorted(_found(), key=lambda item: item.name):
        made = entry.load()()
        for item in made if isinstance(made, (list, tuple)) else [made]:
            if not isinstance(item, Callback):
                raise MisconfigurationError(
                    f"The entry point {entry.name} = {entry.value} of the group {GROUP} returned {item!r}. "
                    "It must return a Callback, or a list of them; mend or uninstall its package."
                )
            callbacks.append(item)
    return callbacks
