"""The order of data for any sizes: each sample once, one sequence at any number of ranks, from any stop."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, StackDataset, Subset, TensorDataset

from modules.arrow_dataset import ArrowDataset
from modules.arrow_windows import find_window, plan_windows, window_order
from modules.batched import batches_of
from modules.keyed_loader import KeyedLoader
from modules.loader import RankLoader
from modules.permutation import LISTED, KeyedPermutation, order_key

SHUFFLES = st.sampled_from([False, "global", "block"])


def loader(rows: int, chunk: int, batch_size: int, shuffle: Any, **options: Any) -> KeyedLoader:
    """A loader of the numbers 0 .. rows - 1, stored in chunks."""
    chunks = [np.arange(start, min(rows, start + chunk)) for start in range(0, rows, chunk)]
    data = ArrowDataset(pa.table({"id": pa.chunked_array([pa.array(part) for part in chunks])}))
    return data.loader(batch_size, shuffle=shuffle, window_rows=7, **options)


def read(
    source: KeyedLoader, rank: int, ranks: int, epoch: int, skip: int = 0, **options: Any
) -> list[list[int]]:
    """The batches of one rank."""
    view = RankLoader(source, rank=rank, world_size=ranks, seed=3, **options)
    view.start_epoch(epoch)
    batches: Iterator[Any] = view.iterate(skip)
    return [batch["id"].tolist() for batch in batches]


def interleaved(shares: list[list[list[int]]]) -> list[int]:
    """The samples of all ranks in the common order: one of each rank in turn."""
    rows = itertools.zip_longest(*(itertools.chain.from_iterable(share) for share in shares))
    return [item for row in rows for item in row if item is not None]


@settings(max_examples=80)
@given(
    rows=st.integers(1, 60),
    chunk=st.integers(1, 20),
    batch_size=st.integers(1, 9),
    ranks=st.integers(1, 5),
    epoch=st.integers(0, 3),
    shuffle=SHUFFLES,
)
def test_the_sequence_is_the_same_at_any_number_of_ranks(
    rows: int, chunk: int, batch_size: int, ranks: int, epoch: int, shuffle: Any
) -> None:
    """Ranks share one sequence, in which each sample comes exactly once."""
    source = loader(rows, chunk, batch_size, shuffle)
    alone = list(itertools.chain.from_iterable(read(source, 0, 1, epoch)))
    assert sorted(alone) == list(range(rows))
    assert interleaved([read(source, rank, ranks, epoch) for rank in range(ranks)]) == alone


@settings(max_examples=60)
@given(
    rows=st.integers(1, 60),
    chunk=st.integers(1, 20),
    batch_size=st.integers(1, 9),
    ranks=st.integers(1, 4),
    stop=st.integers(0, 70),
    shuffle=SHUFFLES,
)
def test_going_on_gives_what_would_have_come(
    rows: int, chunk: int, batch_size: int, ranks: int, stop: int, shuffle: Any
) -> None:
    """A rank that skips k batches reads what a rank that has read them reads next."""
    source = loader(rows, chunk, batch_size, shuffle)
    for rank in range(ranks):
        whole = read(source, rank, ranks, 1)
        assert read(source, rank, ranks, 1, skip=min(stop, len(whole))) == whole[stop:]


@settings(max_examples=40)
@given(rows=st.integers(1, 40), batch_size=st.integers(1, 9), stops=st.lists(st.integers(0, 12), max_size=6))
def test_state_resumes_a_loader_by_itself(rows: int, batch_size: int, stops: list[int]) -> None:
    """Read in pieces, each by a new loader from the state of the last, batches are as uninterrupted."""
    steady = loader(rows, 6, batch_size, "block", seed=1)
    expected = [batch["id"].tolist() for _ in range(3) for batch in steady]
    state, found = loader(rows, 6, batch_size, "block", seed=1).state_dict(), []
    for stop in stops:
        piece = loader(rows, 6, batch_size, "block", seed=1)
        piece.load_state_dict(state)
        found += [batch["id"].tolist() for batch in itertools.islice(piece, stop)]
        state = piece.state_dict()
    assert found[: len(expected)] == expected[: len(found)]


@settings(max_examples=40)
@given(
    rows=st.integers(1, 40),
    batch_size=st.integers(1, 9),
    ranks=st.integers(1, 5),
    shuffle=SHUFFLES,
    drop_last=st.booleans(),
)
def test_equal_shares(rows: int, batch_size: int, ranks: int, shuffle: Any, drop_last: bool) -> None:
    """Padded, or with the last batch dropped, all ranks have equally many samples."""
    source = loader(rows, 6, batch_size, shuffle, drop_last=drop_last)
    shares = [read(source, rank, ranks, 0, pad=not drop_last) for rank in range(ranks)]
    assert len({len(list(itertools.chain.from_iterable(share))) for share in shares}) == 1
    found = interleaved(shares)
    if drop_last:
        assert len(found) == len(set(found)) == rows // ranks // batch_size * batch_size * ranks
    else:
        assert set(found) == set(range(rows))
        assert found[rows:] == (found[:rows] * ranks)[: len(found) - rows]


@settings(max_examples=40)
@given(rows=st.integers(1, 40), batch_size=st.integers(1, 9), ranks=st.integers(1, 4), shuffle=SHUFFLES)
def test_whole_batches_and_their_notes(rows: int, batch_size: int, ranks: int, shuffle: Any) -> None:
    """Dealt whole, ranks have the batches of one rank in turn, and notes tell their row numbers."""
    source = loader(rows, 6, batch_size, shuffle)
    alone = read(source, 0, 1, 0)
    for rank in range(ranks):
        view = RankLoader(source, rank=rank, world_size=ranks, seed=3, whole_batches=True)
        view.start_epoch(0)
        notes = view.note_batches()
        assert [batch["id"].tolist() for batch in view.iterate()] == alone[rank::ranks] == notes


@given(
    length=st.one_of(st.integers(0, 300), st.integers(LISTED + 1, LISTED + 5000)),
    key=st.integers(0, 2**64 - 1),
)
@settings(max_examples=30)
def test_a_keyed_permutation_takes_each_once(length: int, key: int) -> None:
    """A keyed permutation is one, and a place has the same sample whichever places are asked with it."""
    order = KeyedPermutation(length, key)
    whole = order(np.arange(length))
    assert np.array_equal(np.sort(whole), np.arange(length))
    places = np.arange(0, length, 7)
    assert np.array_equal(order(places), whole[places])


@pytest.mark.parametrize("length", [10**6 + 3, 10**13])
def test_long_orders_need_no_list(length: int) -> None:
    """A place far into a very long order is answered at once, and different keys give different orders."""
    places = np.arange(length - 1000, length)
    orders = [KeyedPermutation(length, order_key(0, epoch, "rows"))(places) for epoch in range(2)]
    for ids in orders:
        assert len(set(ids.tolist())) == 1000
        assert ids.min() >= 0
        assert ids.max() < length
    assert not np.array_equal(*orders)


def test_a_long_order_looks_random() -> None:
    """Neighbours in a long order are unrelated: over a 32 x 32 grid, pairs are as even as chance has them."""
    length = 200_000
    order = KeyedPermutation(length, 11)(np.arange(length))
    counts, _, _ = np.histogram2d(order[:-1], order[1:], bins=32)
    expected = counts.mean()
    ratio = ((counts - expected) ** 2 / expected).sum() / (counts.size - 1)
    assert 0.85 < ratio < 1.15


@given(
    blocks=st.lists(st.integers(1, 30), min_size=1, max_size=30),
    window_rows=st.integers(1, 60),
    key=st.one_of(st.none(), st.integers(0, 2**64 - 1)),
)
def test_windows_have_each_block_once(blocks: list[int], window_rows: int, key: int | None) -> None:
    """Windows follow on one another, no larger than asked unless one block is, and have each block once."""
    windows = plan_windows(blocks, window_rows, key)
    assert sorted(block for window in windows for block in window.blocks) == list(range(len(blocks)))
    start = 0
    for index, window in enumerate(windows):
        assert window.start == start
        assert window.rows == sum(blocks[block] for block in window.blocks)
        assert window.rows <= window_rows or len(window.blocks) == 1
        assert find_window(windows, start) == find_window(windows, start + window.rows - 1) == index
        assert sorted(window_order(window, 1, 2).tolist()) == list(range(window.rows))
        start += window.rows


def in_memory(kind: str, rows: int) -> Any:
    """A data set whose rows are tensors or arrays."""
    x, y = torch.randn(rows, 3), torch.arange(rows)
    match kind:
        case "tensors":
            return TensorDataset(x, y)
        case "subset":
            return Subset(Subset(TensorDataset(x, y), list(range(rows))[::-1]), list(range(0, rows, 2)))
        case "stack":
            return StackDataset(x=x, y=y)
        case "tuple":
            return StackDataset(x, y)
        case "tensor":
            return x
        case _:
            return x.numpy()


def drawn(batches: Any) -> tuple[list[Any], Any, Any]:
    """Batches, and the next random number before the last batch and after it."""
    found, middle = [], None
    for batch in batches:
        found.append(batch)
        middle = torch.get_rng_state()
    return found, middle, torch.get_rng_state()


@settings(max_examples=80)
@given(
    kind=st.sampled_from(["tensors", "subset", "stack", "tuple", "tensor", "array"]),
    rows=st.integers(2, 40),
    batch_size=st.integers(1, 9),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
    replacement=st.booleans(),
    own_generator=st.booleans(),
)
def test_data_in_memory_is_read_as_a_dataloader_reads_it(
    kind: str,
    rows: int,
    batch_size: int,
    shuffle: bool,
    drop_last: bool,
    replacement: bool,
    own_generator: bool,
) -> None:
    """Batches taken at once equal DataLoader's in value, type and order, and draw the same random numbers."""
    data = in_memory(kind, rows)

    def make() -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(5) if own_generator else None
        sampler = RandomSampler(data, replacement=True, num_samples=rows + 3, generator=generator)
        if replacement:
            batches = BatchSampler(sampler, batch_size, drop_last)
            return DataLoader(data, batch_sampler=batches, generator=generator)
        return DataLoader(data, batch_size, shuffle=shuffle, drop_last=drop_last, generator=generator)

    torch.manual_seed(1)
    expected, *states = drawn(make())
    torch.manual_seed(1)
    taken = batches_of(make())
    assert taken is not None
    found, *other_states = drawn(taken)
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        assert_same(mine, theirs)
    for state, other in zip(states, other_states, strict=True):
        assert (state is None) == (other is None)
        assert state is None or torch.equal(state, other)


def assert_same(mine: Any, theirs: Any) -> None:
    """Equal in type and value, as deep as it goes."""
    assert type(mine) is type(theirs)
    if isinstance(mine, torch.Tensor):
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine, theirs)
        assert mine.untyped_storage().nbytes() == mine.nbytes
    elif isinstance(mine, dict):
        assert list(mine) == list(theirs)
        for name in mine:
            assert_same(mine[name], theirs[name])
    else:
        for item, other in zip(mine, theirs, strict=True):
            assert_same(item, other)
