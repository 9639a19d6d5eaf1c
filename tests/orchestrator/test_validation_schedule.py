"""After which batches of an epoch validation runs: pure decisions."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import MisconfigurationError
from orchestrator.validation_schedule import (
    AT_EPOCH_END,
    NEVER,
    batches_between,
    batches_carried,
    is_due,
    next_validation,
    validates_in,
)


@pytest.mark.parametrize(
    ("interval", "epochs", "carried", "expected"),
    [
        (1.0, 1, 0, [10]),
        (0.5, 1, 0, [5, 10]),
        (0.25, 1, 0, [2, 4, 6, 8, 10]),
        (0.01, 1, 0, list(range(1, 11))),
        (3, 1, 0, [3, 6, 9]),
        (1, 1, 0, list(range(1, 11))),
        (4, None, 0, [4, 8]),
        (4, None, 10, [2, 6, 10]),
        (25, None, 10, []),
        (25, None, 20, [5]),
    ],
)
def test_when_validation_follows_a_batch(
    interval: Any, epochs: int | None, carried: int, expected: list[int]
) -> None:
    """In an epoch of ten batches validation follows those that the trainer's interval says, counted over
    epochs where it is not tied to them."""
    every = batches_between(
        val_check_interval=interval, check_val_every_n_epoch=epochs, batches_in_epoch=10, validates=True
    )
    found = [
        batches
        for batches in range(1, 11)
        if is_due(every=every, batches=batches, carried=carried, is_last=batches == 10)
    ]
    assert found == expected


@given(every=st.integers(1, 20), batches=st.integers(0, 50), carried=st.integers(0, 50))
def test_the_next_validation_is_the_first_that_is_due(every: int, batches: int, carried: int) -> None:
    """After any batch the next validation follows the first whose number, with those carried over, is a
    multiple."""
    found = next_validation(every=every, batches=batches, carried=carried)
    numbers = range(batches + 1, batches + every + 1)
    assert found == next(number for number in numbers if (carried + number) % every == 0)
    due = [
        number for number in numbers if is_due(every=every, batches=number, carried=carried, is_last=False)
    ]
    assert due == [found]


@pytest.mark.parametrize("every", [NEVER, AT_EPOCH_END])
def test_no_batch_is_next_where_none_is_counted(every: int) -> None:
    """Without validation, and with one at the epoch's end alone, no number of batches comes up; the last
    batch decides."""
    assert next_validation(every=every, batches=3, carried=7) == 0
    assert not is_due(every=every, batches=4, carried=0, is_last=False)
    assert is_due(every=every, batches=4, carried=0, is_last=True) is (every == AT_EPOCH_END)


@pytest.mark.parametrize(
    ("epochs", "expected"), [(None, [0, 1, 2, 3]), (1, [0, 1, 2, 3]), (2, [1, 3]), (4, [3])]
)
def test_epochs_with_validation(epochs: int | None, expected: list[int]) -> None:
    """Every n-th epoch, from the n-th on; all where batches are counted over epochs."""
    assert [epoch for epoch in range(4) if validates_in(epoch, epochs)] == expected


def test_batches_of_earlier_epochs_count_without_epochs() -> None:
    """Only where validation is not tied to epochs does the count go on from one to the next."""
    assert [batches_carried(7, epochs) for epochs in (None, 1, 2)] == [7, 0, 0]


def test_without_validation_batches_there_is_never_one() -> None:
    """Whatever the interval, nothing to validate on means never."""
    arguments: dict[str, Any] = {"check_val_every_n_epoch": 1, "batches_in_epoch": 4}
    found = [
        batches_between(val_check_interval=interval, validates=False, **arguments) for interval in (1.0, 9)
    ]
    assert found == [NEVER, NEVER]


@pytest.mark.parametrize("unknown", [None, float("inf")])
def test_an_unknown_length_allows_no_share(unknown: float | None) -> None:
    """Of an epoch of unknown length only the end and numbers of batches can be had."""
    arguments: dict[str, Any] = {
        "check_val_every_n_epoch": 1,
        "batches_in_epoch": unknown,
        "validates": True,
    }
    assert batches_between(val_check_interval=1.0, **arguments) == AT_EPOCH_END
    assert batches_between(val_check_interval=30, **arguments) == 30
    with pytest.raises(MisconfigurationError, match=r"val_check_interval=0\.5\) needs a loader with a"):
        batches_between(val_check_interval=0.5, **arguments)


def test_an_interval_longer_than_the_epoch() -> None:
    """It is refused where counting begins anew each epoch, and allowed where it goes on over epochs."""
    arguments: dict[str, Any] = {"val_check_interval": 11, "batches_in_epoch": 10, "validates": True}
    with pytest.raises(MisconfigurationError, match=r"val_check_interval=11\) is more than the 10"):
        batches_between(check_val_every_n_epoch=1, **arguments)
    assert batches_between(check_val_every_n_epoch=None, **arguments) == 11
