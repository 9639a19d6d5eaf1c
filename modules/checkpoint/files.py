"""Reads one file of torch without trusting it: whether it is whole, and only then what is in it.

Always loads with ``weights_only=True``, so a file from a stranger cannot run code. Large files are
memory-mapped, privately: nobody's changes reach the file. Whatever is wrong with a file, torch's reader and
Python's fail in many ways, and here in one: `CheckpointError`, with the file and the reason.
"""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from typing import IO, Any

import torch

from modules.checkpoint import stand_ins
from modules.checkpoint.seal import damaged_part

_FORBIDDEN = re.compile(r"GLOBAL ([\w.]+)")
"""Where torch's refusal names the class or function at fault."""
_REFUSED = re.compile(r"^(Can only|Trying to call) .*$", re.MULTILINE)
"""Where it says what was to be done with an object."""
_MAPPED = 16 << 20
"""Files of at least so many bytes are mapped; reading smaller ones at once is as quick, and holds no file."""

Source = str | os.PathLike[str] | IO[bytes]


class CheckpointError(ValueError):
    """A file is not a checkpoint that can be used. The message says which file, why, and what to do."""


def load(source: Source, map_location: Any, left_out: list[str], *, verify: bool = True) -> Any:
    """Return what is in `source`, whose checksums are compared first; where it holds objects of classes,
    without them, named in `left_out`.

    Raises:
        CheckpointError: It is damaged, cut off, or holds weights that only running code could make.
    """
    name = name_of(source)
    try:
        part = _damaged_part(source) if verify else None
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
    return content


def name_of(source: Source) -> str:
    """Return what to call a path or an open file in messages."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    return str(getattr(source, "name", f"The given {type(source).__name__}"))


def _load(source: Source, map_location: Any, left_out: list[str]) -> Any:
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


def _load_plain(source: Source, map_location: Any) -> Any:
    if not isinstance(source, (str, os.PathLike)):
        source.seek(0)
        return torch.load(source, map_location=map_location, weights_only=True)
    maps = os.path.getsize(source) >= _MAPPED and zipfile.is_zipfile(source)
    return torch.load(source, map_location=map_location, weights_only=True, mmap=maps)


def _foreign_names(source: Source) -> list[str]:
    """Return what a file asks to import beyond tensors and plain values; empty where that cannot be told."""
    try:
        if not isinstance(source, (str, os.PathLike)):
            source.seek(0)
        return torch.serialization.get_unsafe_globals_in_checkpoint(source)
    except Exception:
        return []


def _damaged_part(source: Source) -> str | None:
    """Return the first part of a zip file whose checksum is wrong, or None; None for other files."""
    if isinstance(source, (str, os.PathLike)):
        return damaged_part(source)
    if not zipfile.is_zipfile(source):
        return None
    with zipfile.ZipFile(source) as archive:
        return archive.testzip()
