"""Mixtures: exact shares, each source's samples once before any comes again, the same on all ranks."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.arrow_dataset import ArrowDataset
from modules.data_error import DataError
from modules.loader import RankLoader
from modules.mixture import CYCLE, Mixture


def numbers(start: int, rows: int) -> ArrowDataset:
    """The numbers from `start`."""
    return ArrowDataset(pa.table({"id": list(range(start, start + rows)), "name": [str(start)] * rows}))


def epoch(mixture: Mixture, rank: int, ranks: int, number: int, skip: int = 0) -> list[list[int]]:
    """The ids of the batches of one rank."""
    view = RankLoader(mixture.loader(7), rank=rank, world_size=ranks, seed=5)
    view.start_epoch(number)
    return [batch["id"].tolist() for batch in view.iterate(skip)]


def test_shares_are_exact() -> None:
    """In each 4096 samples the sources have their shares, and batches say where samples come from."""
    mixture = Mixture([numbers(0, 5000), numbers(10_000, 50)], [3, 1], rows=2 * CYCLE)
    found: Counter[int] = Counter()
    for batch in mixture.loader(CYCLE, seed=1):
        assert Counter(batch["source"].tolist()) == {0: 3 * CYCLE // 4, 1: CYCLE // 4}
        assert ((batch["id"] >= 10_000).long() == batch["source"]).all()
        assert [name == "10000" for name in batch["name"]] == (batch["source"] == 1).tolist()
        found.update(batch["id"].tolist())
    small = [found[number] for number in range(10_000, 10_050)]
    assert max(small) - min(small) <= 1
    assert len(found) == 5050


def test_epochs_go_on() -> None:
    """Over epochs, each source has all of its samples once before any comes again."""
    mixture = Mixture([numbers(0, 40), numbers(100, 400)])
    assert len(mixture) == 80
    counts: Counter[int] = Counter()
    for number in range(10):
        for batch in epoch(mixture, 0, 1, number):
            counts.update(batch)
        for source in (range(40), range(100, 500)):
            times = [counts[item] for item in source]
            assert max(times) - min(times) <= 1


@settings(max_examples=30)
@given(ranks=st.integers(1, 4), number=st.integers(0, 3), skip=st.integers(0, 12))
def test_ranks_share_and_resume_a_mixture(ranks: int, number: int, skip: int) -> None:
    """Ranks take one sequence, and going on gives what would have come."""
    mixture = Mixture([numbers(0, 60), numbers(100, 30)], [2, 1])
    shares = [epoch(mixture, rank, ranks, number) for rank in range(ranks)]
    alone = list(itertools.chain.from_iterable(epoch(mixture, 0, 1, number)))
    rows = itertools.zip_longest(*(itertools.chain.from_iterable(share) for share in shares))
    assert [item for row in rows for item in row if item is not None] == alone
    for rank, share in enumerate(shares):
        assert epoch(mixture, rank, ranks, number, min(skip, len(share))) == share[skip:]


def test_state_of_a_mixture() -> None:
    """Its loader's state is JSON, and overfitting repeats the first epoch."""
    mixture = Mixture([numbers(0, 6), numbers(100, 6)])
    loader = mixture.loader(4, seed=1)
    expected = [batch["id"].tolist() for _ in range(2) for batch in loader]
    piece = mixture.loader(4, seed=1)
    list(itertools.islice(piece, 2))
    other = mixture.loader(4, seed=1)
    other.load_state_dict(json.loads(json.dumps(piece.state_dict())))
    assert [batch["id"].tolist() for _ in range(2) for batch in other] == expected[2:]
    frozen = mixture.loader(4, seed=1).in_order()
    assert [[batch["id"].tolist() for batch in frozen] for _ in range(2)] == [expected[:3]] * 2


@pytest.mark.parametrize(
    ("sources", "weights", "message"),
    [
        ([], None, "0 sources"),
        ([numbers(0, 3)], [1, 2], "1 sources"),
        ([numbers(0, 3)], [-1], "at least 0"),
        ([numbers(0, 3)], [0], "not all 0"),
        ([numbers(0, 3)] * 2, [1, 1e-9], "less than 1 of 4096"),
        ([[1, 2]], None, "source 0 is a list"),
        ([numbers(0, 3), ArrowDataset(pa.table({"id": [1.5]}))], None, "source 1 has"),
    ],
)
def test_bad_mixtures(sources: Any, weights: Any, message: str) -> None:
    """Weights that are none, and sources that do not fit together, are refused."""
    with pytest.raises(DataError, match=message):
        Mixture(sources, weights)
    with pytest.raises(DataError, match="rows=0"):
        Mixture([numbers(0, 3)], rows=0)
