"""A user's DataLoader as one rank reads it: its share of the batches, from any place in the epoch.

With one rank the loader is read untouched and draws from the process's generators exactly as a plain loop
would. With more, a copy of it gets a sampler from `modules.sampler`; the user's own object never changes.
Map-style loaders are resumed without loading what was used; others are read up to the place. A loader whose
length ranks cannot know in advance is marked so (`plan` is None), and the training loop agrees on its end
step by step.
"""

from __future__ import annotations

import copy
import itertools
import multiprocessing
import types
from collections.abc import Iterable, Iterator, Sized
from typing import Any, cast

from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    get_worker_info,
)

from modules.order import BatchPlan, StridedPlan
from modules.sampler import ShardBatchSampler, ShardSampler, SkipBatches

_READS_RANK = frozenset({"get_rank", "global_rank", "get_world_size", "world_size", "RANK", "WORLD_SIZE"})


class RankLoader:
    """One rank's view of an iterable of batches.

    Args:
        source: A DataLoader, or any iterable of batches.
        rank: This rank.
        world_size: Ranks that share the data.
        seed: Seed of the common order.
        shard: Deal the data to ranks; False reads all of it on every rank.
        pad: Repeat samples so that all ranks have equally many.
        whole_batches: Deal whole batches of the one-process order rather than samples, so that their contents
            stay together.

    Attributes:
        num_batches: Batches in an epoch, of the rank that has most; None when that is not known.
        plan: How many samples each rank has in each batch; None when ranks cannot know it in advance.
        exact: `num_batches` can be trusted.
    """

    def __init__(
        self,
        source: Iterable[Any],
        *,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        shard: bool = True,
        pad: bool = False,
        whole_batches: bool = False,
    ) -> None:
        self.source = source
        self.plan: BatchPlan | None = None
        self._stride: tuple[int, int] | None = None
        sharded = shard and world_size > 1
        reader: Iterable[Any]
        if isinstance(source, DataLoader):
            reader = _deal_loader(source, rank, world_size, seed, pad, whole_batches) if sharded else source
        else:
            reader = source
            if sharded:
                self._stride = (rank, world_size)
        self._reader: Iterable[Any] = reader
        sampler = _epoch_aware(reader)
        if isinstance(sampler, ShardSampler):
            self.plan = sampler.plan
        elif isinstance(sampler, ShardBatchSampler):
            self.plan = sampler.plan()
        elif world_size == 1:
            self.plan = _plan_alone(source)
        self.num_batches = self.plan.num_batches if self.plan is not None else _length(reader, self._stride)
        equal_by_design = isinstance(sampler, DistributedSampler)
        self.exact = self.plan is not None or ((world_size == 1 or equal_by_design) and _is_exact(source))

    @property
    def fingerprint(self) -> str:
        """What identifies the data cheaply: the data set's class and length, or an empty string."""
        dataset = getattr(self.source, "dataset", None)
        if isinstance(dataset, Sized) and not isinstance(dataset, IterableDataset):
            return f"{type(dataset).__qualname__}[{len(dataset)}]"
        return ""

    def start_epoch(self, epoch: int) -> None:
        """Tell samplers and data sets that have ``set_epoch`` which epoch the next iteration reads."""
        for target in (_epoch_aware(self._reader), getattr(self.source, "dataset", None)):
            if target is not None and hasattr(target, "set_epoch"):
                target.set_epoch(epoch)
        sampler = _epoch_aware(self._reader)
        if isinstance(sampler, ShardBatchSampler):
            self.plan = sampler.plan()
            self.num_batches = self.plan.num_batches

    def iterate(self, skip: int = 0) -> Iterator[Any]:
        """Return an iterator over this rank's batches of the epoch after the first `skip`.

        All that the iterator draws from the process's generators before its first batch it draws here, so
        that the caller may set them afterwards.
        """
        if skip == 0:
            iterator = iter(self._reader)
        elif isinstance(self._reader, DataLoader) and self._reader.batch_sampler is not None:
            skipping = SkipBatches(self._reader.batch_sampler, skip)
            iterator = iter(_with(self._reader, batch_sampler=skipping))
            skipping.prime()
            return iterator
        else:
            iterator = itertools.islice(iter(self._reader), skip * (self._stride or (0, 1))[1], None)
        if self._stride is not None:
            iterator = itertools.islice(iterator, self._stride[0], None, self._stride[1])
        return iterator

    def generators(self) -> list[Any]:
        """Return the random generators of the user's own that reading draws from; their state belongs to a
        checkpoint.
        """
        found: list[Any] = []
        for owner in (self._reader, getattr(self._reader, "sampler", None)):
            generator = getattr(owner, "generator", None)
            if generator is not None and all(generator is not other for other in found):
                found.append(generator)
        return found


class ShardedIterable(IterableDataset[Any]):
    """Every n-th sample of an iterable data set, counted over all ranks and their loader processes.

    Args:
        dataset: The data set; it must yield the same samples in the same order on every rank.
        rank: This rank.
        world_size: Ranks.
        splits_workers: The data set divides its samples among loader processes itself.
    """

    def __init__(
        self, dataset: IterableDataset[Any], rank: int, world_size: int, splits_workers: bool
    ) -> None:
        self.dataset = dataset
        self.rank = rank
        self.world_size = world_size
        self.splits_workers = splits_workers

    def set_epoch(self, epoch: int) -> None:
        """Pass the epoch on to the data set, when it asks for it."""
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        if worker is None or self.splits_workers:
            return itertools.islice(iter(self.dataset), self.rank, None, self.world_size)
        place = self.rank * worker.num_workers + worker.id
        return itertools.islice(iter(self.dataset), place, None, self.world_size * worker.num_workers)


def _plan_alone(source: Any) -> StridedPlan | None:
    """Return the plan of a map-style loader that is read by one rank; None when batches may have any size."""
    if not isinstance(source, DataLoader) or isinstance(source.dataset, IterableDataset):
        return None
    batches = source.batch_sampler
    if type(batches) is not BatchSampler or not isinstance(batches.sampler, Sized):
        return None
    return StridedPlan(
        length=len(batches.sampler), world_size=1, batch_size=batches.batch_size, drop_last=batches.drop_last
    )


def _deal_loader(
    loader: DataLoader[Any], rank: int, world_size: int, seed: int, pad: bool, whole_batches: bool
) -> DataLoader[Any]:
    dataset = loader.dataset
    if isinstance(dataset, IterableDataset):
        names = _names_used(type(dataset).__iter__)
        if names & _READS_RANK:
            return loader
        return _with(loader, dataset=ShardedIterable(dataset, rank, world_size, "get_worker_info" in names))
    if isinstance(loader.sampler, DistributedSampler) or _epoch_aware(loader) is not None:
        return loader
    batches = loader.batch_sampler
    if batches is not None and (whole_batches or type(batches) is not BatchSampler):
        dealt = ShardBatchSampler(batches, rank=rank, world_size=world_size, seed=seed)
        return _with(loader, batch_sampler=dealt)
    source = batches.sampler if isinstance(batches, BatchSampler) else loader.sampler
    sampler = cast(Any, source)
    plain_shuffle = (
        type(sampler) is RandomSampler and not sampler.replacement and sampler._num_samples is None
    )
    known = plain_shuffle or type(sampler) is SequentialSampler
    batch_size = batches.batch_size if isinstance(batches, BatchSampler) else 1
    drop_last = batches.drop_last if isinstance(batches, BatchSampler) else False
    plan = StridedPlan(
        length=len(cast(Sized, dataset if known else sampler)),
        world_size=world_size,
        batch_size=batch_size,
        drop_last=drop_last,
        pad=pad,
    )
    shard = ShardSampler(plan, rank=rank, shuffle=plain_shuffle, seed=seed, source=None if known else sampler)
    if batches is None:
        return _with(loader, sampler=shard)
    return _with(loader, sampler=shard, batch_sampler=BatchSampler(shard, batch_size, drop_last))


def _with(loader: DataLoader[Any], **parts: Any) -> DataLoader[Any]:
    """Return a copy of `loader` with other parts.

    Written into the copy's dictionary, because `DataLoader` refuses these assignments and a subclass's
    constructor cannot be called without knowing its arguments.
    """
    clone = copy.copy(loader)
    clone.__dict__.update(parts)
    clone.__dict__["_iterator"] = None
    if clone.num_workers > 0 and clone.multiprocessing_context is None:
        # Processes of a rank hold threads of Gloo and of the store; forking them hangs now and then.
        clone.__dict__["_DataLoader__multiprocessing_context"] = multiprocessing.get_context("forkserver")
    return clone


def _epoch_aware(reader: Any) -> Any:
    """Return the sampler of `reader` that has ``set_epoch``, or None."""
    batches = getattr(reader, "batch_sampler", None)
    for sampler in (batches, getattr(batches, "sampler", None), getattr(reader, "sampler", None)):
        if hasattr(sampler, "set_epoch"):
            return sampler
    return None


def _length(reader: Any, stride: tuple[int, int] | None) -> int | None:
    try:
        length = len(reader)
    except (TypeError, NotImplementedError):
        return None
    return length if stride is None else -(-length // stride[1])


def _is_exact(source: Any) -> bool:
    """Whether ``len(source)`` can be trusted to be the number of batches."""
    if isinstance(source, DataLoader):
        return not isinstance(source.dataset, IterableDataset)
    return isinstance(source, (list, tuple))


def _names_used(function: Any) -> frozenset[str]:
    """Return the names that a function's code mentions, nested functions and string constants included."""
    names: set[str] = set()
    todo = [getattr(function, "__code__", None)]
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
    return frozenset(names)
