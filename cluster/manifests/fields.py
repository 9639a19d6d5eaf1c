"""Checks a document against the fields that a system documents: unknown and missing ones are found, all at
once.

A schema says of each field what lies in it. The check never looks at more than names and shapes: whether an
image exists, or a quantity is large enough, is for the system to say.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """A mapping with documented fields.

    Attributes:
        known: What lies in each field: another `Fields`, `Each`, `Named`, or None for anything.
        required: Fields that must be there.
    """

    known: Mapping[str, Any]
    required: frozenset[str] = field(default_factory=frozenset)


@dataclass(frozen=True, slots=True)
class Each:
    """A list of such things."""

    item: Any


@dataclass(frozen=True, slots=True)
class Named:
    """A mapping whose keys are names that the user chooses, with such things behind them."""

    item: Any


def names(text: str) -> dict[str, None]:
    """Return fields of which nothing but the name is checked, from their names with spaces between."""
    return dict.fromkeys(text.split())


def problems(value: Any, schema: Any, place: str = "") -> Iterator[str]:
    """Yield a sentence for everything in `value` that `schema` does not allow.

    >>> list(problems({"nmae": 1}, Fields(known={"name": None}, required=frozenset({"name"}))))
    ["unknown field 'nmae'. Did you mean 'name'?", "missing field 'name'."]
    """
    where = f"{place}: " if place else ""
    if isinstance(schema, Fields):
        if not isinstance(value, Mapping):
            yield f"{where}needs fields, and is {_shown(value)}."
            return
        for key, item in value.items():
            if key in schema.known:
                yield from problems(item, schema.known[key], f"{place}.{key}" if place else str(key))
            else:
                near = difflib.get_close_matches(str(key), list(schema.known), n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                yield f"{where}unknown field {str(key)!r}.{hint}"
        for key in sorted(schema.required - set(value)):
            yield f"{where}missing field {key!r}."
    elif isinstance(schema, Each):
        if not isinstance(value, list):
            yield f"{where}needs a list, and is {_shown(value)}."
            return
        for index, item in enumerate(value):
            yield from problems(item, schema.item, f"{place}[{index}]")
    elif isinstance(schema, Named):
        if not isinstance(value, Mapping):
            yield f"{where}needs names, and is {_shown(value)}."
            return
        for key, item in value.items():
            yield from problems(item, schema.item, f"{place}.{key}" if place else str(key))


def _shown(value: Any) -> str:
    return "empty" if value is None else repr(value)[:60]
