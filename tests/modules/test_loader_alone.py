"""A loader on one rank: exactly what a plain ``for batch in loader`` gives and draws, from any place."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from modules import rng
from modules.loader import RankLoader
from tests.modules.datasets import Asked, Evens, Noisy, Numbers, ShuffledStream, Stream
from tests.modules.reading import TWO_PROCESSES, batches, plain

Make = Callable[[], Any]


def own(seed: int = 4) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


PLAIN: dict[str, Make] = {
    "in order": lambda: DataLoader(Noisy(11), batch_size=2),
    "shuffled": lambda: DataLoader(Noisy(11), batch_size=2, shuffle=True),
    "shuffled, last dropped": lambda: DataLoader(Noisy(11), batch_size=2, shuffle=True, drop_last=True),
    "own generator": lambda: DataLoader(Noisy(11), batch_size=2, shuffle=True, generator=own()),
    "sampler's own generator": lambda: DataLoader(
        Noisy(11), sampler=RandomSampler(range(11), generator=own())
    ),
    "replacement": lambda: DataLoader(Noisy(90), sampler=RandomSampler(range(90), replacement=True)),
    "weighted": lambda: DataLoader(Noisy(11), sampler=WeightedRandomSampler([1.0] * 11, 8)),
    "subset": lambda: DataLoader(Noisy(11), batch_size=3, sampler=SubsetRandomSampler(range(7))),
    "own sampler": lambda: DataLoader(Noisy(11), sampler=Evens(11)),
    "own batches": lambda: DataLoader(
        Noisy(11), batch_sampler=BatchSampler(RandomSampler(range(11), generator=own()), 3, False)
    ),
    "ready batches": lambda: DataLoader(Noisy(5), batch_sampler=[[0, 1], [2], [3], [4]]),
    "no batching": lambda: DataLoader(Noisy(11), batch_size=None, shuffle=True),
    "no batching, lists": lambda: DataLoader(
        Numbers(11), batch_size=None, sampler=BatchSampler(RandomSampler(range(11)), 3, False)
    ),
    "stream": lambda: DataLoader(Stream(11), batch_size=2),
    "stream, no batching": lambda: DataLoader(Stream(11), batch_size=None),
    "shuffled stream": lambda: DataLoader(ShuffledStream(11), batch_size=2),
    "list": lambda: [[0, 1], [2, 3], [4]],
    "processes": lambda: DataLoader(Numbers(11), batch_size=2, shuffle=True, **TWO_PROCESSES),
    "kept processes": lambda: DataLoader(
        Numbers(11), batch_size=2, shuffle=True, persistent_workers=True, **TWO_PROCESSES
    ),
    "processes, no batching": lambda: DataLoader(Numbers(6), batch_size=None, shuffle=True, **TWO_PROCESSES),
    "stream, processes": lambda: DataLoader(Stream(6), batch_size=2, **TWO_PROCESSES),
}
NOISY_IN_PROCESSES: Make = lambda: DataLoader(Noisy(8), batch_size=2, shuffle=True, **TWO_PROCESSES)  # noqa: E731


def seed_all() -> None:
    rng.set_seed(1234)


def drawn() -> list[float]:
    """The next number of each of the process's generators: alike only if as much was drawn before."""
    return [random.random(), float(np.random.rand()), float(torch.rand(()))]


def seeded_reading(source: Any) -> tuple[list[list[Any]], list[float]]:
    """Two epochs of a plain loop, and what the generators give next."""
    seed_all()
    return [[plain(batch) for batch in source] for _ in range(2)], drawn()


@pytest.mark.parametrize("make", [*PLAIN.values(), NOISY_IN_PROCESSES], ids=[*PLAIN, "noisy processes"])
def test_one_rank_reads_as_a_plain_loop_does(make: Make) -> None:
    """Batches, and what is drawn from the process's generators, are those of ``for batch in loader``."""
    expected = seeded_reading(make())
    loader = RankLoader(make())
    seed_all()
    assert ([batches(loader, epoch=epoch) for epoch in range(2)], drawn()) == expected


def test_one_rank_gets_the_users_own_loader() -> None:
    """The user's object itself is read, so that a subclass's ``__iter__`` and kept processes stay its own."""
    iterated: list[str] = []

    class Watched(DataLoader[Any]):
        def __iter__(self) -> Any:
            iterated.append("yes")
            return super().__iter__()

    source = Watched(Numbers(4))
    before = dict(source.__dict__)
    batches(RankLoader(source))
    batches(RankLoader(source), skip=2)
    assert iterated == ["yes", "yes"]
    assert source.__dict__ == before


@pytest.mark.parametrize("make", PLAIN.values(), ids=PLAIN)
@pytest.mark.parametrize("skip", [1, 3])
def test_a_resumed_epoch_goes_on_with_the_same_batches(make: Make, skip: int) -> None:
    """With the generators set as at the epoch's start for skipping, and as at the break for the rest, this
    epoch and the next are as if reading had not been broken off, the numbers drawn included.
    """
    source = RankLoader(make())
    seed_all()
    batches(source)  # the first epoch is the one in which kept processes start
    epoch_rng, owned = rng.capture(), [item.get_state() for item in source.generators()]
    kept = source.kept
    iterator = source.iterate()
    for _ in range(skip):
        next(iterator)
    torch.rand(5)  # what training draws in between
    now = rng.capture()
    expected = [plain(batch) for batch in iterator], batches(source), drawn()

    again = RankLoader(make())
    again.kept = kept
    rng.restore(epoch_rng)
    for generator, state in zip(again.generators(), owned, strict=True):
        generator.set_state(state)
    rest = again.iterate(skip)
    rng.restore(now)
    assert ([plain(batch) for batch in rest], batches(again), drawn()) == expected


def test_the_first_epoch_can_be_resumed_with_kept_processes() -> None:
    """Processes that started in the epoch that is resumed are not started anew, in effect, in the next."""
    (make,) = [PLAIN["kept processes"]]
    source, again = RankLoader(make()), RankLoader(make())
    seed_all()
    expected = [batches(source)[2:], batches(source), drawn()]
    seed_all()
    assert not again.kept
    assert [batches(again, skip=2), batches(again), drawn()] == expected
    assert again.kept


def test_a_map_style_data_set_is_not_asked_for_what_is_skipped() -> None:
    """Resuming costs no loading: only the rest of the epoch is fetched."""
    options: list[dict[str, Any]] = [
        {"batch_size": 2},
        {"batch_size": 2, "sampler": range(9)},
        {"batch_size": None},
    ]
    for option in options:
        data = Asked(9)
        rest = batches(RankLoader(DataLoader(data, **option)), skip=3)
        assert (rest, data.asked) == (
            ([[6, 7], [8]], [6, 7, 8]) if option["batch_size"] else ([3, 4, 5, 6, 7, 8], [3, 4, 5, 6, 7, 8])
        )


def test_random_numbers_of_loader_processes_start_again_after_skipping() -> None:
    """The rest of an epoch has the same samples; worker processes draw from their seeds anew."""
    loader = RankLoader(NOISY_IN_PROCESSES())
    seed_all()
    whole = batches(loader)
    seed_all()
    rest = batches(loader, skip=2)
    assert [[row[0] for row in batch] for batch in rest] == [[row[0] for row in batch] for batch in whole[2:]]
    assert [[row[1:] for row in batch] for batch in rest] == [
        [row[1:] for row in batch] for batch in whole[:2]
    ]


@pytest.mark.parametrize("make", PLAIN.values(), ids=PLAIN)
def test_skipping_everything_leaves_nothing(make: Make) -> None:
    """Skipping as many batches as there are, or more, gives an empty rest."""
    loader = RankLoader(make())
    assert list(loader.iterate(1000)) == []


def test_resuming_does_not_change_how_processes_are_started() -> None:
    """A loader that works in one process because it forks (a lambda to collate, say) also resumes there."""
    source = DataLoader(Numbers(6), batch_size=2, num_workers=1, collate_fn=lambda ids: [*ids])
    assert batches(RankLoader(source), skip=1) == [[2, 3], [4, 5]]


@pytest.mark.parametrize(
    ("make", "number"),
    [
        (PLAIN["shuffled"], 0),
        (PLAIN["own generator"], 1),
        (PLAIN["sampler's own generator"], 1),
        (PLAIN["own batches"], 1),
        (PLAIN["list"], 0),
    ],
)
def test_the_users_generators_are_named(make: Make, number: int) -> None:
    """The generators whose state a checkpoint needs are found wherever reading draws from them, each once."""
    assert len(RankLoader(make()).generators()) == number
