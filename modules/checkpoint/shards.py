"""The sharded checkpoint: a directory in which each rank's part of the tensors is a file of its own.

``content.ckpt`` is an ordinary checkpoint with a mark in the place of each tensor that was dealt to ranks;
``rank-00000.ckpt`` and so on hold the parts, with where each lies in its whole; ``manifest.json`` names the
files, their sizes and seals, and is written last: a directory without it is no checkpoint. Reading puts the
parts together, so what reads need not be as many ranks as wrote. A directory with a file that is missing,
damaged or of another save raises `CheckpointError`.
"""

from __future__ import annotations

import functools
import json
import os
import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from modules.checkpoint.files import CheckpointError, load
from modules.checkpoint.seal import read_seal

MANIFEST = "manifest.json"
CONTENT = "content.ckpt"
_MARK = "orchestrator.shard"
_VERSION = 1

Part = tuple[Tensor, Sequence[int], Sequence[int]]
"""A rank's part of a tensor: the part, the shape of the whole, and where in it the part begins."""


@dataclass(frozen=True, slots=True)
class Dealt:
    """A tensor of a checkpoint that is in parts; they are put together anew whenever it is asked for.

    Attributes:
        whole: Returns the tensor, in memory of its own.
    """

    whole: Callable[[], Tensor]


def rank_file(rank: int) -> str:
    """Return the name of the file of a rank's parts."""
    return f"rank-{rank:05d}.ckpt"


@dataclass(slots=True)
class Parts:
    """One rank's parts of the tensors of a checkpoint, in an order that is the same on all ranks.

    Attributes:
        tensors: The parts.
        places: Shape of the whole and first element of each.
    """

    tensors: list[Tensor] = field(default_factory=list)
    places: list[dict[str, list[int]]] = field(default_factory=list)

    def without(self, state: Any, part_of: Callable[[Any], Part | None]) -> Any:
        """Return `state` with marks in the place of tensors of which this rank has a part, and keep the
        parts.

        Args:
            state: Containers of tensors.
            part_of: Returns the part; None for what is whole on every rank.
        """
        if isinstance(state, Tensor):
            found = part_of(state)
            if found is None:
                return state
            tensor, shape, offset = found
            self.tensors.append(tensor)
            self.places.append({"shape": list(shape), "offset": list(offset)})
            return {_MARK: len(self.tensors) - 1}
        if isinstance(state, OrderedDict):
            marked = OrderedDict((key, self.without(item, part_of)) for key, item in state.items())
            marked.__dict__.update(state.__dict__)
            return marked
        if isinstance(state, dict):
            return {key: self.without(item, part_of) for key, item in state.items()}
        if type(state) in (list, tuple):
            return type(state)(self.without(item, part_of) for item in state)
        return state

    def content(self) -> dict[str, Any]:
        """Return what stands in the rank's file."""
        return {"shards": list(self.tensors), "places": list(self.places)}


def describe(folder: str, names: Sequence[str]) -> str:
    """Return the text of the manifest of `folder`, in which the files `names` are complete."""
    files = [
        {
            "file": name,
            "size_bytes": os.path.getsize(os.path.join(folder, name)),
            "seal": read_seal(os.path.join(folder, name)),
        }
        for name in names
    ]
    body = {"format": _VERSION, "files": files}
    return json.dumps({**body, "checksum": _checksum(body)}, indent=1) + "\n"


def read(
    folder: str, map_location: Any, *, verify: bool, left_out: list[str], later: frozenset[str] = frozenset()
) -> Any:
    """Return the content of a sharded checkpoint, of whole tensors.

    Args:
        folder: The directory.
        map_location: As in `torch.load`.
        verify: Compare the checksums of all that is read.
        left_out: Collects what is of classes that are not plain values.
        later: Entries of the content in which tensors are `Dealt`, for a reader that needs one at a time.

    Raises:
        CheckpointError: Something of it is missing, damaged, or of another save.
    """
    names = _files_of(folder)
    contents = [load(os.path.join(folder, name), map_location, left_out, verify=verify) for name in names]
    content, ranks = contents[0], contents[1:]
    places = [rank["places"] for rank in ranks]
    tensors = [rank["shards"] for rank in ranks]
    wholes: dict[int, Tensor] = {}

    def put_together(index: int) -> Tensor:
        try:
            return _put_together([(t[index], p[index]) for t, p in zip(tensors, places, strict=True)])
        except (KeyError, IndexError, RuntimeError) as error:
            raise CheckpointError(
                f"{folder} is damaged: its parts do not fit together ({error}). Take an earlier checkpoint."
            ) from error

    def whole(index: int) -> Tensor:
        if index not in wholes:
            wholes[index] = put_together(index)
        return wholes[index]

    def dealt(index: int) -> Dealt:
        return Dealt(functools.partial(put_together, index))

    if not isinstance(content, dict):
        return content
    return {key: _without_marks(item, dealt if key in later else whole) for key, item in content.items()}


def check(folder: str, left_out: list[str]) -> Any:
    """Compare all of a sharded checkpoint with its checksums, and return the content with marks in the place
    of tensors that are dealt: without reading any of them.

    Raises:
        CheckpointError: As `read`.
    """
    names = _files_of(folder)
    contents = [load(os.path.join(folder, name), "cpu", left_out) for name in names]
    return contents[0]


def _files_of(folder: str) -> list[str]:
    """Return the names of the files that the manifest names, after a look at each."""
    path = os.path.join(folder, MANIFEST)
    if not os.path.exists(path):
        raise CheckpointError(
            f"{folder} cannot be read as a checkpoint: it has no {MANIFEST}, which is written last. Take an "
            "earlier one."
        )
    try:
        with open(path, encoding="utf-8") as file:
            body = json.load(file)
        checksum = body.pop("checksum")
        files = body["files"]
        right = checksum == _checksum(body)
        version = body["format"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}. Take an earlier checkpoint.") from error
    if not right:
        raise CheckpointError(f"{path} is damaged: its checksum is wrong. Take an earlier checkpoint.")
    if version > _VERSION:
        raise CheckpointError(
            f"{folder} is of format {version}, and this version reads up to {_VERSION}. Update the package."
        )
    for item in files:
        part = os.path.join(folder, item["file"])
        if not os.path.exists(part):
            raise CheckpointError(f"{folder} lacks {item['file']}. Copy it too, or take an earlier one.")
        if os.path.getsize(part) != item["size_bytes"]:
            raise CheckpointError(
                f"{part} is damaged: it has {os.path.getsize(part)} bytes instead of {item['size_bytes']}. "
                "Take an earlier checkpoint."
            )
        if _seal_or_none(part) != item["seal"]:
            raise CheckpointError(
                f"{part} is not the file that {MANIFEST} speaks of: its seal is another. Take an earlier "
                "checkpoint."
            )
    return [str(item["file"]) for item in files]


def _seal_or_none(path: str) -> str | None:
    try:
        return read_seal(path)
    except Exception:  # a damaged zip fails in many ways
        return None


def _put_together(parts: Sequence[tuple[Tensor, dict[str, list[int]]]]) -> Tensor:
    first, place = parts[0]
    if list(first.shape) == place["shape"]:
        return first
    whole = torch.empty(place["shape"], dtype=first.dtype, device=first.device)
    filled = 0
    for tensor, where in parts:
        target = whole
        for dimension, (begin, length) in enumerate(zip(where["offset"], tensor.shape, strict=True)):
            target = target.narrow(dimension, begin, length)
        target.copy_(tensor)
        filled += tensor.numel()
    if filled != whole.numel():
        raise IndexError(f"{filled} of {whole.numel()} elements of a tensor are there")
    return whole


def _without_marks(state: Any, whole: Callable[[int], Tensor | Dealt]) -> Any:
    if isinstance(state, dict):
        if len(state) == 1 and _MARK in state:
            return whole(state[_MARK])
        for key in state:
            state[key] = _without_marks(state[key], whole)
        return state
    if type(state) in (list, tuple):
        return type(state)(_without_marks(item, whole) for item in state)
    return state


def _checksum(body: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(body, sort_keys=True).encode())
