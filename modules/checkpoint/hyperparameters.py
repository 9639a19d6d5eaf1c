"""Hyperparameters in a checkpoint: how they go in without their classes, and come back as the constructor
takes them.

In the file stand only tensors, plain values and containers of them; namespaces, dataclasses and configuration
objects go in as dictionaries. Coming back, a dictionary can be read by attribute, and where the constructor's
annotation names a dataclass, an enum, a path or a namespace, the value is made one: by the class that stands
in the user's code, never by one that the file names. What cannot go in is left out and named.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import enum
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from modules.checkpoint.format import plain
from modules.hyperparameters import AttributeDict, HyperparametersMixin

NAMES = {"": "hyper_parameters", "datamodule_": "datamodule_hyper_parameters"}
"""The key of the hyperparameters by the prefix that the keys of their owner have."""
_OLD_NAMES = ("hparams", "module_arguments")
"""Where Lightning kept a module's before 1.0."""


def content_of(owner: HyperparametersMixin, prefix: str, dropped: list[str]) -> dict[str, Any]:
    """Return the keys and values with which the hyperparameters of `owner` stand in a checkpoint.

    Args:
        owner: A module or a data module.
        prefix: Of the keys: empty for a module, ``datamodule_`` for a data module.
        dropped: Collects the names of those that cannot be kept.
    """
    if not owner.hparams:
        return {}
    kept = plain(_without_classes(dict(owner.hparams)), "hparams", dropped)
    return {
        f"{prefix}hparams_name": owner._hparams_name,
        f"{prefix}hparams_type": "AttributeDict",
        NAMES[prefix]: {
            name: value for name, value in kept.items() if value is not None or owner.hparams[name] is None
        },
    }


def saved_in(content: Mapping[str, Any], prefix: str) -> tuple[dict[str, Any], str | None]:
    """Return the hyperparameters in the checkpoint `content`, and the one argument that held them, if any.

    Args:
        content: The checkpoint.
        prefix: As in `content_of`.
    """
    saved: dict[str, Any] = {}
    for name in (*(() if prefix else _OLD_NAMES), NAMES[prefix]):
        found = content.get(name) or {}
        saved.update(vars(found) if isinstance(found, argparse.Namespace) else found)
    return saved, content.get(f"{prefix}hparams_name")


def annotations_of(constructor: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotations of a constructor's arguments, or nothing where they cannot be evaluated."""
    with contextlib.suppress(Exception):
        return typing.get_type_hints(constructor)
    return {}


def as_annotated(value: Any, annotation: Any) -> Any:
    """Return `value`, read from a checkpoint, as the `annotation` of an argument wants it.

    >>> as_annotated("data/raw", PurePath | None).name
    'raw'
    >>> as_annotated({"optimizer": {"lr": 0.1}}, None).optimizer.lr
    0.1
    """
    kinds = _kinds(annotation)
    if any(type(value) is kind for kind in kinds):
        return value
    for kind in kinds:
        with contextlib.suppress(TypeError, ValueError):
            if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
                return _as_dataclass(kind, value)
            if issubclass(kind, argparse.Namespace) and isinstance(value, Mapping):
                return kind(**{str(name): as_annotated(item, None) for name, item in value.items()})
            if issubclass(kind, enum.Enum) or (issubclass(kind, PurePath) and isinstance(value, str)):
                return kind(value)
    return _by_attribute(value)


def _kinds(annotation: Any) -> list[type[Any]]:
    """Return the classes that an annotation names: itself, or the members of a union."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [kind for item in typing.get_args(annotation) for kind in _kinds(item)]
    return [annotation] if isinstance(annotation, type) else []


def _as_dataclass(kind: type[Any], value: Mapping[str, Any]) -> Any:
    hints = annotations_of(kind)
    names = [field.name for field in dataclasses.fields(kind) if field.init]
    return kind(**{name: as_annotated(value[name], hints.get(name)) for name in names if name in value})


def _by_attribute(value: Any) -> Any:
    if isinstance(value, dict):
        return AttributeDict({name: _by_attribute(item) for name, item in value.items()})
    if type(value) in (list, tuple):
        return type(value)(map(_by_attribute, value))
    return value


def _without_classes(value: Any) -> Any:
    """Return `value` with namespaces, dataclasses and configuration objects in it as dictionaries."""
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: _without_classes(item) for name, item in value.items()}
    if isinstance(value, tuple):
        return tuple(map(_without_classes, value))
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray)):
        return [_without_classes(item) for item in value]
    return value
