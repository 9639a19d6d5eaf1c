"""An iterable data set as one rank reads it: every n-th sample, counted over ranks and loader processes.

A data set that finds out its rank by itself is left alone, since dealing its samples again would lose some;
whether it does is read from the code of its classes, of data sets inside it, and from the names of its
attributes. A stream of Hugging Face's knows of ranks, but has one only from ``split_dataset_by_node``. One
that divides its samples among loader processes is dealt to ranks only. Where neither can be seen, because the
code is not Python or sits elsewhere, all ranks must yield the same samples in the same order, or the trainer
must be told not to deal.
"""

from __future__ import annotations

import functools
import itertools
import types
from collections.abc import Iterator
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

_RANK_NAMES = frozenset(
    {"get_rank", "global_rank", "get_world_size", "world_size", "num_replicas", "RANK", "WORLD_SIZE"}
)
_OWN = frozenset({"_dealt", "_rank", "_world_size", "_splits_workers"})


class ShardedIterable(IterableDataset[Any]):
    """Every n-th sample of an iterable data set, counted over all ranks and their loader processes.

    Other attributes are the data set's own, so that a ``worker_init_fn`` finds and sets them as usual.

    Args:
        dataset: The data set; it must yield the same samples in the same order on every rank.
        rank: This rank.
        world_size: Ranks.
        splits_workers: The samples are divided among loader processes already.
    """

    def __init__(
        self, dataset: IterableDataset[Any], rank: int, world_size: int, splits_workers: bool
    ) -> None:
        self._dealt = dataset
        self._rank = rank
        self._world_size = world_size
        self._splits_workers = splits_workers

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        place, readers = self._rank, self._world_size
        if worker is not None and not self._splits_workers:
            place, readers = place * worker.num_workers + worker.id, readers * worker.num_workers
        return itertools.islice(iter(self._dealt), place, None, readers)

    def __getattr__(self, name: str) -> Any:
        if name in _OWN or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(name)
        return getattr(self._dealt, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OWN:
            super().__setattr__(name, value)
        else:
            setattr(self._dealt, name, value)


def reads_rank(reader: object) -> bool:
    """Whether a data set or sampler finds out by itself which rank it serves."""
    return not _RANK_NAMES.isdisjoint(_names_in(reader))


def splits_workers(dataset: IterableDataset[Any], worker_init_fn: object) -> bool:
    """Whether a data set, or the function that sets it up, divides samples among loader processes."""
    return "get_worker_info" in _names_in(dataset) | _names_of(worker_init_fn)


def _names_in(reader: object) -> set[str]:
    """Return the names that the code of an object's classes and of data sets inside it mentions, and those of
    its attributes.
    """
    names: set[str] = set()
    todo, seen = [reader], {id(reader)}
    while todo:
        item = todo.pop()
        found: set[str] = set()
        for base in type(item).__mro__:
            if base.__module__.partition(".")[0] not in ("builtins", "torch", "typing"):
                for value in vars(base).values():
                    found |= _names_of(value)
        names |= found - _RANK_NAMES if _has_no_rank(item) else found
        attributes = getattr(item, "__dict__", {})
        names.update(attributes)
        for value in attributes.values():
            for part in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(part, IterableDataset) and id(part) not in seen:
                    seen.add(id(part))
                    todo.append(part)
    return names


def _has_no_rank(item: object) -> bool:
    """Whether `item` is a stream of Hugging Face's that was not divided among ranks."""
    is_theirs = type(item).__module__.partition(".")[0] == "datasets"
    return is_theirs and getattr(item, "_distributed", item) is None


def _names_of(function: Any) -> set[str]:
    """Return the names that a function's code mentions, nested functions and string constants included."""
    if isinstance(function, property):
        function = function.fget
    if isinstance(function, functools.partial):
        function = function.func
    function = getattr(function, "__func__", function)
    names: set[str] = set()
    todo = [getattr(item, "__code__", None) for item in (function, getattr(function, "__wrapped__", None))]
    while todo:
        code = todo.pop()
        if code is None:
            continue
        names.update(code.co_names)
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                todo.append(constant)
            elif isinstance(constant, str):
                names.add(constant)
    return names
