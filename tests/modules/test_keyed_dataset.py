"""Samples that draw random numbers are the same wherever they are read."""

from __future__ import annotations

import random
from typing import Any

import numpy
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from modules import rng
from modules.keyed_dataset import KeyedDataset
from modules.loader import RankLoader


class Augmented(Dataset[Any]):
    """Samples of their index and three random numbers."""

    name = "augmented"

    def __init__(self, length: int = 12) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        if index >= self.length:
            raise IndexError(index)
        drawn = [random.random(), float(numpy.random.rand()), float(torch.rand(()))]
        return torch.tensor([float(index), *drawn], dtype=torch.float64)


def read(epoch: int = 0, seed: int = 5, skip: int = 0, **options: Any) -> dict[int, list[float]]:
    """What a loader with keyed samples reads: random numbers by index."""
    ranks = options.pop("world_size", 1)
    found = {}
    for rank in range(ranks):
        loader = RankLoader(
            DataLoader(Augmented(), **options), rank=rank, world_size=ranks, seed=seed, keyed=True
        )
        loader.start_epoch(epoch)
        for row in torch.cat(list(loader.iterate(skip))).tolist():
            found[int(row[0])] = row[1:]
    return found


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 5},
        {"batch_size": 3, "shuffle": True},
        {"batch_size": 2, "num_workers": 2, "multiprocessing_context": "forkserver"},
        {"batch_size": 2, "world_size": 3},
        {"batch_size": 2, "world_size": 2, "shuffle": True},
    ],
    ids=str,
)
def test_samples_do_not_depend_on_who_reads_them(options: dict[str, Any]) -> None:
    """Batches, order, worker processes and ranks change nothing in a sample."""
    expected = read(batch_size=4)
    torch.manual_seed(99)
    assert read(**options) == expected
    assert len(expected) == 12
    assert len({number for row in expected.values() for number in row}) == 36


def test_going_on_in_the_middle_reads_the_same() -> None:
    """The rest of an epoch is what it would have been."""
    expected = read(batch_size=4)
    assert read(batch_size=4, skip=2) == {index: expected[index] for index in range(8, 12)}


def test_epochs_and_seeds_differ() -> None:
    """Another epoch or seed draws other numbers for every sample."""
    first, later, other = read(batch_size=4), read(batch_size=4, epoch=1), read(batch_size=4, seed=6)
    assert not [index for index in first if first[index] == later[index] or first[index] == other[index]]


def test_worker_processes_that_stay_hear_of_the_epoch() -> None:
    """With persistent workers the next epoch's samples differ too, as without."""
    source = DataLoader(
        Augmented(4),
        batch_size=4,
        num_workers=1,
        persistent_workers=True,
        multiprocessing_context="forkserver",
    )
    loader = RankLoader(source, seed=5, keyed=True)
    rows = []
    for epoch in range(2):
        loader.start_epoch(epoch)
        rows.append(next(iter(loader.iterate())).tolist())
    for epoch, found in enumerate(rows):
        assert {int(row[0]): row[1:] for row in found} == {
            index: row for index, row in read(epoch=epoch, batch_size=4).items() if index < 4
        }


def test_the_process_draws_on_as_if_nothing_was_read() -> None:
    """Reading leaves Python's, NumPy's and torch's generators as they were, also when it fails."""
    dataset = KeyedDataset(Augmented(), seed=1)
    rng.set_seed(3)
    expected = random.random(), numpy.random.rand(), float(torch.rand(()))
    rng.set_seed(3)
    assert dataset[0].shape == (4,)
    with pytest.raises(IndexError):
        dataset[12]
    assert (random.random(), numpy.random.rand(), float(torch.rand(()))) == expected


def test_it_passes_for_the_data_set() -> None:
    """Length and attributes are the data set's."""
    dataset = KeyedDataset(Augmented(7), seed=1)
    assert len(dataset) == dataset.length == 7
    assert dataset.name == "augmented"
    with pytest.raises(AttributeError, match="nothing"):
        dataset.nothing  # noqa: B018
