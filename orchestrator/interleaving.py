"""Puts what ranks have predicted back into the order of the data.

Whole batches were dealt to ranks in turn, so taking them in turn restores the order. Pure.
"""

from __future__ import annotations

from typing import Any


def interleave(by_rank: list[list[list[Any]]]) -> list[list[Any]]:
    """Return each loader's batches in the order of the data.

    >>> interleave([[["a", "c"]], [["b"]]])
    [['a', 'b', 'c']]
    """
    loaders = []
    for parts in zip(*by_rank, strict=True):
        batches: list[Any] = []
        for row in range(max(map(len, parts), default=0)):
            batches.extend(part[row] for part in parts if row < len(part))
        loaders.append(batches)
    return loaders
