"""A loader on a group: together the ranks read each sample once, and know what each of them has."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from modules.loader import RankLoader
from modules.sampler import ShardSampler
from tests.modules.datasets import Buckets, Evens, Growing, Numbers, RankAware, SizedStream, Stream
from tests.modules.reading import TWO_PROCESSES, batches, flat, loaders


class Named(DataLoader[Any]):
    """A loader whose constructor has other arguments, and which does something with each batch."""

    def __init__(self, name: str, length: int) -> None:
        super().__init__(Numbers(length), batch_size=2, shuffle=True)
        self.name = name

    def __iter__(self) -> Any:
        return ((self.name, batch.tolist()) for batch in super().__iter__())


class Unsized(Sampler[int]):
    """A sampler without a length."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(8))


def read(source: Any, world_size: int, *, epoch: int = 0, **options: Any) -> list[list[Any]]:
    """Each rank's batches."""
    return [batches(loader, epoch=epoch) for loader in loaders(source, world_size, **options)]


@settings(max_examples=60)
@given(
    length=st.integers(1, 40),
    world_size=st.integers(2, 5),
    batch_size=st.integers(1, 6),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
    pad=st.booleans(),
    epoch=st.integers(0, 5),
    skip=st.integers(0, 4),
)
def test_a_share_is_what_the_plan_says(
    length: int,
    world_size: int,
    batch_size: int,
    shuffle: bool,
    drop_last: bool,
    pad: bool,
    epoch: int,
    skip: int,
) -> None:
    """For any sizes, what ranks read is what the plan foretells, each sample once unless padded or dropped,
    and skipping gives the tail.
    """
    source = DataLoader(Numbers(length), batch_size=batch_size, shuffle=shuffle, drop_last=drop_last)
    ranks = loaders(source, world_size, seed=11, pad=pad)
    by_rank = [batches(loader, epoch=epoch) for loader in ranks]
    plan = ranks[0].plan
    assert plan is not None
    rows = itertools.zip_longest(*by_rank, fillvalue=())
    assert [list(plan.sizes(index)) for index in range(plan.num_batches)] == [
        [len(batch) for batch in row] for row in rows
    ]
    assert {loader.num_batches for loader in ranks} == {plan.num_batches}
    taken = sorted(flat(flat(by_rank)))
    if not drop_last:
        assert taken == list(range(length)) or (pad and sorted(set(taken)) == list(range(length)))
    assert [batches(loader, epoch=epoch, skip=skip) for loader in ranks] == [mine[skip:] for mine in by_rank]


@pytest.mark.parametrize("shuffle", [False, True])
def test_without_padding_to_do_the_batches_are_torchs(shuffle: bool) -> None:
    """Where all ranks have equally many samples, they read what torch's DistributedSampler gives them."""
    data = Numbers(24)
    mine = read(DataLoader(data, batch_size=4, shuffle=shuffle), 3, epoch=2, seed=5)
    for rank in range(3):
        sampler: DistributedSampler[Any] = DistributedSampler(
            data, num_replicas=3, rank=rank, shuffle=shuffle, seed=5
        )
        sampler.set_epoch(2)
        assert mine[rank] == [batch.tolist() for batch in DataLoader(data, batch_size=4, sampler=sampler)]


def test_the_users_loader_is_not_changed() -> None:
    """Neither sharing nor reading changes an attribute of the loader that was given, nor its samplers."""
    source = DataLoader(Numbers(10), batch_size=2, shuffle=True, generator=torch.Generator().manual_seed(1))
    assert source.generator is not None and source.batch_sampler is not None
    before, inner = dict(source.__dict__), dict(source.batch_sampler.__dict__)
    state = source.generator.get_state()
    for rank in range(2):
        batches(RankLoader(source, rank=rank, world_size=2), skip=1)
    assert source.__dict__ == before
    assert source.batch_sampler.__dict__ == inner
    assert torch.equal(source.generator.get_state(), state)


def test_a_group_leaves_the_process_generators_to_the_data() -> None:
    """Sharing draws nothing from torch's global generator but what DataLoader draws for its processes."""
    source = DataLoader(Numbers(10), batch_size=2, sampler=SubsetRandomSampler(range(10)))
    torch.manual_seed(3)
    torch.empty((), dtype=torch.int64).random_()
    expected = torch.get_rng_state()
    torch.manual_seed(3)
    batches(RankLoader(source, rank=1, world_size=2))
    assert torch.equal(torch.get_rng_state(), expected)


def test_a_sampler_of_the_users_own_is_dealt() -> None:
    """The order of any sampler is dealt to ranks one sample at a time."""
    assert read(DataLoader(Numbers(9), batch_size=2, sampler=Evens(9)), 2) == [[[0, 4], [8]], [[2, 6]]]
    assert read(DataLoader(Numbers(9), batch_size=2, sampler=[7, 5, 3]), 2) == [[[7, 3]], [[5]]]


def test_a_sampler_over_part_of_the_data_is_not_widened() -> None:
    """torch's own samplers over fewer samples than the data set has stay within them."""
    for sampler in (SequentialSampler(range(5)), RandomSampler(range(5))):
        parts = read(DataLoader(Numbers(9), sampler=sampler), 2)
        assert sorted(flat(flat(parts))) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("own_generator", [False, True])
def test_weighted_sampling_is_one_draw_for_all_ranks(own_generator: bool) -> None:
    """WeightedRandomSampler draws its number of samples once an epoch, over all ranks, anew in each epoch."""
    weights = [0.0] * 10 + [1.0] * 10
    generator = torch.Generator().manual_seed(2) if own_generator else None
    source = DataLoader(Numbers(20), sampler=WeightedRandomSampler(weights, 30, generator=generator))
    epochs = [flat(flat(read(source, 4, epoch=epoch))) for epoch in (0, 1, 0)]
    assert [len(drawn) for drawn in epochs] == [30, 30, 30]
    assert min(flat(epochs)) >= 10
    assert epochs[0] == epochs[2] != epochs[1]


def test_replacement_and_number_of_samples_are_kept() -> None:
    """RandomSampler with replacement, or with a number of samples, keeps its meaning."""
    few = read(DataLoader(Numbers(20), sampler=RandomSampler(range(20), num_samples=7)), 2)
    assert len(set(flat(flat(few)))) == 7
    many = read(DataLoader(Numbers(3), sampler=RandomSampler(range(3), replacement=True, num_samples=50)), 2)
    assert len(flat(flat(many))) == 50


def test_batches_that_somebody_composed_stay_whole() -> None:
    """A batch sampler of the user's own, or a list of batches, is dealt batch by batch, with a true plan."""
    source = DataLoader(Numbers(5), batch_sampler=[[0, 1], [2], [3, 4]])
    ranks = loaders(source, 2)
    assert [batches(loader) for loader in ranks] == [[[0, 1], [3, 4]], [[2]]]
    assert ranks[0].plan is not None and list(ranks[0].plan.sizes(1)) == [2, 0]


def test_bucketed_batches_are_each_read_once() -> None:
    """A batch sampler that composes other batches each time it is asked is read consistently by all ranks."""
    ranks = loaders(DataLoader(Numbers(17), batch_sampler=Buckets(17)), 3)
    for epoch in range(3):
        by_rank = [batches(loader, epoch=epoch) for loader in ranks]
        assert sorted(flat(flat(by_rank))) == list(range(17))
        plan = ranks[0].plan
        assert plan is not None
        assert [[len(batch) for batch in mine] for mine in by_rank] == [
            [plan.sizes(index)[rank] for index in range(plan.num_batches) if plan.sizes(index)[rank]]
            for rank in range(3)
        ]


def test_whole_batches_are_those_of_one_process() -> None:
    """With `whole_batches`, ranks take the one-process batches in turn."""
    assert read(DataLoader(Numbers(7), batch_size=2), 2, whole_batches=True) == [
        [[0, 1], [4, 5]],
        [[2, 3], [6]],
    ]


def test_loaders_that_do_not_batch_are_dealt_sample_by_sample() -> None:
    """With ``batch_size=None`` a rank reads single samples."""
    assert read(DataLoader(Numbers(5), batch_size=None), 2) == [[0, 2, 4], [1, 3]]


def test_a_batch_sampler_given_as_sampler_is_dealt_by_samples() -> None:
    """With ``batch_size=None`` and a BatchSampler as sampler, the data set gets lists of the rank's ids."""
    source = DataLoader(Numbers(7), batch_size=None, sampler=BatchSampler(range(7), 2, False))
    ranks = loaders(source, 2)
    assert [batches(loader) for loader in ranks] == [[[0, 2], [4, 6]], [[1, 3], [5]]]
    assert ranks[0].plan is not None and list(ranks[0].plan.sizes(1)) == [2, 1]
    buckets = read(DataLoader(Numbers(6), batch_size=None, sampler=CustomBatches(range(6), 2, False)), 2)
    assert buckets == [[[0, 1], [4, 5]], [[2, 3]]]


class CustomBatches(BatchSampler):
    """A batch sampler of the user's own."""


def test_a_loaders_class_and_constructor_do_not_matter() -> None:
    """A DataLoader subclass with another constructor is shared, and keeps what it does with batches."""
    parts = read(Named("train", 9), 2)
    assert {name for name, _ in flat(parts)} == {"train"}
    assert sorted(flat(batch for _, batch in flat(parts))) == list(range(9))


def test_torchs_sampler_of_this_rank_is_left_alone() -> None:
    """A DistributedSampler that the user built for the rank is used, told the epoch, and exact."""
    data = Numbers(10)
    for rank in range(2):
        sampler: DistributedSampler[Any] = DistributedSampler(data, num_replicas=2, rank=rank, seed=4)
        loader = RankLoader(DataLoader(data, batch_size=2, sampler=sampler), rank=rank, world_size=2)
        got = batches(loader, epoch=3)
        assert sampler.epoch == 3
        assert flat(got) == list(sampler)
        assert (loader.exact, loader.num_batches) == (True, 3)


def test_a_sampler_of_another_rank_is_refused() -> None:
    """A DistributedSampler that was built in the driver, for rank 0, would make all ranks read alike."""
    data = Numbers(10)
    sampler: DistributedSampler[Any] = DistributedSampler(data, num_replicas=2, rank=0)
    source = DataLoader(data, sampler=sampler)
    with pytest.raises(ValueError, match=r"for rank 0 of 2 was given on rank 1 of 2.*train_dataloader"):
        RankLoader(source, rank=1, world_size=2)
    assert batches(RankLoader(source, rank=1, world_size=2, shard=False)) == [[i] for i in list(sampler)]


def test_our_sampler_in_a_users_loader_is_left_alone() -> None:
    """A ShardSampler that the user put in by hand is not dealt again, and its plan is used."""
    plan = RankLoader(DataLoader(Numbers(7), batch_size=2), rank=1, world_size=2).plan
    sampler = ShardSampler(plan, rank=1, shuffle=False, seed=0)  # type: ignore[arg-type]
    loader = RankLoader(DataLoader(Numbers(7), batch_size=2, sampler=sampler), rank=1, world_size=2)
    assert batches(loader) == [[1, 3], [5]]
    assert loader.plan is plan


def test_samplers_that_know_their_rank_are_left_alone() -> None:
    """A sampler or batch sampler that takes its share by itself is not dealt again."""
    for rank in range(2):
        sampler = RankAware(5, rank, 2)
        sources: list[DataLoader[Any]] = [
            DataLoader(Numbers(5), batch_size=2, sampler=sampler),
            DataLoader(Numbers(5), batch_sampler=CustomBatches(sampler, 2, False)),
        ]
        for source in sources:
            loader = RankLoader(source, rank=rank, world_size=2)
            assert flat(batches(loader)) == list(sampler)
            assert not loader.exact


def test_having_set_epoch_is_not_knowing_the_rank() -> None:
    """A sampler that is told the epoch, but not the rank, is dealt; its length may change with the epoch."""
    ranks = loaders(DataLoader(Numbers(9), batch_size=2, sampler=Growing(4)), 2)
    assert [batches(loader, epoch=1) for loader in ranks] == [[[0, 2], [4]], [[1, 3]]]
    assert [batches(loader, epoch=5) for loader in ranks] == [[[0, 2], [4, 6], [8]], [[1, 3], [5, 7]]]
    assert {loader.num_batches for loader in ranks} == {3}


def test_a_sampler_without_a_length_is_refused() -> None:
    """An order of unknown length cannot be dealt; the message says what can be done."""
    source = DataLoader(Numbers(8), sampler=Unsized())
    with pytest.raises(ValueError, match=r"Unsized has no length.*use_distributed_sampler=False"):
        RankLoader(source, rank=0, world_size=2)


def test_several_loaders_are_not_batches() -> None:
    """A dictionary or list of loaders is refused rather than read as batches."""
    one: DataLoader[Any] = DataLoader(Numbers(2))
    for several in ({"a": one}, [one, one], (one,)):
        with pytest.raises(ValueError, match="of loaders was given where one loader is read"):
            RankLoader(several)


def test_unshared_loaders_are_read_whole() -> None:
    """With ``shard=False`` every rank reads all, as the loader says."""
    source = DataLoader(Numbers(5), batch_size=2)
    assert read(source, 2, shard=False) == [[[0, 1], [2, 3], [4]]] * 2
    assert read([[0], [1]], 2, shard=False) == [[[0], [1]]] * 2
    assert not loaders(source, 2, shard=False)[0].exact


def test_plain_iterables_are_dealt_by_batches() -> None:
    """Of a list of batches, or anything that can be iterated, rank r takes the batches r, r + W, ..."""
    ready = [[0, 1], [2], [3, 4], [5], [6]]
    ranks = loaders(ready, 2)
    assert [batches(loader) for loader in ranks] == [[[0, 1], [3, 4], [6]], [[2], [5]]]
    assert [batches(loader, skip=1) for loader in ranks] == [[[3, 4], [6]], [[5]]]
    assert [(loader.num_batches, loader.plan, loader.exact) for loader in ranks] == [(3, None, False)] * 2
    endless = RankLoader(Endless(), rank=1, world_size=3)
    assert endless.num_batches is None
    assert list(itertools.islice(endless.iterate(1), 2)) == [4, 7]


class Endless:
    """An iterable of batches without a length or an end."""

    def __iter__(self) -> Iterator[int]:
        return itertools.count()


def test_loader_processes_are_seeded_by_rank() -> None:
    """Two ranks that were given the same generator do not seed their loader processes alike, and each rank
    does so again from the same state.
    """

    def seeds(rank: int) -> list[int]:
        generator = torch.Generator().manual_seed(8)
        source = DataLoader(Numbers(4), generator=generator, shuffle=True)
        loader = RankLoader(source, rank=rank, world_size=2)
        (own,) = loader.generators()
        assert own is not generator
        return [int(loader.iterate()._base_seed) for _ in range(2)]  # type: ignore[attr-defined]

    assert len({*seeds(0), *seeds(1)}) == 4
    assert seeds(1) == seeds(1)


@pytest.mark.parametrize("persistent", [False, True])
def test_loader_processes_give_the_same_batches(persistent: bool) -> None:
    """With worker processes, kept between epochs or not, ranks read what they read without."""
    source = DataLoader(
        Numbers(11), batch_size=2, shuffle=True, persistent_workers=persistent, **TWO_PROCESSES
    )
    bare = DataLoader(Numbers(11), batch_size=2, shuffle=True)
    loader, expected = (RankLoader(item, rank=1, world_size=2) for item in (source, bare))
    for epoch in range(2):
        assert batches(loader, epoch=epoch) == batches(expected, epoch=epoch)
    assert batches(loader, epoch=1, skip=1) == batches(expected, epoch=1)[1:]


def test_lengths_that_can_be_trusted_are_called_exact() -> None:
    """In one process, map-style loaders and lists are exact; the lengths of others are not."""

    def facts(source: Any) -> tuple[bool, int | None]:
        loader = RankLoader(source)
        return loader.exact, loader.num_batches

    assert facts(DataLoader(Numbers(5), batch_size=2)) == (True, 3)
    assert facts(DataLoader(Numbers(5), batch_size=None)) == (True, 5)
    assert facts(DataLoader(Numbers(5), batch_sampler=[[0], [1]])) == (True, 2)
    assert facts([[0], [1]]) == (True, 2)
    assert facts(DataLoader(SizedStream(5), batch_size=2)) == (False, 3)
    assert facts(DataLoader(Stream(5))) == (False, None)
    assert facts(Endless()) == (False, None)


def test_the_fingerprint_is_the_same_on_all_ranks() -> None:
    """Data are told apart by class and length; streams and plain iterables by nothing."""
    data = TensorDataset(torch.zeros(6, 2))
    assert {loader.fingerprint for loader in loaders(DataLoader(data), 2)} == {"TensorDataset[6]"}
    assert RankLoader(DataLoader(data)).fingerprint == "TensorDataset[6]"
    assert RankLoader(DataLoader(SizedStream(6))).fingerprint == ""
    assert RankLoader([1, 2]).fingerprint == ""


def test_an_empty_data_set_has_no_batches() -> None:
    """A loader over nothing has zero batches, on one rank and on several."""
    source = DataLoader(Numbers(0), batch_size=2)
    assert [RankLoader(source).num_batches, RankLoader(source, rank=0, world_size=2).num_batches] == [0, 0]
    assert read(source, 2) == [[], []]


def test_ranks_without_samples_read_nothing() -> None:
    """With fewer samples than ranks, the last ranks have no batch, and the plan says so."""
    ranks = loaders(DataLoader(Numbers(2), batch_size=4), 3)
    assert [batches(copy.copy(loader)) for loader in ranks] == [[[0]], [[1]], []]
    assert ranks[2].plan is not None and list(ranks[2].plan.sizes(0)) == [1, 1, 0]
