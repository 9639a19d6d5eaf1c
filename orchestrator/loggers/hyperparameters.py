"""Hyperparameters as loggers write them: plain values, a flat table, a YAML file.

Anything a user puts into hyperparameters can be written: what YAML and tables do not know appears as its
`repr`. The file is replaced in one step, so a reader sees the old or the new one, and it loads without
executing anything.
"""

from __future__ import annotations

import dataclasses
import enum
import os
from argparse import Namespace
from collections.abc import Mapping, Sequence, Set
from typing import Any

from orchestrator.errors import MisconfigurationError


def as_mapping(params: Mapping[str, Any] | Namespace | None) -> dict[str, Any]:
    """Return `params`, a mapping, an argparse Namespace, a dataclass instance or None, as a dict.

    Raises:
        MisconfigurationError: for anything else.
    """
    if params is None:
        return {}
    if isinstance(params, Namespace):
        return vars(params).copy()
    if isinstance(params, Mapping):
        return dict(params)
    if dataclasses.is_dataclass(params) and not isinstance(params, type):
        return {field.name: getattr(params, field.name) for field in dataclasses.fields(params)}
    raise MisconfigurationError(
        f"log_hyperparams got a {type(params).__name__}: {params!r}. Pass a dict, a Namespace or a dataclass."
    )


def to_plain(value: Any) -> Any:
    """Return `value` made only of None, bool, int, float, str, list and dict; what has no such form becomes
    its repr.

    >>> to_plain({"lr": 0.1, "layers": (4, 8), "act": abs})
    {'lr': 0.1, 'layers': [4, 8], 'act': '<built-in function abs>'}
    """
    if isinstance(value, enum.Enum):
        return value.name
    for kind in (
        bool,
        int,
        float,
        str,
    ):  # also turns subclasses, NumPy's float64 for one, into the plain type
        if isinstance(value, kind):
            return kind(value)
    if value is None:
        return None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Namespace):
        return to_plain(vars(value))
    if isinstance(value, Mapping):
        return {
            key if isinstance(key, str | int | bool) else str(key): to_plain(item)
            for key, item in value.items()
        }
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [to_plain(item) for item in value]
    if isinstance(value, Set):
        return sorted((to_plain(item) for item in value), key=repr)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_plain(as_mapping(value))  # type: ignore[arg-type]
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # a tensor's or an array's single number
        return to_plain(value.item())
    return repr(value)


def flatten(params: Mapping[str, Any], separator: str = "/") -> dict[str, bool | int | float | str | None]:
    """Return one level: nested names joined by `separator`, lists and everything unusual as text.

    >>> flatten({"net": {"width": 8, "layers": [1, 2]}})
    {'net/width': 8, 'net/layers': '[1, 2]'}
    """
    flat: dict[str, bool | int | float | str | None] = {}
    for key, value in to_plain(params).items():
        if isinstance(value, dict):
            flat |= {f"{key}{separator}{inner}": item for inner, item in flatten(value, separator).items()}
        else:
            flat[str(key)] = str(value) if isinstance(value, list) else value
    return flat


def write_yaml(path: str, params: Mapping[str, Any]) -> None:
    """Write `params` to the YAML file `path`, making its directory, replacing the file in one step."""
    import yaml

    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    unfinished = f"{path}.{os.getpid()}.tmp"
    try:
        with open(unfinished, "w", encoding="utf-8") as file:
            yaml.safe_dump(to_plain(params), file, sort_keys=False, allow_unicode=True)
        os.replace(unfinished, path)
    except BaseException:
        if os.path.exists(unfinished):
            os.unlink(unfinished)
        raise
