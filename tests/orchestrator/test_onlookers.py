"""Whoever looks on while batches are taken sees each, costs nothing when gone, and leaves in any order."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.onlookers import Advancing, Onlooker


class Numbers(Advancing):
    """Counts down."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self.left = left

    def advance(self) -> bool:
        self.left -= 1
        return self.left >= 0


def noting(seen: list[str], name: str) -> Onlooker:
    """One that notes who took a batch, and whether there was one."""

    def look(advance: Callable[[], bool]) -> bool:
        more = advance()
        seen.append(f"{name}{'' if more else ' end'}")
        return more

    return look


def test_nobody_stands_in_between_where_nobody_looks_on() -> None:
    """Before the first comes and after the last has left, `advance` is the class's own method."""
    numbers = Numbers(3)
    leave = numbers.look_on(lambda advance: advance())
    assert "advance" in numbers.__dict__
    assert numbers.advance()
    leave()
    assert "advance" not in numbers.__dict__
    assert [numbers.advance() for _ in range(3)] == [True, True, False]


@given(st.permutations([0, 1, 2]))
def test_those_that_look_on_leave_in_any_order(order: list[int]) -> None:
    """Who came first is nearest to the batch, and whoever stays still sees each."""
    numbers, seen = Numbers(3), list[str]()
    leaving = [numbers.look_on(noting(seen, str(index))) for index in range(3)]
    there = [0, 1, 2]
    for index in order:
        seen.clear()
        numbers.advance()
        assert seen == [str(item) for item in there]
        leaving[index]()
        there.remove(index)
    assert not numbers.advance()
    assert "advance" not in numbers.__dict__


def test_one_may_leave_while_it_looks() -> None:
    """As the account of time does at the end of its window."""
    numbers, seen = Numbers(2), list[str]()

    def once(advance: Callable[[], bool]) -> bool:
        leave()
        seen.append("once")
        return advance()

    numbers.look_on(noting(seen, "stays"))
    leave = numbers.look_on(once)
    assert numbers.advance() and numbers.advance() and not numbers.advance()
    assert seen == ["once", "stays", "stays", "stays end"]


def test_the_base_takes_nothing() -> None:
    """What is advanced says how."""
    with pytest.raises(NotImplementedError):
        Advancing().advance()
