"""Copies a checkpoint's tensors into memory that is kept for it, so that training can go on while they are
written.

The memory is reserved at the first save and used again by the next ones: touching fresh memory takes ten
times as long as copying into it. Tensors that share memory share it in the copy. What is no plain tensor is
cloned. Where the machine has not enough memory for a second copy, there is none, and the caller writes at
once.
"""

from __future__ import annotations

import contextlib
import copy
import mmap
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

_SHARE = 0.8
"""Of the available memory that a copy may take."""
_PLAIN = (bool, int, float, complex, str, bytes, torch.dtype, torch.device, type(None))
_LARGE = 4 << 20
"""Buffers of at least so many bytes are asked for in large pages."""


def size_of(content: Any) -> int:
    """Return the bytes of all tensors in `content`; shared memory counts once."""
    found = {storage._cdata: storage.nbytes() for storage in _storages(content)}
    return sum(found.values())


def fits(size_bytes: int, kept_bytes: int, available_bytes: int) -> bool:
    """Whether there is memory for a copy.

    >>> fits(size_bytes=100, kept_bytes=0, available_bytes=120), fits(100, 100, 0)
    (False, True)

    Args:
        size_bytes: Of the tensors.
        kept_bytes: That are reserved already.
        available_bytes: That the machine could still give.
    """
    return size_bytes - kept_bytes <= _SHARE * available_bytes


class Staging:
    """The kept memory of one process."""

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []
        self._used = 0
        self._done: dict[int, torch.UntypedStorage] = {}
        self._waits_for_device = False

    @property
    def kept_bytes(self) -> int:
        """Bytes that are reserved."""
        return sum(item.numel() for item in self._buffers)

    def copy(self, content: dict[str, Any]) -> dict[str, Any] | None:
        """Return `content` with tensors of kept memory, which hold until the next call; None where there is
        no memory for them."""
        if not fits(size_of(content), self.kept_bytes, _available_bytes()):
            return None
        self._used, self._done, self._waits_for_device = 0, {}, False
        try:
            copied: dict[str, Any] = self._copy(content)
            if self._waits_for_device:
                torch.accelerator.synchronize()
        finally:
            self._done = {}
        del self._buffers[self._used :]
        return copied

    def release(self) -> None:
        """Give the memory back."""
        self._buffers = []

    def _copy(self, item: Any) -> Any:
        if isinstance(item, Tensor):
            return self._tensor(item)
        kind = type(item)
        if kind in _PLAIN:
            return item
        if kind is dict:
            return {key: self._copy(value) for key, value in item.items()}
        if kind in (list, tuple):
            return kind(self._copy(value) for value in item)
        if kind is OrderedDict:
            found = OrderedDict((key, self._copy(value)) for key, value in item.items())
            found.__dict__.update(item.__dict__)  # a state dict's versions
            return found
        return copy.deepcopy(item)

    def _tensor(self, item: Tensor) -> Tensor:
        if not _is_plain(item):
            return item.detach().clone()
        source = item.untyped_storage()
        target = self._done.get(source._cdata)
        if target is None:
            target = self._done[source._cdata] = self._storage(source)
        return torch.empty(0, dtype=item.dtype).set_(
            target, item.storage_offset(), item.size(), item.stride()
        )

    def _storage(self, source: torch.UntypedStorage) -> torch.UntypedStorage:
        size, pins = source.nbytes(), source.device.type == "cuda"
        index = self._used
        self._used += 1
        if index >= len(self._buffers):
            self._buffers.append(_reserve(size, pins))
        elif self._buffers[index].numel() != size or self._buffers[index].is_pinned() != pins:
            self._buffers[index] = _reserve(size, pins)
        buffer = self._buffers[index]
        if size:
            view = torch.empty(0, dtype=torch.uint8, device=source.device).set_(source)
            buffer.copy_(view, non_blocking=pins)
            self._waits_for_device |= pins
        return buffer.untyped_storage()


def _is_plain(item: Tensor) -> bool:
    return (
        type(item) in (Tensor, torch.nn.Parameter)
        and item.device.type in ("cpu", "cuda")
        and item.layout is torch.strided
        and not (item.is_quantized or item.is_conj() or item.is_neg() or item.is_meta)
    )


def _storages(item: Any) -> Iterator[torch.UntypedStorage]:
    if isinstance(item, Tensor):
        if _is_plain(item):
            yield item.untyped_storage()
    elif isinstance(item, dict):
        for value in item.values():
            yield from _storages(value)
    elif isinstance(item, (list, tuple)):
        for value in item:
            yield from _storages(value)


def _reserve(size: int, pins: bool) -> Tensor:
    """Return `size` bytes; large ones in large pages, which come ten times as fast."""
    if pins:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)
    if size < _LARGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(size, dtype=torch.uint8)
    memory = mmap.mmap(-1, size)
    with contextlib.suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)


def _available_bytes() -> int:
    import psutil

    return int(psutil.virtual_memory().available)
