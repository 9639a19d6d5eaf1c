"""Which parts a copy of a user's DataLoader needs to read one rank's share of its batches.

The user's loader is only looked at; the copy shares with it whatever is not replaced. What cannot be dealt to
ranks, a sampler without a length or one for another rank, is a `ValueError` before anything is read.
"""

from __future__ import annotations

import copy
from collections.abc import Sized
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from modules import rng
from modules.order import StridedPlan
from modules.sampler import ShardBatchSampler, ShardSampler
from modules.sharded_iterable import ShardedIterable, reads_rank, splits_workers


def share_of(
    loader: DataLoader[Any], rank: int, world_size: int, seed: int, pad: bool, whole_batches: bool
) -> dict[str, Any]:
    """Return the parts that a copy of `loader` needs to read one rank's share."""
    parts: dict[str, Any] = {}
    if loader.generator is not None:  # ranks must not seed their loader processes alike
        own_seed = rng.fold(loader.generator.initial_seed(), "rank", rank)
        parts["generator"] = torch.Generator(loader.generator.device).manual_seed(own_seed)
    dataset = loader.dataset
    if isinstance(dataset, IterableDataset):
        if not whole_batches and not reads_rank(dataset):
            split = splits_workers(dataset, loader.worker_init_fn)
            parts["dataset"] = ShardedIterable(dataset, rank, world_size, split)
        return parts
    for sampler in samplers_of(loader):
        if isinstance(sampler, (ShardSampler, ShardBatchSampler)) or reads_rank(sampler):
            _check_rank(sampler, rank, world_size)
            return parts
    # Where the loader finds its batches; without automatic batching, a sampler may compose them.
    slot = "sampler" if loader.batch_sampler is None else "batch_sampler"
    batches: Any = getattr(loader, slot)
    composes = slot == "batch_sampler" or isinstance(batches, BatchSampler)
    plain = type(batches) is BatchSampler
    if composes and (whole_batches or not plain):
        return {**parts, slot: ShardBatchSampler(batches, rank=rank, world_size=world_size, seed=seed)}
    sampler = batches.sampler if composes else batches
    plain_shuffle = (
        type(sampler) is RandomSampler and not sampler.replacement and sampler._num_samples is None
    )
    if not isinstance(sampler, Sized):
        raise ValueError(
            f"{type(sampler).__qualname__} has no length, so its order cannot be dealt to {world_size} "
            "ranks. Give it __len__, or deal samples yourself under use_distributed_sampler=False."
        )
    plan = StridedPlan(
        length=len(sampler),
        world_size=world_size,
        batch_size=batches.batch_size if composes else 1,
        drop_last=composes and batches.drop_last,
        pad=pad,
    )
    source = None if plain_shuffle or type(sampler) is SequentialSampler else sampler
    shard = ShardSampler(plan, rank=rank, shuffle=plain_shuffle, seed=seed, source=source)
    parts["sampler"] = shard
    if composes:
        parts[slot] = BatchSampler(shard, batches.batch_size, batches.drop_last)
    return parts


def _check_rank(sampler: Any, rank: int, world_size: int) -> None:
    """Refuse a sampler that was built for another place in the group."""
    if isinstance(sampler, DistributedSampler):
        built_for = sampler.rank, sampler.num_replicas
    elif isinstance(sampler, (ShardSampler, ShardBatchSampler)):
        built_for = sampler.rank, sampler.world_size
    else:
        return
    if built_for != (rank, world_size):
        raise ValueError(
            f"A {type(sampler).__qualname__} for rank {built_for[0]} of {built_for[1]} was given on rank "
            f"{rank} of {world_size}, so samples would be read twice or not at all. Build it in "
            "train_dataloader(), where ranks are known, or leave it out: samples are dealt to ranks anyway."
        )


def copy_with(loader: DataLoader[Any], parts: dict[str, Any]) -> DataLoader[Any]:
    """Return a copy of `loader` with other parts.

    Written into the copy's dictionary, because `DataLoader` refuses these assignments and a subclass's
    constructor cannot be called without knowing its arguments.
    """
    clone = copy.copy(loader)
    clone.__dict__.update(parts, _iterator=None)
    return clone


def samplers_of(reader: Any) -> list[Any]:
    """Return the samplers that `reader` reads through, each once, the outermost first."""
    found: list[Any] = []
    for owner in (getattr(reader, "batch_sampler", None), getattr(reader, "sampler", None)):
        for sampler in (owner, getattr(owner, "sampler", None)):
            if sampler is not None and all(sampler is not other for other in found):
                found.append(sampler)
    return found


def is_stream(loader: DataLoader[Any]) -> bool:
    """Whether the data set is iterable-style: its samples have no number."""
    return isinstance(loader.dataset, IterableDataset)
