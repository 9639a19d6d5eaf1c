"""Slow processes are relieved where that gains, and only there."""

from __future__ import annotations

import pytest

from orchestrator.relief import STEPS, relieved_shares


def test_a_throttled_process_is_relieved() -> None:
    """One of three at a third of the speed gets what the best integer layout gives it."""
    assert relieved_shares([[1.0, 1.0, 3.0]] * STEPS, [8, 8, 8]) == [11, 10, 3]


@pytest.mark.parametrize(
    ("times", "shares"),
    [
        ([[1.0, 3.0]] * (STEPS - 1), [4, 4]),
        ([[1.0, 1.1]] * STEPS, [8, 8]),
        ([[0.001, 0.003]] * STEPS, [8, 8]),
        ([[1.0, 9.0], *[[1.0, 1.0]] * (STEPS - 1)], [8, 8]),
        ([[1.0]] * STEPS, [8]),
        ([[0.0, 1.0]] * STEPS, [1, 1]),
    ],
    ids=["few steps", "nearly even", "short steps", "one slow step", "alone", "no time"],
)
def test_otherwise_nothing_moves(times: list[list[float]], shares: list[int]) -> None:
    """Few steps, little to gain, steps shorter than moving, one slow step: all stay where they are."""
    assert relieved_shares(times, shares) is None


def test_relief_settles() -> None:
    """Once logical ranks have moved to where speeds want them, they stay."""
    speeds = [8.0, 8.0, 3.0]
    shares = relieved_shares([[8 / speed for speed in speeds]] * STEPS, [8, 8, 8])
    assert shares is not None
    then = [share / speed for share, speed in zip(shares, speeds, strict=True)]
    assert relieved_shares([then] * STEPS, shares) is None
