"""How the values of all ranks become one: a pure function of what each rank has logged.

Ranks may have logged different names, unequally often, and with batches of different sizes: what a rank has
not logged it simply does not contribute, so nobody waits for it, and means are exact over all samples. The
result is the same on every rank and in every run. Nothing here communicates or fails.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from orchestrator.log_values import least


class Record(NamedTuple):
    """What one rank has of one metric.

    Attributes:
        name: The metric's name, with the loader's number.
        hook: Where it was logged.
        reduce: mean, sum, min or max.
        sync: Reduce over ranks; otherwise the first rank's value counts.
        value: Of a mean, the sum of value times weight; otherwise the reduction of this rank's values.
        weight: Of a mean, the sum of the weights: samples.
        ranks: With `sync`, the ranks over which; None for all.
    """

    name: str
    hook: str
    reduce: str
    sync: bool
    value: float
    weight: float
    ranks: tuple[int, ...] | None = None


def combine(records_by_rank: list[list[Record]]) -> dict[tuple[str, str], float]:
    """Return the value of each (name, hook): over ranks where asked for, else the first rank's that has it.

    Where a metric is reduced over some ranks only, these are those that the first rank that has it named.
    """
    grouped: dict[tuple[str, str], list[tuple[int, Record]]] = {}
    for rank, records in enumerate(records_by_rank):
        for record in records:
            grouped.setdefault((record.name, record.hook), []).append((rank, record))
    values: dict[tuple[str, str], float] = {}
    for key, parts in grouped.items():
        first = parts[0][1]
        used = [
            record for rank, record in parts if first.sync and (first.ranks is None or rank in first.ranks)
        ]
        values[key] = _reduce(first.reduce, used or [first])
    return values


def _reduce(reduce: str, records: list[Record]) -> float:
    if reduce == "mean":
        weight = sum(record.weight for record in records)
        return sum(record.value for record in records) / weight if weight else math.nan
    if reduce == "sum":
        return sum(record.value for record in records)
    if reduce == "min":
        return least(*(record.value for record in records))
    return -least(*(-record.value for record in records))
