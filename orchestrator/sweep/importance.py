"""How much each part of a configuration has to do with the result. Pure.

For each parameter, trials are put into groups: by value where it has few, else into at most five of equal
size by its order. The importance is the share of the variance of the results' ranks that lies between the
groups, corrected for what chance alone would give (epsilon squared of Kelley, 1935); 0 for none, 1 for all.
Ranks, so that one diverged trial does not drown the rest. It sees each parameter alone: two that matter only
together look unimportant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_GROUPS = 5


def importances(configs: Sequence[Mapping[str, Any]], values: Sequence[float]) -> dict[str, float]:
    """Return the importance of each parameter that varies, the greatest first.

    Args:
        configs: Flat configurations, one for each trial.
        values: Of the metric, one for each trial; all finite.

    >>> importances([{"a": i, "b": i % 2} for i in range(20)], [float(i) for i in range(20)])
    {'a': 0.9523809523809524, 'b': 0.0}
    """
    ranks = rank(values)
    names = dict.fromkeys(name for config in configs for name in config)
    found = {}
    for name in names:
        groups = grouped([config.get(name) for config in configs])
        if len(set(groups)) > 1:
            found[name] = epsilon_squared(groups, ranks)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def epsilon_squared(groups: Sequence[int], values: Sequence[float]) -> float:
    """Return the share of variance between groups, corrected for chance, from 0 to 1."""
    total, count = len(values), len(set(groups))
    mean = sum(values) / total
    whole = sum((value - mean) ** 2 for value in values)
    if whole == 0 or total <= count:
        return 0.0
    between = 0.0
    for group in set(groups):
        members = [value for value, owner in zip(values, groups, strict=True) if owner == group]
        between += len(members) * (sum(members) / len(members) - mean) ** 2
    within = (whole - between) / (total - count)
    return max(0.0, (between - (count - 1) * within) / whole)


def grouped(values: Sequence[Any]) -> list[int]:
    """Return the number of each value's group.

    >>> grouped(["x", "y", "x"])
    [0, 1, 0]
    >>> grouped([0.1, 0.9, 0.2, 0.8, 0.3, 0.7])
    [0, 1, 0, 1, 0, 1]
    """
    distinct = list(dict.fromkeys(map(_key, values)))
    numeric = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    if not numeric or len(distinct) <= min(_GROUPS, len(values) // 2):
        return [distinct.index(_key(value)) for value in values]
    count = max(2, min(_GROUPS, len(values) // 3))
    order = sorted(range(len(values)), key=lambda index: values[index])
    groups = [0] * len(values)
    for place, index in enumerate(order):
        groups[index] = place * count // len(values)
    return groups


def rank(values: Sequence[float]) -> list[float]:
    """Return each value's rank from 0; equal values share the mean of theirs.

    >>> rank([3.0, 1.0, 3.0])
    [1.5, 0.0, 1.5]
    """
    order = sorted(range(len(values)), key=lambda index: values[index])
    ranks = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end + 1 < len(order) and values[order[end + 1]] == values[order[start]]:
            end += 1
        for place in range(start, end + 1):
            ranks[order[place]] = (start + end) / 2
        start = end + 1
    return ranks


def _key(value: Any) -> Any:
    return value if isinstance(value, (int, float, str, bool, type(None))) else str(value)
