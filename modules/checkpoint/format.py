"""The ``.ckpt`` file: one torch zip of tensors and plain values, with the keys that Lightning's readers know.

Always loads with ``weights_only=True``, so a file from a stranger cannot run code. What a user puts in
(hyperparameters, callback states) is made plain on the way in; what cannot be is left out and named. A file
that is damaged or foreign raises `CheckpointError` with the reason.
"""

from __future__ import annotations

import enum
import os
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import torch

FORMAT_VERSION = 1


class CheckpointError(ValueError):
    """A file is not a checkpoint that can be used. The message says which file, why, and what to do."""


def plain(value: Any, path: str, dropped: list[str]) -> Any:
    """Return `value` made of tensors, numbers, strings, None and containers of them only.

    Args:
        value: Anything.
        path: What to call it in `dropped`, like ``hyper_parameters.net``.
        dropped: Collects the paths and types of the parts that cannot be kept; they become None.
    """
    if value is None or type(value) in (bool, int, float, complex, str, bytes):
        return value
    if isinstance(value, torch.Tensor):
        return value.detach()
    if isinstance(value, enum.Enum):
        return plain(value.value, path, dropped)
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, (str, int, float)):  # subclasses: numpy.float64, numpy.str_
        base = next(kind for kind in (str, int, float) if isinstance(value, kind))
        return base(value)
    if isinstance(value, Mapping):
        items = {
            plain(key, f"{path} key", dropped): plain(item, f"{path}.{key}", dropped)
            for key, item in value.items()
        }
        return OrderedDict(items) if isinstance(value, OrderedDict) else items
    if isinstance(value, (list, set, frozenset, tuple)):
        parts = [plain(item, f"{path}[{index}]", dropped) for index, item in enumerate(value)]
        return tuple(parts) if isinstance(value, tuple) else parts
    if isinstance(value, (torch.dtype, torch.device, torch.Size)):
        return value
    if hasattr(value, "__array__") and hasattr(value, "dtype"):
        return value.item() if getattr(value, "ndim", None) == 0 else torch.as_tensor(value)
    dropped.append(f"{path} ({type(value).__qualname__})")
    return None


def read(path: str | os.PathLike[str], map_location: Any = "cpu") -> dict[str, Any]:
    """Return the checkpoint in file `path`.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: It is damaged, cut off, or not a checkpoint.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f"No checkpoint at {os.fspath(path)}.")
    try:
        content = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{os.fspath(path)} cannot be read as a checkpoint: {str(error).splitlines()[0]} "
            "It may be cut off, damaged, or hold objects that would run code on loading. Take an earlier one."
        ) from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise CheckpointError(
            f"{os.fspath(path)} is not a checkpoint of a module: it holds "
            f"{sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__}, and "
            "no 'state_dict'."
        )
    return content
