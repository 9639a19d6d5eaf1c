"""How many samples a batch has: the first dimension of the first tensor that is found in it.

Batches may be nested lists, tuples, mappings and data classes. Nothing is read from a device. A batch
without any tensor or string has no size that could be known: that is None, not an error; who needs a size
says so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor


def batch_size_of(batch: Any) -> int:
    """Return the number of samples in `batch`; 1 when it cannot be known."""
    found = find_batch_size(batch)
    return 1 if found is None else found


def find_batch_size(batch: Any) -> int | None:
    """Return the number of samples in `batch`, or None when there is no tensor and no string in it."""
    return next(_sizes(batch), None)


def sizes_in(batch: Any) -> list[int]:
    """Return the different first dimensions of all tensors in `batch`, in order of appearance."""
    return list(dict.fromkeys(_sizes(batch)))


def _sizes(batch: Any) -> Iterator[int]:
    todo = [batch]
    while todo:
        item = todo.pop()
        if isinstance(item, Tensor):
            yield int(item.shape[0]) if item.ndim else 1
        elif isinstance(item, str):
            yield len(item)
        elif isinstance(item, Mapping):
            todo.extend(reversed(list(item.values())))
        elif isinstance(item, (list, tuple)):
            todo.extend(reversed(item))
        elif dataclasses.is_dataclass(item) and not isinstance(item, type):
            todo.extend(getattr(item, field.name) for field in reversed(dataclasses.fields(item)))
