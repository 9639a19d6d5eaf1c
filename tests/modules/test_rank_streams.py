"""Several ranks read by one process: what each reads is what it would read by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from modules import RankLoader, rng
from modules.rank_streams import RankStreams


class Numbers(Dataset[Tensor]):
    """Its own indices, with noise."""

    def __len__(self) -> int:
        return 22

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor(float(index)) + torch.rand(()) / 2


def noisy(samples: list[Tensor]) -> Tensor:
    """Collate, and draw."""
    return torch.stack(samples) + torch.rand(()) / 4


def readers(source: Any, ranks: int = 3) -> list[RankLoader]:
    """A view for each of some ranks, in epoch 1."""
    found = [RankLoader(source, rank=rank, world_size=ranks, seed=5, keyed=True) for rank in range(ranks)]
    for reader in found:
        reader.start_epoch(1)
    return found


def turns(counts: list[int]) -> list[int]:
    """One batch of each rank in turn, while it has any."""
    return [place for index in range(max(counts)) for place, count in enumerate(counts) if index < count]


@pytest.mark.parametrize("skip", [0, 1])
@pytest.mark.parametrize(
    "source",
    [
        lambda: DataLoader(Numbers(), batch_size=4, shuffle=True),
        lambda: DataLoader(TensorDataset(torch.arange(22.0)), batch_size=4, shuffle=True),
        lambda: DataLoader(Numbers(), batch_size=None, shuffle=True),
    ],
    ids=["samples", "in memory", "without batches"],
)
def test_each_rank_reads_what_is_its_own(source: Any, skip: int) -> None:
    """In any order of turns, and behind any batch, ranks read what they would read alone."""
    alone = [list(reader.iterate(skip)) for reader in readers(source())]
    streams = RankStreams(readers(source()), 5)
    order = turns([len(batches) for batches in alone])
    found: list[list[Any]] = [[], [], []]
    for place, batch in zip(order, streams.read(skip, iter(order)), strict=True):
        found[place].append(batch)
    assert repr(found) == repr(alone)


@pytest.mark.parametrize("workers", [0, 1])
def test_collating_draws_by_its_samples(workers: int) -> None:
    """What a collate function draws depends on the samples alone, not on who collates what before it."""
    known: dict[int, list[str]] = {}
    for ranks in (2, 1):
        torch.manual_seed(ranks)
        source = DataLoader(Numbers(), batch_size=4, shuffle=True, collate_fn=noisy, num_workers=workers)
        streams = RankStreams(readers(source, 2)[:ranks], 5)
        known[ranks] = [repr(batch) for batch in streams.read(0, [0] * 3)]
    assert known[1] == known[2]
    assert len(set(known[1])) == 3


def test_the_process_goes_on_as_if_nothing_had_been_drawn() -> None:
    """Reading under keys leaves the process's generators where they are, but for what DataLoader draws."""
    source = DataLoader(Numbers(), batch_size=4, shuffle=True, collate_fn=noisy)
    batches = RankStreams(readers(source), 5).read(0, [0, 1, 2])
    next(batches)
    before = rng.capture()["torch"]
    next(batches)
    assert torch.equal(rng.capture()["torch"], before)
