"""Orders and plans: pure functions, compared with torch's DistributedSampler and with batches really cut."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import BatchSampler, DistributedSampler

from modules.order import BatchPlan, ListedPlan, StridedPlan, deal, epoch_order

LENGTHS = st.integers(0, 60)
RANKS = st.integers(1, 7)
EPOCHS = st.integers(0, 1000)


@st.composite
def strided_plans(draw: st.DrawFn) -> StridedPlan:
    return StridedPlan(
        length=draw(LENGTHS),
        world_size=draw(RANKS),
        batch_size=draw(st.integers(1, 7)),
        drop_last=draw(st.booleans()),
        pad=draw(st.booleans()),
    )


@st.composite
def listed_plans(draw: st.DrawFn) -> ListedPlan:
    return ListedPlan(
        batch_lengths=tuple(draw(st.lists(st.integers(1, 4), max_size=15))), world_size=draw(RANKS)
    )


def dealt(plan: StridedPlan, order: Tensor) -> list[list[int]]:
    return [deal(order, plan, rank).tolist() for rank in range(plan.world_size)]


def torchs(plan: StridedPlan, order: Tensor, rank: int) -> list[int]:
    """What torch's sampler yields of an order."""
    if plan.length == 0:  # torch pads even that, and fails
        return []
    sampler: DistributedSampler[int] = DistributedSampler(
        range(plan.length),  # type: ignore[arg-type]
        num_replicas=plan.world_size,
        rank=rank,
        shuffle=False,
    )
    return [int(order[place]) for place in sampler]


def cut(plan: StridedPlan) -> list[list[int]]:
    """By rank, the sizes of the batches that torch's BatchSampler makes of the rank's samples."""
    return [
        [len(batch) for batch in BatchSampler(ids, plan.batch_size, plan.drop_last)]
        for ids in dealt(plan, torch.arange(plan.length))
    ]


def assert_counts(plan: BatchPlan, by_rank: list[list[int]]) -> None:
    """All that `plan` says follows from the sizes of the ranks' batches."""
    rows = list(itertools.zip_longest(*by_rank, fillvalue=0))
    assert plan.num_batches == len(rows)
    assert [list(plan.sizes(index)) for index in range(len(rows) + 2)] == [
        *map(list, rows),
        *[[0] * len(by_rank)] * 2,
    ]
    uneven = [index for index, row in enumerate(rows) if len(set(row)) > 1]
    assert plan.first_uneven == min(uneven, default=len(rows))
    for index in range(len(rows) + 2):
        assert plan.samples_before(index) == sum(map(sum, rows[:index]))
        assert plan.batches_before(index) == sum(size > 0 for row in rows[:index] for size in row)
    for rank, sizes in enumerate(by_rank):
        assert plan.batches(rank) == len(sizes)
        assert [plan.samples_in(rank, end) for end in range(len(sizes) + 2)] == [
            sum(sizes[:end]) for end in range(len(sizes) + 2)
        ]


@given(LENGTHS, st.integers(0, 2**32 - 1), EPOCHS)
def test_an_order_has_each_sample_once(length: int, seed: int, epoch: int) -> None:
    """A shuffled order is a permutation of the sample ids."""
    order = epoch_order(length, seed=seed, epoch=epoch, shuffle=True)
    assert order.dtype == torch.int64
    assert sorted(order.tolist()) == list(range(length))


@given(st.integers(1, 60), RANKS, st.integers(0, 1000), EPOCHS)
def test_the_order_is_torchs(length: int, world_size: int, seed: int, epoch: int) -> None:
    """Each rank's samples are those of torch's shuffling DistributedSampler, which only adds its padding."""
    order = epoch_order(length, seed=seed, epoch=epoch, shuffle=True)
    for rank, mine in enumerate(
        dealt(StridedPlan(length=length, world_size=world_size, batch_size=1), order)
    ):
        sampler: DistributedSampler[int] = DistributedSampler(
            range(length),  # type: ignore[arg-type]
            num_replicas=world_size,
            rank=rank,
            seed=seed,
        )
        sampler.set_epoch(epoch)
        assert list(sampler)[: len(mine)] == mine
        assert len(sampler) - len(mine) == (length % world_size != 0 and rank >= length % world_size)


def test_without_shuffling_the_order_is_that_of_the_data() -> None:
    """An order that is not shuffled counts up in every epoch."""
    assert epoch_order(4, seed=3, epoch=5, shuffle=False).tolist() == [0, 1, 2, 3]


def test_epochs_and_seeds_give_other_orders() -> None:
    """Another epoch or another seed is another permutation."""
    orders = {
        tuple(epoch_order(50, seed=seed, epoch=epoch, shuffle=True).tolist())
        for seed, epoch in [(0, 0), (0, 1), (100, 0), (100, 1)]
    }
    assert len(orders) == 4


@given(strided_plans())
def test_a_strided_plan_counts_what_is_dealt(plan: StridedPlan) -> None:
    """Sizes, sums and the first uneven batch agree with the batches cut from each rank's samples."""
    assert_counts(plan, cut(plan))
    assert [plan.samples(rank) for rank in range(plan.world_size)] == [
        len(ids) for ids in dealt(plan, torch.arange(plan.length))
    ]


@given(listed_plans())
def test_a_listed_plan_counts_what_is_dealt(plan: ListedPlan) -> None:
    """Sizes, sums and the first uneven batch agree with batches that ranks take in turn."""
    assert_counts(
        plan, [list(plan.batch_lengths[rank :: plan.world_size]) for rank in range(plan.world_size)]
    )


@given(LENGTHS, RANKS, st.integers(1, 7))
def test_unpadded_each_sample_is_dealt_once(length: int, world_size: int, batch_size: int) -> None:
    """The ranks' samples, taken in turn, are the order itself."""
    order = epoch_order(length, seed=1, epoch=2, shuffle=True)
    plan = StridedPlan(length=length, world_size=world_size, batch_size=batch_size)
    turns = itertools.zip_longest(*dealt(plan, order))
    assert [place for turn in turns for place in turn if place is not None] == order.tolist()


@given(strided_plans())
def test_dropping_leaves_full_batches_of_equal_number(plan: StridedPlan) -> None:
    """With drop_last all ranks have the same number of full batches, and less than one more each is left
    out.
    """
    plan = StridedPlan(
        length=plan.length, world_size=plan.world_size, batch_size=plan.batch_size, drop_last=True
    )
    sizes = cut(plan)
    taken = [place for ids in dealt(plan, torch.arange(plan.length)) for place in ids]
    assert all(rank_sizes == [plan.batch_size] * plan.num_batches for rank_sizes in sizes)
    assert len(set(taken)) == len(taken)
    assert 0 <= plan.length - len(taken) < plan.batch_size * plan.world_size


@given(strided_plans(), st.integers(0, 100))
def test_padding_is_torchs(plan: StridedPlan, seed: int) -> None:
    """Padded, ranks have what torch's DistributedSampler gives them, of which drop_last then leaves full
    batches.
    """
    plan = StridedPlan(
        length=plan.length,
        world_size=plan.world_size,
        batch_size=plan.batch_size,
        drop_last=plan.drop_last,
        pad=True,
    )
    order = epoch_order(plan.length, seed=seed, epoch=0, shuffle=True)
    for rank, mine in enumerate(dealt(plan, order)):
        theirs = torchs(plan, order, rank)
        full = len(theirs) // plan.batch_size * plan.batch_size
        assert mine == (theirs[:full] if plan.drop_last else theirs)
