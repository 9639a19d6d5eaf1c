"""Pickles what travels between processes, and names the attribute at fault when something cannot.

Callables and arguments go by value where their module cannot be imported elsewhere (`__main__`, closures), by
Ray's own cloudpickle. What arrives is a private, writable copy: nothing is shared with the sender or with
other ranks. Failing raises `SerializationError` before anything is sent.
"""

from __future__ import annotations

import inspect
import pickle
import types
from collections.abc import Callable, Iterator
from typing import Any

from cluster.errors import SerializationError

_MAX_PROBES = 2_000
_MAX_DEPTH = 12


def dump(value: object, what: str) -> bytes:
    """Pickle a value, by value where its module is not importable elsewhere.

    Args:
        value: what to pickle.
        what: how the user knows it, such as `"the arguments of train"`; it opens the error message.

    Raises:
        SerializationError: it cannot be pickled; the message names the innermost attribute found at fault.
    """
    try:
        return _pickle(value)
    except Exception as error:
        path, culprit = find_culprit(value)
        part = f"its {path.removeprefix('.')}" if path else "it"
        found = f"{part} is a {type(culprit).__module__}.{type(culprit).__qualname__}"
        raise SerializationError(
            f"{what} cannot be sent to another process: {found}, and {_one_line(error)}. "
            "Create it where it is used, or leave it out of the object's state (__getstate__)."
        ) from error


def dump_call(fn: Callable[..., object], args: tuple[object, ...]) -> bytes:
    """Pickle a callable with its arguments; `load` gives (fn, args).

    Raises:
        SerializationError: the message says which argument it was, counted from 1, or that it was the
            callable.
    """
    try:
        return _pickle((fn, args))
    except Exception:
        name = getattr(fn, "__qualname__", type(fn).__qualname__)
        dump(fn, f"The callable {name}")
        for number, arg in enumerate(args, start=1):
            dump(arg, f"Argument {number} of {name}")
        raise


def dump_fast(value: object, what: str) -> bytes:
    """Pickle a small message, trying plain pickle first, which is several times quicker.

    Classes of `__main__` never go by reference: the other side has another `__main__`.
    """
    try:
        data = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    except Exception:
        return dump(value, what)
    return dump(value, what) if b"__main__" in data else data


def load(data: bytes) -> Any:
    """Rebuild what `dump` or `dump_fast` pickled."""
    return pickle.loads(data)


def find_culprit(value: object) -> tuple[str, object]:
    """The innermost part of a value that cannot be pickled.

    Returns:
        path: how to get to it, such as `".model.logger._lock"` or `"['rows'][3]"`; empty when it is the value
            itself.
        culprit: the part found.
    """
    path, seen, probes = "", {id(value)}, 0
    for _ in range(_MAX_DEPTH):
        for step, child in _parts(value):
            if id(child) in seen or probes >= _MAX_PROBES:
                continue
            seen.add(id(child))
            probes += 1
            if not _can_pickle(child):
                path, value = path + step, child
                break
        else:
            return path, value
    return path, value


def round_trip(value: object) -> tuple[bytes, Any] | None:
    """A value pickled, and what it is rebuilt as; None if either fails."""
    try:
        data = _pickle(value)
        return data, load(data)
    except Exception:
        return None


def _pickle(value: object) -> bytes:
    from ray import cloudpickle

    return bytes(cloudpickle.dumps(value))


def _can_pickle(value: object) -> bool:
    try:
        _pickle(value)
    except Exception:
        return False
    return True


def _parts(value: object) -> Iterator[tuple[str, object]]:
    """The parts whose pickling makes up a value's pickling, each with how it is reached."""
    if isinstance(value, types.MethodType):
        yield ".__self__", value.__self__
        yield ".__func__", value.__func__
    elif isinstance(value, types.FunctionType):
        names = inspect.getclosurevars(value)
        for name, held in (*names.nonlocals.items(), *names.globals.items()):
            yield f".{name}", held
        yield from ((f".__defaults__[{i}]", held) for i, held in enumerate(value.__defaults__ or ()))
    elif isinstance(value, dict):
        yield from ((f"[{key!r}]", held) for key, held in value.items())
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from ((f"[{i}]", held) for i, held in enumerate(value))
    else:
        state: Any = getattr(value, "__dict__", None)
        if isinstance(state, dict) and not isinstance(value, (type, types.ModuleType)):
            yield from ((f".{name}", held) for name, held in state.items())


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
