"""A search space is understood and checked before anything starts."""

from __future__ import annotations

from typing import Any

import pytest
from ray import tune

from orchestrator.errors import MisconfigurationError
from orchestrator.sweep.space import (
    check_space,
    describe_space,
    grid_size,
    searched_names,
    value_at,
)


class Foreign:
    """Like a distribution of SciPy."""

    def rvs(self) -> float:
        return 0.5


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ([1], r"space=\[1\]"),
        ({1: 2}, "is not a search space"),
        ({"a": tune.grid_search([])}, "'a' is a grid of no values"),
        ({"a": {"b": tune.choice([])}}, "'a/b' is a choice among no values"),
        ({"a": Foreign()}, "'a' is a .* distribution"),
    ],
)
def test_what_is_no_space_is_refused(space: Any, words: str) -> None:
    """The message names the key at fault."""
    with pytest.raises(MisconfigurationError, match=words):
        check_space(space)


def test_parts_that_differ_between_trials_are_found() -> None:
    """Distributions and grids are searched, plain values are not; all are shown where none is searched."""
    space = {"lr": tune.loguniform(1e-4, 1), "net": {"width": tune.grid_search([1, 2]), "depth": 3}}
    assert searched_names(space) == ["lr", "net/width"]
    assert searched_names({"a": 1}) == ["a"]
    assert grid_size(space) == 2
    assert value_at({"net": {"width": 2}}, "net/width") == 2
    assert value_at({"net": {"width": 2}}, "net/height") is None


def test_equal_spaces_are_described_alike() -> None:
    """The description holds what is drawn from, and nothing of this process."""

    def space(high: float) -> dict[str, Any]:
        return {"lr": tune.qloguniform(1e-4, high, 1e-4), "kind": tune.choice(["a", "b"]), "cls": Foreign}

    assert describe_space(space(1.0)) == describe_space(space(1.0))
    assert describe_space(space(1.0)) != describe_space(space(2.0))
    assert "0x" not in str(describe_space(space(1.0)))
