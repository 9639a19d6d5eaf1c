"""Data sets in memory, read a batch at a time: what a DataLoader gives, without asking for single samples.

A DataLoader over tensors asks for each sample, and stacks them again. Where that can only give rows of the
tensors, the rows are taken at once. Batches, their order and the random numbers that are drawn stay exactly
DataLoader's: the base seed when the iteration begins, and the sampler's when it is asked. Anything that could
make a difference (a subclass, a collate function, worker processes, tensors that are not plain) is left to
DataLoader.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, StackDataset, Subset, TensorDataset, default_collate

from modules.permutation import Ids
from modules.row_data import RowData

Take = Callable[[Ids], Any]
"""Returns the batch of some rows, from their numbers, int64 of shape (n,)."""


def batches_of(loader: DataLoader[Any]) -> Iterator[Any] | None:
    """Return an iterator over the batches that ``iter(loader)`` has, or None where that is for it to do.

    The base seed that the loader draws for worker processes, which it has none of, is drawn here.
    """
    take = find_take(loader)
    if take is None:
        return None
    assert loader.batch_sampler is not None
    batches = iter(loader.batch_sampler)
    # As DataLoader does at the start of an iteration, in this order and from the same generator.
    torch.empty((), dtype=torch.int64).random_(generator=loader.generator)
    return _batches(batches, take, loader.pin_memory and _can_pin())


def find_take(loader: DataLoader[Any]) -> Take | None:
    """Return how the batches of a loader are taken at once; None where they cannot be."""
    if (
        type(loader) is not DataLoader
        or loader.num_workers
        or loader.batch_sampler is None
        or loader.collate_fn is not default_collate
    ):
        return None
    return _take_of(loader.dataset)


def _batches(batches: Iterator[Sequence[Any]], take: Take, pins: bool) -> Iterator[Any]:
    for ids in batches:
        batch = take(np.asarray(ids, dtype=np.int64))
        yield _pinned(batch) if pins else batch


def _take_of(dataset: Any) -> Take | None:
    if isinstance(dataset, RowData):
        return lambda ids: dataset.take(ids)
    kind = type(dataset)
    if kind is Subset:
        inner = _take_of(dataset.dataset)
        if inner is None or not all(isinstance(index, int) for index in dataset.indices):
            return None
        places = np.array(dataset.indices, dtype=np.int64)
        return lambda ids: inner(places[ids])
    if kind is TensorDataset:
        return _take_all(list(dataset.tensors), list)
    if kind is StackDataset:
        if isinstance(dataset.datasets, dict):
            names = list(dataset.datasets)
            return _take_all(
                list(dataset.datasets.values()), lambda parts: dict(zip(names, parts, strict=True))
            )
        return _take_all(list(dataset.datasets), list)
    one = _rows_of(dataset)
    return None if one is None else (lambda ids: _counted(one, ids))


def _take_all(members: list[Any], gather: Callable[[list[Tensor]], Any]) -> Take | None:
    """Return a function that takes the rows of each member, and puts them together by `gather`."""
    found = [_rows_of(member) for member in members]
    tensors = [item for item in found if item is not None]
    if len(tensors) < len(members):
        return None
    return lambda ids: gather([_counted(tensor, ids) for tensor in tensors])


def _rows_of(member: Any) -> Tensor | None:
    """Return the tensor whose rows are the samples of `member`; None for anything that is not so plain."""
    if type(member) is np.ndarray:
        # Numbers from NumPy become tensors in a way of their own, unless a sample is an array itself.
        if member.ndim < 2 or member.dtype.kind not in "biuf" or not member.flags.writeable:
            return None
        if member.dtype.byteorder not in "=|" or any(stride < 0 for stride in member.strides):
            return None
        return torch.from_numpy(member)
    plain = (
        type(member) is Tensor
        and member.ndim > 0
        and member.layout is torch.strided
        and not member.requires_grad
        and not member.is_quantized
        and member.device.type == "cpu"
    )
    return member if plain else None


def _counted(rows: Tensor, ids: Ids) -> Tensor:
    """Return the rows `ids`, negative ones from the end."""
    if len(ids) and ids.min() < 0:
        ids = np.where(ids < 0, ids + len(rows), ids)
    return rows.index_select(0, torch.from_numpy(ids))


def _can_pin() -> bool:
    """Whether memory can be pinned for the accelerator that is here, as DataLoader sees it."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return device is not None and device.type != "mps"


def _pinned(batch: Any) -> Any:
    if isinstance(batch, Tensor):
        return batch.pin_memory()
    if isinstance(batch, dict):
        return {name: _pinned(item) for name, item in batch.items()}
    return [_pinned(item) for item in batch] if isinstance(batch, list) else batch
