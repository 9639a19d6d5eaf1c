"""Reads on, and reads again what was read last, without asking the data set: for a step that is retried.

What reading draws from the process's random generators is not drawn again: they are set to where they stood
behind the batch. A batch that somebody has changed in place since cannot be given again, and is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from modules.rng_mark import RngMark, RngMarker, put


@dataclass(frozen=True, slots=True, kw_only=True)
class _Taken:
    batch: Any
    mark: RngMark
    versions: tuple[int, ...]


class Retaking(Iterator[Any]):
    """An iterator over batches that remembers them.

    Args:
        batches: What to read.
        position: The number of the first.
    """

    def __init__(self, batches: Iterator[Any], position: int) -> None:
        self._batches = batches
        self._marker = RngMarker()
        self._next = position
        self._taken: dict[int, _Taken] = {}
        self._newest = position

    def __next__(self) -> Any:
        """Return the next batch, a remembered one if it was read before."""
        taken = self._taken.get(self._next)
        if taken is None:
            batch = next(self._batches)
            taken = _Taken(batch=batch, mark=self._marker.take(), versions=_versions(batch))
            self._taken[self._next] = taken
            self._newest = self._next + 1
        else:
            put(taken.mark)
        self._next += 1
        return taken.batch

    def forget(self, before: int) -> None:
        """Remember no batch before that number."""
        for number in [number for number in self._taken if number < before]:
            del self._taken[number]

    def go_back(self, position: int) -> bool:
        """Make that number the next; return whether it and those behind it are remembered as they were."""
        again = range(position, self._newest)
        if any(number not in self._taken or _changed(self._taken[number]) for number in again):
            return False
        self._next = position
        return True


def _changed(taken: _Taken) -> bool:
    return _versions(taken.batch) != taken.versions


def _versions(batch: Any) -> tuple[int, ...]:
    """Return how often each tensor in a batch has been changed in place."""
    if isinstance(batch, Tensor):
        return (batch._version,)
    if isinstance(batch, dict):
        batch = batch.values()
    elif not isinstance(batch, (list, tuple)):
        return ()
    return tuple(version for item in batch for version in _versions(item))
