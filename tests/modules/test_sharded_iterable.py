"""Iterable data sets on a group: each sample once, however many loader processes, and no double sharing."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from torch.utils.data import ChainDataset, DataLoader, IterableDataset

from modules.loader import RankLoader
from modules.sharded_iterable import ShardedIterable, reads_rank, splits_workers
from tests.modules.datasets import (
    BoundedStream,
    EnvironmentStream,
    EpochStream,
    Numbers,
    RankAware,
    SizedStream,
    SplitStream,
    Stream,
    Wrapped,
    take_a_part,
)
from tests.modules.reading import TWO_PROCESSES, batches, flat, loaders


@pytest.mark.parametrize("processes", [{}, TWO_PROCESSES], ids=["here", "two processes"])
@pytest.mark.parametrize(
    ("make", "options"),
    [
        (functools.partial(Stream, 13), {}),
        (functools.partial(SizedStream, 13), {}),
        (functools.partial(SplitStream, 13), {}),
        (functools.partial(BoundedStream, 0, 13), {"worker_init_fn": take_a_part}),
        (functools.partial(Wrapped, SplitStream(13)), {}),
    ],
    ids=["plain", "sized", "split by itself", "split by worker_init_fn", "split inside"],
)
def test_each_sample_is_read_once(
    make: Callable[[], IterableDataset[Any]], options: dict[str, Any], processes: dict[str, Any]
) -> None:
    """Ranks and their loader processes share the samples, also where the data set divides them itself."""
    source = DataLoader(make(), batch_size=2, **(options if processes else {}), **processes)
    ranks = loaders(source, 2)
    assert sorted(flat(flat(batches(loader) for loader in ranks))) == list(range(13))
    assert {(loader.plan, loader.exact, loader.num_batches) for loader in ranks} == {(None, False, None)}


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("world_size", [1, 2])
def test_skipping_reads_on_where_the_epoch_was_left(world_size: int, batch_size: int | None) -> None:
    """A stream is read up to the place, so that what comes next is the rest."""
    source = DataLoader(Stream(11), batch_size=batch_size)
    for loader in loaders(source, world_size):
        assert batches(loader, skip=2) == batches(loader)[2:]


def test_skipping_with_processes_reads_on_where_the_epoch_was_left() -> None:
    """The rest of a stream that loader processes read is the rest of what they read."""
    (_, loader) = loaders(DataLoader(Stream(24), batch_size=2, **TWO_PROCESSES), 2)
    assert batches(loader, skip=3) == batches(loader)[3:]


def test_streams_that_know_their_rank_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set that reads the rank itself, in whatever method, or contains one that does, is not dealt
    again.
    """
    monkeypatch.setenv("WORLD_SIZE", "2")
    for make in (lambda: EnvironmentStream(9), lambda: Wrapped(EnvironmentStream(9))):
        parts = []
        for rank in range(2):
            monkeypatch.setenv("RANK", str(rank))
            parts.append(flat(batches(RankLoader(DataLoader(make(), batch_size=2), rank=rank, world_size=2))))
        assert parts == [[0, 2, 4, 6, 8], [1, 3, 5, 7]]


def test_streams_are_told_the_epoch() -> None:
    """A stream with ``set_epoch`` knows the epoch on every rank, in loader processes too."""
    for options in ({}, TWO_PROCESSES):
        ranks = loaders(DataLoader(EpochStream(4), batch_size=4, **options), 2)
        for epoch in (3, 1):
            parts = [batches(loader, epoch=epoch) for loader in ranks]
            assert sorted(flat(flat(parts))) == [100 * epoch + place for place in range(4)]


def test_unshared_streams_are_read_whole() -> None:
    """With ``shard=False`` each rank reads the whole stream."""
    assert [batches(loader) for loader in loaders(DataLoader(Stream(3)), 2, shard=False)] == [
        [[0], [1], [2]]
    ] * 2


def test_the_data_sets_attributes_are_reached_through_the_share() -> None:
    """Reading and setting attributes of the share reads and sets those of the data set; so it pickles."""
    inner = BoundedStream(0, 5)
    shared = ShardedIterable(inner, 1, 2, False)
    shared.end = 9
    assert (inner.end, shared.start) == (9, 0)
    assert list(pickle.loads(pickle.dumps(shared))) == [1, 3, 5, 7]
    with pytest.raises(AttributeError, match="middle"):
        _ = shared.middle


@pytest.mark.parametrize(
    ("reader", "expected"),
    [
        (Stream(3), False),
        (SplitStream(3), False),
        (ChainDataset([Stream(3), Stream(4)]), False),
        (EnvironmentStream(3), True),
        (ChainDataset([Stream(3), EnvironmentStream(3)]), True),
        (Wrapped(Wrapped(EnvironmentStream(3))), True),
        (RankAware(3, 0, 1), True),
        (Numbers(3), False),
        ([1, 2], False),
    ],
)
def test_knowing_the_rank_is_seen_in_the_code(reader: object, expected: bool) -> None:
    """Whoever mentions the rank in a method, an attribute or a data set inside is said to read it."""
    assert reads_rank(reader) is expected


def test_a_stream_inside_itself_does_not_matter() -> None:
    """Data sets that refer to each other in a circle are looked through once."""
    outer = Wrapped(Stream(3))
    outer.inner = outer
    assert not reads_rank(outer)


def test_dividing_among_processes_is_seen_in_the_code() -> None:
    """Methods, properties, static methods, decorated functions and partials are looked into."""

    class Hidden(Stream):
        @property
        def share(self) -> Any:
            from torch.utils.data import get_worker_info

            return get_worker_info()

    class Decorated(Stream):
        @staticmethod
        @functools.lru_cache
        def place() -> Any:
            from torch.utils.data import get_worker_info

            return get_worker_info()

    assert not splits_workers(Stream(3), None)
    assert not splits_workers(Stream(3), print)
    assert splits_workers(Stream(3), take_a_part)
    assert splits_workers(Stream(3), functools.partial(take_a_part, 0))
    assert splits_workers(Hidden(3), None)
    assert splits_workers(Decorated(3), None)
