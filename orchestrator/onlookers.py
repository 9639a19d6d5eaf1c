"""Lets others look on while batches are taken: a ledger that writes them down, an account that times them.

Whoever looks on is put around `advance` when it begins to, and taken away when it leaves, in any order. While
nobody does, whoever calls `advance` calls the method itself, so looking on costs nothing where nobody does.
What an onlooker raises goes on to the loop.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

Onlooker = Callable[[Callable[[], bool]], bool]
"""Takes a batch by calling what it is given, and returns what that returned."""


class Advancing:
    """Something that is advanced batch by batch, on which others can look."""

    def __init__(self) -> None:
        self._onlookers: list[Onlooker] = []

    def advance(self) -> bool:
        """Take the next batch; return False when there is none on any rank."""
        raise NotImplementedError

    def look_on(self, onlooker: Onlooker) -> Callable[[], None]:
        """Let `onlooker` take each batch from here on, around those that look on already; return what ends
        that.
        """
        self._onlookers.append(onlooker)
        self._put_around()

        def leave() -> None:
            self._onlookers.remove(onlooker)
            self._put_around()

        return leave

    def _put_around(self) -> None:
        self.__dict__.pop("advance", None)
        if self._onlookers:
            take = self.advance
            for onlooker in self._onlookers:
                take = functools.partial(onlooker, take)
            self.__dict__["advance"] = take
