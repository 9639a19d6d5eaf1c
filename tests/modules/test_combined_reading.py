"""Several loaders as the ranks of a group read them, and as a run goes on in the middle of an epoch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler

from modules import rng
from modules.combined import CombinedLoader
from modules.combined_reading import CombinedRankLoader
from modules.loader import RankLoader
from tests.modules.datasets import Noisy, Numbers, Stream

MODES = ["min_size", "max_size_cycle", "max_size"]


def view(source: CombinedLoader, rank: int = 0, world_size: int = 1, **options: Any) -> CombinedRankLoader:
    """One rank's view of a copy of `source`."""
    source = copy.deepcopy(source)
    members = [RankLoader(item, rank=rank, world_size=world_size, **options) for item in source.flattened]
    return CombinedRankLoader(source, members, world_size)


def sizes(batch: Any) -> int:
    """Samples of all members in a batch."""
    return sum(0 if part is None else len(part) for part in batch)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(4, 23), min_size=1, max_size=3),
    batch_size=st.integers(1, 5),
    world_size=st.integers(1, 4),
    mode=st.sampled_from(MODES),
    drop_last=st.booleans(),
)
def test_all_ranks_know_what_each_reads(
    lengths: list[int], batch_size: int, world_size: int, mode: str, drop_last: bool
) -> None:
    """The plan that every rank computes is what the ranks read, batch by batch."""
    batch_sizes = [max(1, batch_size - index) for index in range(len(lengths))]
    if drop_last and any(n // world_size < b for n, b in zip(lengths, batch_sizes, strict=True)):
        return
    source = CombinedLoader(
        [
            DataLoader(Numbers(length), batch_size=size, drop_last=drop_last)
            for length, size in zip(lengths, batch_sizes, strict=True)
        ],
        mode,
    )
    views = [view(source, rank, world_size) for rank in range(world_size)]
    read = [[sizes(batch) for batch in reader.iterate()] for reader in views]
    plan = views[0].plan
    assert plan is not None
    assert views[0].exact
    assert plan.num_batches == views[0].num_batches == max(map(len, read))
    rows = [
        [batches[index] if index < len(batches) else 0 for batches in read]
        for index in range(plan.num_batches)
    ]
    assert [list(plan.sizes(index)) for index in range(plan.num_batches)] == rows
    assert plan.samples_before(plan.num_batches) == sum(map(sum, rows))
    assert plan.batches_before(plan.num_batches) == sum(map(len, read))
    assert all(len(set(row)) == 1 for row in rows[: plan.first_uneven])


@pytest.mark.parametrize("mode", MODES)
def test_the_longest_is_read_exactly_once(mode: str) -> None:
    """Over all ranks each sample of the longest loader comes once, or fewer where the shortest ends it."""
    source = CombinedLoader({"short": DataLoader(Numbers(4)), "long": DataLoader(Numbers(7))}, mode)
    seen = [int(batch["long"]) for rank in range(2) for batch in view(source, rank, 2).iterate()]
    assert sorted(seen) == list(range(4 if mode == "min_size" else 7))


def test_a_rank_without_a_part_is_refused() -> None:
    """A loader of which some rank gets no batch cannot be combined, and is named with the ranks."""
    source = CombinedLoader({"a": DataLoader(Numbers(1)), "b": DataLoader(Numbers(7))})
    with pytest.raises(ValueError, match=r"at \['a'\] has no batch for ranks \[1\] of 2.*fewer ranks"):
        view(source, 0, 2)


def test_what_ranks_cannot_know_is_not_planned() -> None:
    """A stream among the loaders leaves the length open; torch's own sampler is trusted only throughout."""
    numbers, stream = DataLoader(Numbers(7)), DataLoader(Stream(7))
    open_ended = view(CombinedLoader([numbers, stream]), 0, 2)
    assert (open_ended.plan, open_ended.num_batches, open_ended.exact) == (None, None, False)
    own = DataLoader(Numbers(8), sampler=DistributedSampler(Numbers(8), 2, 0))
    assert view(CombinedLoader([own, own]), 0, 2).exact
    assert not view(CombinedLoader([own, numbers]), 0, 2).exact


def test_members_are_told_the_epoch_and_identify_the_data() -> None:
    """set_epoch reaches every member's sampler; the fingerprint names mode and members."""
    source = CombinedLoader([DataLoader(Numbers(6), shuffle=True), DataLoader(Numbers(4))])
    reader = view(source, 0, 2)
    orders = []
    for epoch in (0, 1, 0):
        reader.start_epoch(epoch)
        orders.append([int(batch[0]) for batch in reader.iterate()])
    assert orders[0] == orders[2] != orders[1]
    assert reader.fingerprint == "min_size(Numbers[6], Numbers[4])"
    assert view(CombinedLoader([range(3), DataLoader(Numbers(4))])).fingerprint == ""


def shared_generator() -> list[Any]:
    """Two shuffled loaders that draw from one generator of their own."""
    own = torch.Generator().manual_seed(1)
    return [DataLoader(Noisy(length), batch_size=2, shuffle=True, generator=own) for length in (6, 13)]


SOURCES: dict[str, Callable[[], Any]] = {
    "shuffled": lambda: [DataLoader(Noisy(n), batch_size=2, shuffle=True) for n in (6, 13)],
    "nested": lambda: {
        "x": [DataLoader(Noisy(5), shuffle=True)],
        "y": DataLoader(Noisy(3), sampler=RandomSampler(Numbers(3), replacement=True, num_samples=8)),
    },
    "shared generator": shared_generator,
    "stream": lambda: [DataLoader(Stream(5), batch_size=2), DataLoader(Noisy(3), shuffle=True)],
    "counting": lambda: [Counting(3), DataLoader(Noisy(8), batch_size=2, shuffle=True)],
}


class Counting:
    """A loader that says where it stands; a state that is not given back shows in its batches."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.place = 0
        self.taken = 0

    def __iter__(self) -> Iterator[Any]:
        while self.place < self.length:
            self.place += 1
            self.taken += 1
            yield torch.tensor([self.place, self.taken])
        self.place = 0

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place, "taken": self.taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.place, self.taken = state["place"], state["taken"]


def step(reader: Iterator[Any]) -> Any:
    """The next batch and what a module would draw from the generators with it, or None at the end."""
    batch = next(reader, None)
    return None if batch is None else (repr(batch), float(torch.rand(())))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("world_size", [1, 2])
def test_going_on_anywhere_is_exact(mode: str, name: str, world_size: int) -> None:
    """From any batch of the epoch a new loader yields what the first would have, noise included."""
    source = CombinedLoader(SOURCES[name](), mode)
    rng.set_seed(7)
    whole = view(source, 0, world_size)
    whole.start_epoch(0)
    before = rng.capture()
    reader = whole.iterate()
    places = [(rng.capture(), whole.own_state())]
    steps = []
    while (found := step(reader)) is not None:
        steps.append(found)
        places.append((rng.capture(), whole.own_state()))
    assert len(steps) >= 2
    for used in range(1, len(steps)):
        rng.restore(before)
        again = view(source, 0, world_size)
        again.start_epoch(0)
        state, own = places[used]
        rest = again.iterate(used, own)
        rng.restore(state)
        assert [step(rest) for _ in steps[used:]] == steps[used:]


def test_between_epochs_a_stateful_member_goes_on() -> None:
    """What a stateful loader says at an epoch's end reaches the loader of the run that goes on."""
    source = CombinedLoader([Counting(2), Counting(3)])
    reader = view(source)
    list(reader.iterate())
    reader.close()
    own = reader.own_state()
    again = view(source)
    again.take_state(own)
    assert [repr(batch) for batch in again.iterate()] == [repr(batch) for batch in reader.iterate()]


def test_another_number_of_loaders_cannot_go_on() -> None:
    """What one loader or another number of them kept is refused rather than guessed at."""
    two, three = CombinedLoader([Counting(2)] * 2), CombinedLoader([Counting(2)] * 3)
    reader = view(two)
    next(reader.iterate())
    for own, found in ((reader.own_state(), 2), ({"state": {}}, "one")):
        with pytest.raises(ValueError, match=f"after 1 batches of {found} loaders, and 3 were given"):
            view(three).iterate(1, own)


def test_a_loader_that_became_plain_is_read_up() -> None:
    """The state of a loader that kept one does not make a plain one skip less, nor the other way round."""
    state = {"state": {"place": 2, "taken": 2}}
    assert list(RankLoader([[0], [1], [2]]).iterate(2, state)) == [[2]]
    assert [batch.tolist() for batch in RankLoader(Counting(3)).iterate(2, {})] == [[3, 3]]
    assert [batch.tolist() for batch in RankLoader(Counting(3)).iterate(2, state)] == [[3, 3]]
