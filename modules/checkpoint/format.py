"""The ``.ckpt`` file: one torch zip of tensors and plain values, with the keys that Lightning's readers know.

A run whose state is dealt to ranks writes a directory of such files instead: `modules.checkpoint.shards`.
What a user puts in (hyperparameters, callback states) is made plain on the way in; what cannot be is left
out and named. So it is on the way out, for files of Lightning that hold objects of classes. A file that is
damaged or foreign raises `CheckpointError` with the reason.
"""

from __future__ import annotations

import enum
import os
import warnings
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from pathlib import PurePath
from typing import IO, Any

import torch

from modules.checkpoint import remote, shards
from modules.checkpoint.files import CheckpointError, load, name_of

FORMAT_VERSION = 1
_PLAIN = (bool, int, float, complex, str, bytes)


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


def read(
    source: str | os.PathLike[str] | IO[bytes],
    map_location: Any = "cpu",
    *,
    verify: bool = True,
    later: frozenset[str] = frozenset(),
) -> dict[str, Any]:
    """Return the checkpoint in `source`: a path of a file or a directory of shards, a URI of a file, or an
    open binary file.

    Tensors of large files are memory-mapped: they are read when they are used, and changing them leaves the
    file alone. Objects of classes that are not plain values are never made: they are left out, and one
    warning names them.

    Args:
        source: Where it is.
        map_location: As in `torch.load`.
        verify: Compare the checksums first; that reads all of the file once.
        later: Entries of which a directory of shards gives tensors as `shards.Dealt`.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: It is damaged, cut off, of a later format, or not a checkpoint.
    """
    name = name_of(source)
    left_out: list[str] = []
    if isinstance(source, (str, os.PathLike)) and remote.is_remote(source):
        return _read_remote(name, map_location, verify=verify)
    if isinstance(source, (str, os.PathLike)) and not os.path.exists(source):
        raise FileNotFoundError(f"There is no checkpoint {name}. Check the path.")
    if isinstance(source, (str, os.PathLike)) and os.path.isdir(source):
        content = shards.read(os.fspath(source), map_location, verify=verify, left_out=left_out, later=later)
    else:
        content = load(source, map_location, left_out, verify=verify)
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), Mapping):
        held = sorted(map(str, content)) if isinstance(content, dict) else f"a {type(content).__name__}"
        raise CheckpointError(
            f"{name} is not a checkpoint of a module: it holds {held}, and no 'state_dict' of names and "
            "tensors. Take a file that a Trainer wrote."
        )
    ours = content.get("orchestrator")
    version = ours.get("format", FORMAT_VERSION) if isinstance(ours, dict) else FORMAT_VERSION
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{name} is of format {version}, and this version reads up to {FORMAT_VERSION}. Update the "
            "package."
        )
    _tell_left_out(name, left_out)
    return content


def _read_remote(uri: str, map_location: Any, *, verify: bool) -> dict[str, Any]:
    """Return the checkpoint at `uri`, of which a copy is made meanwhile."""
    with remote.fetched(uri) as local:
        try:
            return read(local, map_location, verify=verify)
        except CheckpointError as error:
            raise CheckpointError(str(error).replace(local, uri)) from error


def check(path: str) -> bool:
    """Compare all of the checkpoint `path` with its checksums; return whether training can go on from it.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: As `read`.
    """
    content = shards.check(path, []) if os.path.isdir(path) else read(path)
    return isinstance(content, dict) and content.get("optimizer_states") is not None


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
