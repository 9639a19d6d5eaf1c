"""Noting which samples a batch is made of: the notes agree with what is read, and change nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from modules.batch_notes import NotedBatches
from modules.loader import RankLoader


def numbers(**options: Any) -> DataLoader[Any]:
    """A loader of the numbers to ten, each its own index."""
    data: Any = torch.arange(10)
    return DataLoader(data, **options)


def test_the_sampler_passes_everything_on() -> None:
    """It yields and counts what its source does, and forgets the epoch before."""
    noted = NotedBatches(BatchSampler(range(5), 2, drop_last=False))
    assert list(noted) == list(noted) == noted.notes == [[0, 1], [2, 3], [4]]
    assert len(noted) == 3


@pytest.mark.parametrize("world_size", [1, 2])
def test_notes_are_of_this_rank(world_size: int) -> None:
    """Each rank notes the samples of its own batches, in a shuffled order too."""
    seen = []
    for rank in range(world_size):
        torch.manual_seed(3)
        loader = RankLoader(
            numbers(batch_size=3, shuffle=True), rank=rank, world_size=world_size, whole_batches=True
        )
        notes = loader.note_batches()
        loader.start_epoch(0)
        read = [batch.tolist() for batch in loader.iterate()]
        assert notes == read
        seen += [number for batch in read for number in batch]
    assert sorted(seen) == list(range(10))


def test_the_users_loader_stays_as_it_was() -> None:
    """Notes are taken in a copy, and a plain loop draws the same order as a noted one."""
    loader = numbers(batch_size=3, sampler=RandomSampler(range(10)))
    sampler = loader.batch_sampler
    torch.manual_seed(3)
    plain = [batch.tolist() for batch in loader]
    noted = RankLoader(loader)
    noted.note_batches()
    torch.manual_seed(3)
    assert [batch.tolist() for batch in noted.iterate()] == plain
    assert loader.batch_sampler is sampler


def test_what_has_no_batches_of_indices_has_no_notes() -> None:
    """A list of batches, and a loader that does not batch, give an empty list."""
    for source in ([1, 2], numbers(batch_size=None)):
        loader = RankLoader(source)
        notes = loader.note_batches()
        assert len(list(loader.iterate())) and notes == []
