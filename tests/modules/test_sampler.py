"""Samplers for groups: shares of an order that depends on (seed, epoch) and on nothing else."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, RandomSampler, Sampler, WeightedRandomSampler

from modules import rng
from modules.order import StridedPlan
from modules.sampler import ShardBatchSampler, ShardSampler, SkipBatches, own_generators, tell_epoch
from tests.modules.datasets import Buckets, Evens, Growing
from tests.modules.reading import flat


def shards(source: Any, length: int, world_size: int, seed: int = 0) -> list[ShardSampler]:
    plan = StridedPlan(length=length, world_size=world_size, batch_size=1)
    return [
        ShardSampler(plan, rank=rank, shuffle=False, seed=seed, source=source) for rank in range(world_size)
    ]


def random_state() -> list[str]:
    return [str(random.getstate()), str(np.random.get_state()), str(torch.get_rng_state().tolist())]


class Unequal(Evens):
    """Yields less than it says."""

    def __len__(self) -> int:
        return 10


class Endless(Evens):
    """Yields more than it says."""

    def __iter__(self) -> Iterator[int]:
        return itertools.count()


def test_epochs_have_orders_of_their_own() -> None:
    """The order changes with `set_epoch`, not with being read again."""
    plan = StridedPlan(length=20, world_size=2, batch_size=4)
    sampler = ShardSampler(plan, rank=1, shuffle=True, seed=3)
    first = list(sampler)
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    sampler.set_epoch(0)
    assert list(sampler) == first


def test_the_length_is_the_ranks() -> None:
    """A shard's length is the number of ids that it yields."""
    assert [len(shard) for shard in shards(Evens(11), 6, 4)] == [2, 2, 1, 1]
    assert [len(list(shard)) for shard in shards(Evens(11), 6, 4)] == [2, 2, 1, 1]


def test_ids_may_be_of_any_kind() -> None:
    """A user's sampler may yield tuples, strings or lists of different lengths: they arrive as they are."""
    ids = [(3, 224), "a", [1, 2, 3], [4]]
    assert [list(shard) for shard in shards(ids, 4, 2)] == [[(3, 224), [1, 2, 3]], ["a", [4]]]


@pytest.mark.parametrize("own_generator", [False, True])
def test_a_random_source_is_dealt_alike_on_all_ranks(own_generator: bool) -> None:
    """Whatever the ranks' generators have drawn before, the ranks' shares make up one order of the epoch."""
    parts = []
    for rank in range(3):
        generator = torch.Generator().manual_seed(7) if own_generator else None
        for _ in range(rank):
            torch.rand(1)
            torch.rand(1, generator=generator)
        source = RandomSampler(range(20), generator=generator)
        parts.append(list(shards(source, 20, 3)[rank]))
    assert sorted(flat(parts)) == list(range(20))


def test_a_random_source_follows_seed_and_epoch() -> None:
    """Another seed, another epoch or another seed of the sampler's own generator gives another order."""

    def order(seed: int, epoch: int, own: int) -> tuple[int, ...]:
        source = RandomSampler(range(30), generator=torch.Generator().manual_seed(own))
        shard = shards(source, 30, 1, seed)[0]
        shard.set_epoch(epoch)
        return tuple(shard)

    assert order(1, 2, 3) == order(1, 2, 3)
    assert len({order(0, 0, 0), order(1, 0, 0), order(0, 1, 0), order(0, 0, 1)}) == 4


def test_generators_are_left_as_they_were() -> None:
    """Asking a sampler for its order moves neither the process's generators nor the sampler's own."""
    own = torch.Generator().manual_seed(1)
    torch.rand(3, generator=own)
    sources = [
        WeightedRandomSampler([1.0, 2.0, 3.0], 3, generator=own),
        RandomSampler(range(3), generator=own),
    ]
    before = [random_state(), own.get_state().tolist(), own.initial_seed()]
    for source in sources:
        list(shards(source, 3, 2)[1])
        list(ShardBatchSampler(BatchSampler(source, 2, False), rank=0, world_size=2, seed=0))
    assert [random_state(), own.get_state().tolist(), own.initial_seed()] == before


def test_a_failing_source_leaves_generators_as_they_were() -> None:
    """An exception inside a user's sampler passes, and the generators are put back all the same."""

    class Failing(Evens):
        def __iter__(self) -> Iterator[int]:
            torch.rand(1)
            raise KeyError("lost")

    before = random_state()
    with pytest.raises(KeyError, match="lost"):
        iter(shards(Failing(4), 2, 2)[0])
    assert random_state() == before


def test_a_source_that_yields_too_little_is_named() -> None:
    """Ranks would disagree about what each has, so a length that is not true is an error."""
    with pytest.raises(ValueError, match="Unequal has length 10 and yielded 4 ids"):
        iter(shards(Unequal(8), 10, 2)[0])


def test_what_a_source_yields_beyond_its_length_is_left_out() -> None:
    """A source without an end is read as far as its length says, as DataLoader's length counts it."""
    assert [list(shard) for shard in shards(Endless(10), 5, 2)] == [[0, 2, 4], [1, 3]]


def test_a_source_is_told_the_epoch_and_may_change_its_length() -> None:
    """The plan follows the length that a sampler has after `set_epoch`."""
    shard = shards(Growing(4), 4, 2)[1]
    shard.set_epoch(3)
    assert shard.plan.length == 7
    assert list(shard) == [1, 3, 5]
    assert len(shard) == 3


def test_a_batch_plan_tells_what_comes() -> None:
    """Even if a batch sampler draws another order whenever it is asked, the plan is that of the batches."""
    for epoch in range(4):
        ranks = [ShardBatchSampler(Buckets(17), rank=rank, world_size=3, seed=0) for rank in range(3)]
        for sampler in ranks:
            sampler.set_epoch(epoch)
            sampler.plan()
            read = [list(sampler), list(sampler)]
            assert read[0] == read[1]
            sizes = [sampler.plan().sizes(index)[sampler.rank] for index in range(sampler.plan().num_batches)]
            assert [size for size in sizes if size] == [len(batch) for batch in read[0]]
            assert len(sampler) == len(read[0])
        assert sorted(flat(flat(ranks))) == list(range(17))


def test_batches_are_drawn_anew_in_each_epoch() -> None:
    """After `set_epoch` a batch sampler is asked again, and one that sorts by epoch is told."""
    source = BatchSampler(Growing(4), 2, False)
    sampler = ShardBatchSampler(source, rank=0, world_size=2, seed=0)
    assert list(sampler) == [[0, 1]]
    sampler.set_epoch(1)
    assert list(sampler) == [[0, 1], [4]]


@given(st.integers(0, 20), st.integers(0, 8), st.integers(1, 5))
def test_skipping_yields_the_tail(length: int, skip: int, batch_size: int) -> None:
    """After skipping, the same batches come as without the first ones; beyond the end there are none."""
    source = BatchSampler(range(length), batch_size, False)
    skipping = SkipBatches(source, skip)
    tail = list(source)[skip:]
    assert len(skipping) == len(tail)
    assert list(skipping) == tail


def test_priming_draws_what_the_source_draws_at_its_start() -> None:
    """After `prime`, setting the generators does not change what comes."""
    torch.manual_seed(5)
    expected = list(RandomSampler(range(10)))[3:]
    torch.manual_seed(5)
    skipping = SkipBatches(RandomSampler(range(10)), 3)
    skipping.prime()
    torch.manual_seed(6)
    assert list(skipping) == expected


def test_own_generators_are_found_once_at_any_depth() -> None:
    """Generators of samplers inside samplers are found under any name, each once."""

    class Named(Sampler[int]):
        def __init__(self, inner: Sampler[int], secret: torch.Generator) -> None:
            self.inner = inner
            self.secret = secret
            self.myself = self

    outer, inner = torch.Generator(), torch.Generator()
    sampler = BatchSampler(Named(RandomSampler(range(3), generator=inner), outer), 2, False)
    found = own_generators(sampler, sampler.sampler)
    assert len(found) == 2
    assert {id(item) for item in found} == {id(inner), id(outer)}


def test_the_epoch_is_told_to_those_who_ask() -> None:
    """Only what has ``set_epoch`` is told the epoch."""
    growing = Growing(0)
    tell_epoch(growing, 2)
    tell_epoch(Evens(4), 2)
    tell_epoch(None, 2)
    assert growing.length == 6


def test_isolated_draws_do_not_depend_on_the_rank_stream() -> None:
    """The order of a random source is the one that the folded seed gives, on any process."""
    with rng.isolated(rng.fold(9, 4)):
        expected = list(WeightedRandomSampler([1.0] * 6, 6))
    shard = shards(WeightedRandomSampler([1.0] * 6, 6), 6, 1, seed=9)[0]
    shard.set_epoch(4)
    assert list(shard) == expected
