"""The ``.ckpt`` file: one torch zip of tensors and plain values, with the keys that Lightning's readers know.

Always loads with ``weights_only=True``, so a file from a stranger cannot run code. What a user puts in
(hyperparameters, callback states) is made plain on the way in; what cannot be is left out and named. So it is
on the way out, for files of Lightning that hold objects of classes. A file that is damaged or foreign raises
`CheckpointError` with the reason.
"""

from __future__ import annotations

import enum
import os
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from pathlib import PurePath
from typing import IO, Any

import torch

from modules.checkpoint import stand_ins

FORMAT_VERSION = 1
_PLAIN = (bool, int, float, complex, str, bytes)
_FORBIDDEN = re.compile(r"GLOBAL ([\w.]+)")
"""Where torch's refusal names the class or function at fault."""
_REFUSED = re.compile(r"^(Can only|Trying to call) .*$", re.MULTILINE)
"""Where it says what was to be done with an object."""


class CheckpointError(ValueError):
    """A file is not a checkpoint that can be used. The message says which file, why, and what to do."""


def plain(value: Any, path: str, dropped: list[str]) -> Any:
    """Return `value` made of tensors, numbers, strings, None and containers of them only.

    Enums become their values, paths strings, arrays tensors (arrays of strings lists), sets lists.

    Args:
        value: Anything.
        path: What to call it in `dropped`, like ``hyper_parameters.net``.
        dropped: Collects the paths and types of the parts that cannot be kept; they become None, and
            dictionaries lose entries whose keys cannot be kept.
    """
    if value is None or type(value) in _PLAIN:
        return bytearray() if value == b"" else value  # torch writes empty bytes so that it refuses them
    if isinstance(value, torch.Tensor):
        kept = value.detach()
        return kept if type(kept) is torch.Tensor else kept.as_subclass(torch.Tensor)
    if isinstance(value, enum.Enum):
        return plain(value.value, path, dropped)
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, (str, int, float)):  # subclasses: numpy.float64, numpy.str_
        base = next(kind for kind in (str, int, float) if isinstance(value, kind))
        return base(value)
    if isinstance(value, Mapping):
        items = _plain_items(value, path, dropped)
        return OrderedDict(items) if isinstance(value, OrderedDict) else items
    if isinstance(value, (list, set, frozenset, tuple)):
        parts = [plain(item, f"{path}[{index}]", dropped) for index, item in enumerate(value)]
        return tuple(parts) if isinstance(value, tuple) else parts
    if isinstance(value, (torch.dtype, torch.device)):
        return value
    if hasattr(value, "__array__") and hasattr(value, "dtype"):
        found = _plain_array(value, path, dropped)
        if found is not None:
            return found
    dropped.append(f"{path} ({type(value).__qualname__})")
    return None


def _plain_items(value: Mapping[Any, Any], path: str, dropped: list[str]) -> dict[Any, Any]:
    items = {}
    for key, item in value.items():
        unfit: list[str] = []
        kept = plain(key, f"{path} key {key!r}", unfit)
        if unfit or not isinstance(kept, Hashable):
            dropped.append(f"{path} key {key!r} ({type(key).__qualname__})")
        else:
            items[kept] = plain(item, f"{path}.{key}", dropped)
    return items


def _plain_array(value: Any, path: str, dropped: list[str]) -> Any:
    """Return an array as a tensor of its own memory, a list, or a number; None when it cannot be kept."""
    import numpy

    array = numpy.array(value, order="C")  # a copy: writable, and no view into something larger
    if array.ndim == 0:
        item = array.item()
        return item if type(item) in _PLAIN else None
    try:
        return torch.from_numpy(array)
    except TypeError:
        return plain(array.tolist(), path, dropped)


def read(source: str | os.PathLike[str] | IO[bytes], map_location: Any = "cpu") -> dict[str, Any]:
    """Return the checkpoint in `source`, a path or an open binary file.

    The checksums that torch writes, and does not look at, are compared first. Objects of classes that are not
    plain values are never made: they are left out, and one warning names them.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: It is damaged, cut off, or not a checkpoint.
    """
    name = _name_of(source)
    if isinstance(source, (str, os.PathLike)) and not os.path.exists(source):
        raise FileNotFoundError(f"There is no checkpoint {name}. Check the path.")
    left_out: list[str] = []
    try:
        part = _damaged_part(source)
        content = _load(source, map_location, left_out) if part is None else None
    except Exception as error:
        found = _FORBIDDEN.search(str(error))
        if found is not None:
            raise CheckpointError(
                f"{name} is refused: it holds {found[1]}, and making that could run code. Take a checkpoint "
                "of weights and plain values only."
            ) from error
        refused = _REFUSED.search(str(error))
        if refused is not None:  # the advice around it is to trust the file
            raise CheckpointError(
                f"{name} is refused: it holds objects that only running code could make ({refused[0]}). "
                "Take a checkpoint of weights and plain values only."
            ) from error
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise CheckpointError(
            f"{name} cannot be read as a checkpoint: {reason.rstrip('. ')}. It may be cut off or damaged. "
            "Take an earlier one."
        ) from error
    if part is not None:
        raise CheckpointError(f"{name} is damaged: the checksum of {part} is wrong. Take an earlier one.")
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), Mapping):
        held = sorted(map(str, content)) if isinstance(content, dict) else f"a {type(content).__name__}"
        raise CheckpointError(
            f"{name} is not a checkpoint of a module: it holds {held}, and no 'state_dict' of names and "
            "tensors. Take a file that a Trainer wrote."
        )
    _tell_left_out(name, left_out)
    return content


def _load(source: str | os.PathLike[str] | IO[bytes], map_location: Any, left_out: list[str]) -> Any:
    """Load `source`; where it holds objects of classes, once more without them, named in `left_out`."""
    try:
        return _load_plain(source, map_location)
    except pickle.UnpicklingError:
        names = _foreign_names(source)
        if not names:
            raise
        with torch.serialization.safe_globals(stand_ins.for_names(names)):
            content = _load_plain(source, map_location)
        return stand_ins.without(content, left_out)


def _load_plain(source: str | os.PathLike[str] | IO[bytes], map_location: Any) -> Any:
    if not isinstance(source, (str, os.PathLike)):
        source.seek(0)
    return torch.load(source, map_location=map_location, weights_only=True)


def _foreign_names(source: str | os.PathLike[str] | IO[bytes]) -> list[str]:
    """Return what a file asks to import beyond tensors and plain values; empty where that cannot be told."""
    try:
        if not isinstance(source, (str, os.PathLike)):
            source.seek(0)
        return torch.serialization.get_unsafe_globals_in_checkpoint(source)
    except Exception:
        return []


def _tell_left_out(name: str, left_out: list[str]) -> None:
    weights = [item for item in left_out if item.startswith("state_dict")]
    if weights:
        raise CheckpointError(
            f"{name} is refused: its weights hold {weights[0]}, and making that could run code. Take a "
            "checkpoint of weights and plain values only."
        )
    if left_out:
        warnings.warn(
            f"{name} holds objects that only running code from it could make: {', '.join(left_out)}. They "
            "are left out; what needs them must be given again.",
            stacklevel=3,
        )


def _name_of(source: str | os.PathLike[str] | IO[bytes]) -> str:
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    return str(getattr(source, "name", f"The given {type(source).__name__}"))


def _damaged_part(source: str | os.PathLike[str] | IO[bytes]) -> str | None:
    """Return the first part of a zip file whose checksum is wrong, or None; None for other files."""
    if not zipfile.is_zipfile(source):
        return None
    with zipfile.ZipFile(source) as archive:
        return archive.testzip()
