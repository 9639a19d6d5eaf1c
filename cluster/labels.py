"""Which nodes a label selector means, by Ray's rules for the labels of nodes.

A selector gives for each label a condition: `"a"` (has that value), `"!a"` (has not), `"in(a, b)"` (one of
these) or `"!in(a, b)"` (none of these). A node fits if all conditions hold; a label that it does not carry
fulfils the two that say not. Pure. What cannot be a selector raises `SpecError`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from cluster.errors import SpecError

Selector = tuple[tuple[str, str], ...]
"""Sorted (label, condition) pairs; empty for any node."""

_NAME = r"[a-zA-Z0-9](?:[a-zA-Z0-9_.-]{0,61}[a-zA-Z0-9])?"
_KEY = re.compile(rf"(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?/)?{_NAME}")
_CONDITION = re.compile(rf"(!?)(?:in\(\s*({_NAME}(?:\s*,\s*{_NAME})*)\s*\)|({_NAME}))")


def parse_selector(given: Any) -> Selector:
    """Check one selector.

    Args:
        given: a mapping of labels to conditions, or None for any node.

    Raises:
        SpecError: it is no mapping, or a label or condition is not one by Ray's rules.

    >>> parse_selector({"zone": "in(a, b)", "ray.io/accelerator-type": "H100"})
    (('ray.io/accelerator-type', 'H100'), ('zone', 'in(a, b)'))
    """
    if given is None:
        return ()
    if not isinstance(given, Mapping):
        raise SpecError(
            f"label_selector={given!r} is not a selector. Use a dictionary such as {{'zone': 'a'}}."
        )
    for label, condition in given.items():
        if not isinstance(label, str) or not _KEY.fullmatch(label):
            raise SpecError(
                f"label_selector has the label {label!r}, which no node can carry. "
                "Use letters, digits, '-', '_' and '.', with an optional prefix such as 'ray.io/'."
            )
        if not isinstance(condition, str) or not _CONDITION.fullmatch(condition):
            raise SpecError(
                f"label_selector[{label!r}]={condition!r} is not a condition. "
                "Use 'a', '!a', 'in(a, b)' or '!in(a, b)'."
            )
    return tuple(sorted(given.items()))


def matches(selector: Selector, labels: Mapping[str, str]) -> bool:
    """Whether a node that carries `labels` fits.

    >>> matches((("zone", "in(a, b)"),), {"zone": "b"}), matches((("zone", "!b"),), {})
    (True, True)
    """
    return all(_holds(condition, labels.get(label)) for label, condition in selector)


def _holds(condition: str, value: str | None) -> bool:
    found = _CONDITION.fullmatch(condition)
    if found is None:
        return False
    negated, several, one = found.groups()
    wanted = [one] if several is None else re.split(r"\s*,\s*", several)
    return (value in wanted) != bool(negated)
