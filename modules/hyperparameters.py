"""What a module was built with: ``save_hyperparameters()`` and ``self.hparams``.

The arguments are read from the ``__init__`` frames that are running, so a subclass's arguments are included
and nothing has to be listed twice. Later assignments to the arguments inside ``__init__``, before the call,
are seen too.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import inspect
import types
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn


class AttributeDict(dict[str, Any]):
    """A dictionary whose keys can be read and set as attributes."""

    def __getattr__(self, key: str) -> Any:
        try:
            return self[key]
        except KeyError:
            raise AttributeError(f"No hyperparameter {key!r}: there are {sorted(self)}.") from None

    def __setattr__(self, key: str, value: Any) -> None:
        self[key] = value

    def __delattr__(self, key: str) -> None:
        try:
            del self[key]
        except KeyError:
            raise AttributeError(f"No hyperparameter {key!r}: there are {sorted(self)}.") from None


class HyperparametersMixin:
    """Gives a class ``save_hyperparameters`` and ``hparams``."""

    _hparams: AttributeDict
    _hparams_initial: AttributeDict
    _hparams_name: str = "kwargs"
    """The argument of ``__init__`` that held all hyperparameters; "kwargs" when each is an argument."""
    _log_hyperparams: bool = False

    def save_hyperparameters(
        self,
        *args: Any,
        ignore: Sequence[str] | str | None = None,
        frame: types.FrameType | None = None,
        logger: bool = True,
    ) -> None:
        """Keep the arguments of ``__init__`` as ``self.hparams``; checkpoints hold them and loggers record
        them.

        Args:
            *args: Names of the arguments to keep; or one dictionary, namespace or dataclass to keep instead.
                All by default.
            ignore: Names to leave out, those that a base class kept included.
            frame: The frame whose arguments are read, when not the caller's.
            logger: Give them to the loggers.

        Raises:
            ValueError: A name is not an argument of ``__init__``, or something else than names was given.
        """
        ignored = {ignore} if isinstance(ignore, str) else set(ignore or ())
        if frame is None:
            current = inspect.currentframe()
            frame = None if current is None else current.f_back
        values = _init_arguments(self, frame)
        if len(args) == 1 and not isinstance(args[0], str):
            holders = (name for name, value in values.items() if _is_same(value, args[0]))
            self.__dict__["_hparams_name"] = next(holders, "kwargs")
            values = _as_mapping(args[0])
        elif args:
            unknown = [name for name in args if not isinstance(name, str) or name not in values]
            if unknown:
                raise ValueError(
                    f"save_hyperparameters({', '.join(map(repr, args))}): {unknown} are not names of "
                    f"arguments of __init__. There are {sorted(values)}."
                )
            values = {name: values[name] for name in args}
        earlier = self.__dict__.get("_hparams", {})
        kept = {name: value for name, value in {**earlier, **values}.items() if name not in ignored}
        self.__dict__["_hparams"] = AttributeDict(kept)
        self.__dict__["_hparams_initial"] = AttributeDict(_independent(kept))
        self.__dict__["_log_hyperparams"] = logger

    @property
    def hparams(self) -> AttributeDict:
        """The saved hyperparameters; empty when nothing was saved. Changes are seen by later checkpoints."""
        if "_hparams" not in self.__dict__:
            self.__dict__["_hparams"] = AttributeDict()
        found: AttributeDict = self.__dict__["_hparams"]
        return found

    @property
    def hparams_initial(self) -> AttributeDict:
        """A copy of the hyperparameters as they were when saved."""
        return AttributeDict(_independent(self.__dict__.get("_hparams_initial", {})))


def _is_same(value: Any, other: Any) -> bool:
    """Whether two arguments are one object, or dictionaries that hold the same."""
    if value is other:
        return True
    try:
        return isinstance(value, dict) and isinstance(other, dict) and bool(value == other)
    except (ValueError, RuntimeError):  # of arrays in them, which have no one answer
        return False


def _independent(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return copies of `values`; modules, and what cannot be copied, are kept as they are."""
    shared = {id(value): value for value in values.values() if isinstance(value, nn.Module)}
    copies = {}
    for name, value in values.items():
        try:
            copies[name] = copy.deepcopy(value, dict(shared))
        except Exception:  # a lock, a generator, a file: whatever the object itself raises
            copies[name] = value
    return copies


def _as_mapping(values: Any) -> dict[str, Any]:
    if isinstance(values, Mapping):
        return {str(key): value for key, value in values.items()}
    if isinstance(values, argparse.Namespace):
        return vars(values)
    if dataclasses.is_dataclass(values) and not isinstance(values, type):
        return {field.name: getattr(values, field.name) for field in dataclasses.fields(values)}
    raise ValueError(
        f"save_hyperparameters({type(values).__name__}): cannot be kept. "
        "Give names of arguments, a dictionary, a namespace or a dataclass."
    )


def _init_arguments(owner: object, frame: types.FrameType | None) -> dict[str, Any]:
    """Return the arguments of all ``__init__`` calls of `owner` that are running, the outermost class
    winning.
    """
    found: dict[str, Any] = {}
    while frame is not None:
        code = frame.f_code
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        if names and frame.f_locals.get(names[0]) is owner:
            if code.co_name == "__init__":
                found.update({name: frame.f_locals[name] for name in names[1:] if name in frame.f_locals})
                if code.co_flags & inspect.CO_VARKEYWORDS:
                    extra = code.co_varnames[len(names) + bool(code.co_flags & inspect.CO_VARARGS)]
                    found.update(frame.f_locals.get(extra, {}))
        elif code.co_name != "__call__":
            break
        frame = frame.f_back
    return found
