"""Pickles what travels between processes, and names the attribute at fault when something cannot.

Callables and arguments go by value where their module cannot be imported elsewhere (`__main__`, closures), by
Ray's own cloudpickle. The memory of tensors and arrays travels beside the pickle: it is copied into Ray's
object store once, and out of it once a process, while other threads of that process run. What arrives is a
private, writable copy: nothing is shared with the sender or with other ranks. Failing raises
`SerializationError` before anything is sent.
"""

from __future__ import annotations

import inspect
import io
import pickle
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from cluster.errors import SerializationError

_MAX_PROBES = 2_000
_MAX_DEPTH = 12


@dataclass(frozen=True, slots=True)
class Parcel:
    """A pickled value. Its memory is still the value's own: hand it to Ray before the value changes.

    Attributes:
        data: The pickle, without that memory.
        memory: Arrays of bytes, in the order in which the pickle refers to them.
        tensors: Which of them are of tensors, which copy their memory themselves.
    """

    data: bytes
    memory: tuple[Any, ...]
    tensors: tuple[bool, ...]


def dump(value: object, what: str) -> Parcel:
    """Pickle a value, by value where its module is not importable elsewhere.

    Args:
        value: what to pickle.
        what: how the user knows it, such as `"the arguments of train"`; it opens the error message.

    Raises:
        SerializationError: it cannot be pickled; the message names the innermost attribute found at fault.
    """
    try:
        return _pack(value)
    except Exception as error:
        raise _explained(value, what, error) from error


def dump_call(fn: Callable[..., object], args: tuple[object, ...]) -> Parcel:
    """Pickle a callable with its arguments; `load` gives (fn, args).

    Raises:
        SerializationError: the message says which argument it was, counted from 1, or that it was the
            callable.
    """
    try:
        return _pack((fn, args))
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
        return _pickle(value) if b"__main__" in data else data
    except Exception:
        pass
    try:
        return _pickle(value)
    except Exception as error:
        raise _explained(value, what, error) from error


def load(parcel: Parcel | bytes) -> Any:
    """Rebuild what `dump`, `dump_call` or `dump_fast` pickled."""
    if isinstance(parcel, bytes):
        return pickle.loads(parcel)
    parts = zip(parcel.memory, parcel.tensors, strict=True)
    return pickle.loads(
        parcel.data, buffers=(part if is_tensor else part.copy() for part, is_tensor in parts)
    )


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


def _explained(value: object, what: str, error: Exception) -> SerializationError:
    path, culprit = find_culprit(value)
    part = f"its {path.removeprefix('.')}" if path else "it"
    found = f"{part} is a {type(culprit).__module__}.{type(culprit).__qualname__}"
    return SerializationError(
        f"{what} cannot be sent to another process: {found}, and {_one_line(error)}. "
        "Create it where it is used, or leave it out of the object's state (__getstate__)."
    )


def _pack(value: object) -> Parcel:
    import numpy as np
    from ray import cloudpickle

    class Packer(cloudpickle.CloudPickler):
        """Leaves the memory of tensors on the CPU out of the pickle; the rest is Ray's."""

        def reducer_override(self, item: Any) -> Any:
            torch = sys.modules.get("torch")
            if torch is not None and type(item) is torch.storage.TypedStorage:
                untyped = item._untyped_storage
                if untyped.device.type == "cpu":
                    memory = pickle.PickleBuffer(torch.empty(0, dtype=torch.uint8).set_(untyped).numpy())
                    of_tensors.add(id(memory))
                    return _rebuild_storage, (memory, item.dtype)
            return super().reducer_override(item)  # type: ignore[no-untyped-call]

    file = io.BytesIO()
    beside: list[pickle.PickleBuffer] = []
    of_tensors: set[int] = set()
    packer: Any = Packer
    packer(file, protocol=5, buffer_callback=beside.append).dump(value)
    memory = tuple(np.frombuffer(buffer.raw(), np.uint8) for buffer in beside)
    return Parcel(file.getvalue(), memory, tuple(id(buffer) in of_tensors for buffer in beside))


def _rebuild_storage(memory: Any, dtype: Any) -> Any:
    """Return a storage of its own with these bytes."""
    import numpy as np
    import torch

    own = torch.empty(len(memory), dtype=torch.uint8)
    np.copyto(own.numpy(), np.frombuffer(memory, np.uint8))
    return torch.storage.TypedStorage(wrap_storage=own.untyped_storage(), dtype=dtype, _internal=True)


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
