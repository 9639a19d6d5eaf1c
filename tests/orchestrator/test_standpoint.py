"""Where ranks go back to after a loss: the last place that all have passed, whoever is ahead."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.standpoint import Standpoint, go_back_to


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([(4, 0), (4, 0), None], (4, 0)),
        ([(4, 0), (5, 0), None], (4, 0)),
        ([(4, 1), (4, 2), None], (4, 2)),
        ([(4, 2), (5, 0), None], (4, 2)),
        ([None, None], None),
    ],
)
def test_the_last_common_place(found: list[tuple[int, int] | None], expected: tuple[int, int] | None) -> None:
    """A rank that has committed alone goes back; a meeting that one has passed is passed by all."""
    points = [None if item is None else Standpoint(*item) for item in found]
    assert go_back_to(points) == (None if expected is None else Standpoint(*expected))


@given(st.integers(0, 9), st.integers(0, 3), st.lists(st.sampled_from(["here", "ahead", "lost"]), min_size=1))
def test_nobody_is_asked_to_go_forward_over_a_commit(windows: int, meetings: int, ranks: list[str]) -> None:
    """Whatever of the ranks is lost or one commit ahead, the place is one that those behind stand at."""
    here, ahead = Standpoint(windows, meetings), Standpoint(windows + 1, 0)
    target = go_back_to([{"here": here, "ahead": ahead, "lost": None}[rank] for rank in ranks])
    if "here" in ranks:
        assert target == here
    else:
        assert target == (ahead if "ahead" in ranks else None)
