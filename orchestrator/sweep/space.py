"""What a search space holds, looked at before anything starts. Pure.

A space is a mapping from names to plain values, to Ray Tune's distributions (``tune.loguniform``, ...), to
grids (``tune.grid_search``) and to further such mappings. What cannot be one is a `MisconfigurationError`
that names the key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.errors import MisconfigurationError

_HINT = "Use a dictionary from names to values and distributions."


def check_space(space: object) -> dict[str, Any]:
    """Return the space as a dictionary.

    Raises:
        MisconfigurationError: It is no mapping from strings, or a grid or choice in it has no values, or a
            value is a distribution of another library.
    """
    if not isinstance(space, Mapping) or not all(isinstance(key, str) for key in space):
        raise MisconfigurationError(f"Sweep(space={space!r}) is not a search space. {_HINT}")
    for path, value in leaves(space):
        if is_grid(value) and not value["grid_search"]:
            raise MisconfigurationError(
                f"Sweep(space=...): {path!r} is a grid of no values. Give it at least one."
            )
        if getattr(value, "categories", None) == []:
            raise MisconfigurationError(
                f"Sweep(space=...): {path!r} is a choice among no values. Give it at least one."
            )
        if hasattr(value, "rvs") and not hasattr(value, "sample"):
            raise MisconfigurationError(
                f"Sweep(space=...): {path!r} is a {type(value).__module__} distribution, which a "
                "sweep cannot "
                "draw from. Use one of ray.tune, such as tune.uniform, or tune.sample_from."
            )
    return dict(space)


def leaves(space: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of a space that are no further spaces, with their paths.

    >>> list(leaves({"optimizer": {"lr": 0.1}, "width": {"grid_search": [1, 2]}}))
    [('optimizer/lr', 0.1), ('width', {'grid_search': [1, 2]})]
    """
    for name, value in space.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping) and not is_grid(value):
            yield from leaves(value, f"{path}/")
        else:
            yield path, value


def is_grid(value: object) -> bool:
    """Return whether a value is what ``tune.grid_search`` makes."""
    return (
        isinstance(value, Mapping)
        and set(value) == {"grid_search"}
        and isinstance(value["grid_search"], list)
    )


def is_searched(value: object) -> bool:
    """Return whether trials get different values of this part of a space."""
    return (
        is_grid(value) or (hasattr(value, "sample") and hasattr(value, "is_valid")) or hasattr(value, "func")
    )


def searched_names(space: Mapping[str, Any]) -> list[str]:
    """Return the paths in a space by which trials differ; all of them where none is searched."""
    found = [path for path, value in leaves(space) if is_searched(value)]
    return found or [path for path, _ in leaves(space)]


def grid_size(space: Mapping[str, Any]) -> int:
    """Return how many trials one sample of the space makes: the product over its grids.

    >>> grid_size({"a": {"grid_search": [1, 2, 3]}, "b": {"grid_search": [1, 2]}, "c": 5})
    6
    """
    size = 1
    for _, value in leaves(space):
        size *= len(value["grid_search"]) if is_grid(value) else 1
    return size


def value_at(config: Mapping[str, Any], path: str) -> Any:
    """Return the value of a configuration at a path of `leaves`; None where there is none."""
    value: Any = config
    for name in path.split("/"):
        if not isinstance(value, Mapping) or name not in value:
            return None
        value = value[name]
    return value


def describe_space(space: Mapping[str, Any]) -> dict[str, str]:
    """Return what tells this space from another, as text by path."""
    return {path: _describe(value) for path, value in leaves(space)}


def _describe(value: Any) -> str:
    if is_grid(value):
        return f"grid {value['grid_search']!r}"
    if not is_searched(value):
        return _fact(value)
    sampler = getattr(value, "sampler", None)
    facts = [type(value).__name__, *_facts(value)]
    while sampler is not None:
        facts += [type(sampler).__name__, *_facts(sampler)]
        sampler = getattr(sampler, "sampler", None)
    return " ".join(facts)


def _facts(part: object) -> list[str]:
    return [
        f"{name}={_fact(held)}"
        for name, held in sorted(vars(part).items())
        if name not in ("sampler", "func")
    ]


def _fact(value: object) -> str:
    """Return a value as text that is the same in another process."""
    plain = isinstance(value, (int, float, str, list, tuple, type(None)))
    return repr(value) if plain else getattr(value, "__qualname__", type(value).__qualname__)
