"""A user's DataLoader as one rank reads it: its share of the batches, from any place in the epoch.

With one rank the loader is read untouched and draws from the process's generators exactly as a plain loop
would. With more, a copy of it gets a sampler from `modules.sampler`; the user's own object never changes.
A loader with ``state_dict`` and ``load_state_dict`` is resumed by them, on each rank with that rank's own
state. Else map-style loaders are resumed without loading what was used, and others are read up to the place.
A loader whose length ranks cannot know in advance is marked so (`plan` is None), and the training loop agrees
on its end step by step. Fails before anything is read when what was given cannot be shared.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
)

from modules import rng
from modules.batch_notes import NotedBatches
from modules.batched import batches_of, find_take
from modules.keyed_dataset import KeyedDataset
from modules.keyed_loader import KeyedLoader, Share
from modules.loader_processes import LoaderContext
from modules.loader_share import copy_with, is_stream, samplers_of, share_of
from modules.order import BatchPlan, StridedPlan
from modules.sampler import ShardBatchSampler, ShardSampler, SkipBatches, own_generators, tell_epoch
from modules.sharded_iterable import reads_rank

Mark = tuple[dict[str, Any], list[Any]]
"""The process's random state, and those of a loader's own generators."""


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
        keyed: Samples of map-style data sets draw random numbers that depend on (seed, epoch, index) alone.
        pickler: With several ranks, the pickler class for what a loader's worker processes are given; one
            that takes classes of the user's script by value. None takes plain pickle.

    Attributes:
        num_batches: Batches in an epoch, of the rank that has most; None when that is not known.
        plan: How many samples each rank has in each batch; None when ranks cannot know it in advance.
        exact: `num_batches` can be trusted.
        kept: Worker processes that stay for all epochs have been started already, so no seed is drawn for
            them again. A checkpoint needs its value at the epoch's start; set it on a loader that goes on.

    Raises:
        ValueError: The source is several loaders, a sampler of another rank, or a sampler without a length.
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
        keyed: bool = False,
        pickler: type[Any] | None = None,
    ) -> None:
        _refuse_several(source)
        self.source = source
        self.plan: BatchPlan | None = None
        self.num_batches: int | None = None
        self._stride: tuple[int, int] | None = None
        self._epoch = 0
        self._reader: Iterable[Any] = source
        if world_size > 1 and isinstance(source, DataLoader):
            parts = share_of(source, rank, world_size, seed, pad, whole_batches) if shard else {}
            if shard and whole_batches and is_stream(source) and not reads_rank(source.dataset):
                self._stride = (rank, world_size)
            if source.num_workers > 0 and source.multiprocessing_context is None:
                parts["_DataLoader__multiprocessing_context"] = LoaderContext(pickler)
            self._reader = copy_with(source, parts)
        elif isinstance(source, KeyedLoader):
            place = (rank, world_size) if shard else (0, 1)
            share = source.share(
                rank=place[0], world_size=place[1], seed=seed, pad=pad, whole_batches=whole_batches and shard
            )
            self._reader = share
            self.plan = share.plan if shard or world_size == 1 else None
        elif world_size > 1 and shard:
            self._stride = (rank, world_size)
        elif world_size == 1:
            self.plan = _plan_alone(source)
        self._keyed: KeyedDataset | None = None
        draws = isinstance(self._reader, DataLoader) and find_take(self._reader) is None
        if keyed and draws and isinstance(self._reader, DataLoader) and not is_stream(self._reader):
            self._keyed = KeyedDataset(self._reader.dataset, seed)
            self._reader = copy_with(self._reader, {"dataset": self._keyed})
        self._dealt = [
            sampler
            for sampler in samplers_of(self._reader)
            if world_size > 1 and isinstance(sampler, (ShardSampler, ShardBatchSampler))
        ]
        self._take_plan()
        if self.plan is None:
            self.num_batches = _length(self._reader, self._stride)
        alike = world_size == 1 or _is_equal_by_design(self._reader)
        self.exact = self.plan is not None or (alike and _is_exact(source))
        self.kept = getattr(self._reader, "_iterator", None) is not None
        self._generators = own_generators(self._reader, *samplers_of(self._reader))
        self._is_stateful = all(
            callable(getattr(self._reader, name, None)) for name in ("state_dict", "load_state_dict")
        )

    @property
    def fingerprint(self) -> str:
        """What identifies the data cheaply: the data set's class and length, or an empty string."""
        if isinstance(self.source, KeyedLoader):
            return self.source.fingerprint
        dataset = getattr(self.source, "dataset", None)
        if isinstance(dataset, Sized) and not isinstance(dataset, IterableDataset):
            return f"{type(dataset).__qualname__}[{len(dataset)}]"
        return ""

    @property
    def dataloader(self) -> DataLoader[Any] | None:
        """The DataLoader that this rank's batches are read from; None where they come from something else."""
        return self._reader if isinstance(self._reader, DataLoader) else None

    @property
    def skips_quickly(self) -> bool:
        """Whether `iterate` goes to any place of the epoch at once, in this process."""
        reader = self._reader
        return isinstance(reader, DataLoader) and not is_stream(reader) and reader.num_workers == 0

    def start_epoch(self, epoch: int) -> None:
        """Tell samplers and data sets that have ``set_epoch`` which epoch the next iteration reads."""
        self._epoch = epoch
        if isinstance(self._reader, Share):
            self._reader.start_epoch(epoch)
            return
        for target in (*samplers_of(self._reader), getattr(self.source, "dataset", None)):
            tell_epoch(target, epoch)
        if self._keyed is not None:
            self._keyed.set_epoch(epoch)
        self._take_plan()

    def _take_plan(self) -> None:
        """Read the plan of the epoch from the sampler that deals."""
        for sampler in self._dealt:
            self.plan = sampler.plan if isinstance(sampler, ShardSampler) else sampler.plan()
        if self.plan is not None:
            self.num_batches = self.plan.num_batches

    def iterate(
        self, skip: int = 0, own: Mapping[str, Any] | None = None, first: Mark | None = None
    ) -> Iterator[Any]:
        """Return an iterator over this rank's batches of the epoch after the first `skip`.

        What reading the skipped part draws from the process's generators is drawn here, so that the caller
        may set them afterwards. A map-style data set is not asked for skipped samples; if it draws random
        numbers inside worker processes, these start again as at the beginning of an epoch.

        Args:
            skip: Batches that were used.
            own: With `skip`, what `own_state` returned after them.
            first: With `skip`, the random state in which the first batch was asked for, where that is not
                the present one.
        """
        if isinstance(self._reader, Share):
            return self._reader.iterate(skip)
        reader = self._keep_processes()
        start, step = self._stride or (0, 1)
        if own and self._is_stateful and "state" in own:
            self.take_state(own)
            # On from where the iterator stood, which was right behind this rank's last batch.
            return _every(iter(reader), step - 1 if skip else start, step)
        if skip and isinstance(reader, DataLoader) and not isinstance(reader.dataset, IterableDataset):
            slot = "sampler" if reader.batch_sampler is None else "batch_sampler"
            skipping = SkipBatches(getattr(reader, slot), skip)
            rest = _iterate(copy_with(reader, {slot: skipping}))
            self.put_back(first)
            skipping.prime()
            return rest
        iterator = _iterate(reader)
        self.put_back(first)
        for _ in itertools.islice(iterator, skip * step):
            pass
        return _every(iterator, start, step)

    def own_state(self) -> dict[str, Any]:
        """Return what the loader says itself of where it stands, as ``{"state": ...}``; empty for one that
        cannot.
        """
        if not self._is_stateful:
            return {}
        return {"state": copy.deepcopy(self._reader.state_dict())}  # type: ignore[attr-defined]

    def take_state(self, own: Mapping[str, Any]) -> None:
        """Give back to the loader what `own_state` returned, before it is iterated."""
        if self._is_stateful and "state" in own:
            self._reader.load_state_dict(copy.deepcopy(own["state"]))  # type: ignore[attr-defined]

    def mark(self) -> Mark:
        """Return the random states that reading draws from, now."""
        return rng.capture(), [generator.get_state() for generator in self._generators]

    def put_back(self, mark: Mark | None) -> None:
        """Set the random states to those of `mark`; None leaves them."""
        if mark is None:
            return
        state, generators = mark
        rng.restore(state)
        for generator, own in zip(self._generators, generators, strict=False):
            generator.set_state(own)

    def close(self) -> None:
        """Nothing is held between epochs but what the loader itself keeps."""

    def note_batches(self) -> list[list[Any]]:
        """Return a list that gets the sample ids of each batch that is read from here on; it stays empty
        where samples have none.
        """
        reader = self._reader
        if isinstance(reader, Share):
            return reader.note_batches()
        if not self.has_numbers or not isinstance(reader, DataLoader):
            return []
        noted = NotedBatches(reader.batch_sampler)
        self._reader = copy_with(reader, {"batch_sampler": noted})
        return noted.notes

    @property
    def has_numbers(self) -> bool:
        """Whether `note_batches` gets to know which samples a batch has."""
        reader = self._reader
        if isinstance(reader, Share):
            return True
        return isinstance(reader, DataLoader) and reader.batch_sampler is not None and not is_stream(reader)

    def first_note(self, skip: int) -> int:
        """Return the number in the epoch of the batch that the first note is of, where `iterate` was asked
        for the batches after the first `skip`."""
        return skip if isinstance(self._reader, Share) else 0

    def generators(self) -> list[torch.Generator]:
        """Return the random generators of the user's own that reading draws from; their state belongs to a
        checkpoint.
        """
        return list(self._generators)

    def _keep_processes(self) -> Iterable[Any]:
        """Return the reader; one that starts its processes where they should be running already draws the
        seed for them from a generator apart, so that the process's own goes on as if they were.
        """
        reader = self._reader
        if isinstance(reader, DataLoader) and reader.persistent_workers:
            if self.kept and reader._iterator is None:
                seed = rng.fold(torch.initial_seed(), "processes", self._epoch)
                reader = self._reader = copy_with(reader, {"generator": torch.Generator().manual_seed(seed)})
            self.kept = True
        return reader


def _iterate(reader: Iterable[Any]) -> Iterator[Any]:
    """Return an iterator over the batches; data in memory is read a batch at a time."""
    batches = batches_of(reader) if isinstance(reader, DataLoader) else None
    return iter(reader) if batches is None else batches


def _every(iterator: Iterator[Any], start: int, step: int) -> Iterator[Any]:
    return iterator if step == 1 else itertools.islice(iterator, start, None, step)


def _refuse_several(source: object) -> None:
    """Refuse collections of loaders, whose keys or members would be taken for batches."""
    items = source if isinstance(source, (list, tuple)) else ()
    if isinstance(source, Mapping) or any(isinstance(item, DataLoader) for item in items):
        raise ValueError(
            f"A {type(source).__qualname__} of loaders was given where one loader is read: its members would "
            "be taken for batches. Give one DataLoader, or wrap them in a CombinedLoader and read that."
        )


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


def _is_equal_by_design(reader: Any) -> bool:
    """Whether all ranks have equally many batches: torch's own sampler, and batches of one size."""
    return isinstance(getattr(reader, "sampler", None), DistributedSampler) and type(
        reader.batch_sampler
    ) in (BatchSampler, type(None))


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
