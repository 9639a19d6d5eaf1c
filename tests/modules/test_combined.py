"""Several loaders read as one: what each mode yields, how long it is, and what is refused."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from modules.combined import CombinedLoader, combined_length, flatten, holds_loaders, unflatten
from tests.modules.datasets import Numbers, Stream
from tests.modules.reading import plain

Pair = namedtuple("Pair", ["left", "right"])


def two() -> dict[str, Any]:
    """A loader of two batches and one of three."""
    return {"a": range(1, 3), "b": "xyz"}


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("min_size", [({"a": 1, "b": "x"}, 0, 0), ({"a": 2, "b": "y"}, 1, 0)]),
        (
            "max_size_cycle",
            [({"a": 1, "b": "x"}, 0, 0), ({"a": 2, "b": "y"}, 1, 0), ({"a": 1, "b": "z"}, 2, 0)],
        ),
        (
            "max_size",
            [({"a": 1, "b": "x"}, 0, 0), ({"a": 2, "b": "y"}, 1, 0), ({"a": None, "b": "z"}, 2, 0)],
        ),
        ("sequential", [(1, 0, 0), (2, 1, 0), ("x", 0, 1), ("y", 1, 1), ("z", 2, 1)]),
    ],
)
def test_each_mode_yields_its_batches(mode: str, expected: list[Any]) -> None:
    """Batch, index and loader come as documented, as often as `len` says, also a second time."""
    loader = CombinedLoader(two(), mode)
    assert len(loader) == len(expected)
    assert list(loader) == expected
    assert list(loader) == expected


def test_a_batch_is_nested_as_the_loaders_are() -> None:
    """Dictionaries, lists, tuples and named tuples come back as themselves; a lone loader's batch is bare."""
    tree = {"x": [range(2), Pair(range(2), (range(2),))], "y": range(2)}
    first, _, _ = next(iter(CombinedLoader(tree)))
    assert first == {"x": [0, Pair(0, (0,))], "y": 0}
    assert isinstance(first["x"][1], Pair)
    assert next(iter(CombinedLoader(range(2)))) == (0, 0, 0)
    assert flatten(tree) == [range(2)] * 4
    assert unflatten(tree, [1, 2, 3, 4]) == {"x": [1, Pair(2, (3,))], "y": 4}


def test_a_length_that_nobody_knows_is_a_type_error() -> None:
    """`len` of loaders without one fails as Python's own does, and reading works."""
    loader = CombinedLoader([DataLoader(Stream(3), batch_size=2), DataLoader(Numbers(2))], "max_size")
    with pytest.raises(TypeError):
        len(loader)
    assert [[plain(item) for item in batch] for batch, _, _ in loader] == [[[0, 1], [0]], [[2], [1]]]
    assert combined_length([2, None], "max_size") is None


def test_the_order_of_draws_is_that_of_the_loaders() -> None:
    """A shuffled member that begins again is shuffled again."""
    torch.manual_seed(0)
    short = DataLoader(Numbers(5), batch_size=5, shuffle=True)
    passes = [
        plain(batch["a"]) for batch, _, _ in CombinedLoader({"a": short, "b": range(3)}, "max_size_cycle")
    ]
    assert [sorted(item) for item in passes] == [list(range(5))] * 3
    assert passes[0] != passes[1]


def test_what_cannot_be_combined_is_refused() -> None:
    """An unknown mode, a member that cannot be iterated, and one that cannot begin again are named."""
    with pytest.raises(ValueError, match=r"mode='max'\) is unknown. Use one of min_size, max_size_c"):
        CombinedLoader([], "max")
    with pytest.raises(TypeError, match=r"has a int at \['b'\]\[1\], which cannot be iterated"):
        CombinedLoader({"a": [], "b": [range(2), 3]})
    once: Iterator[int] = iter([1])
    with pytest.raises(ValueError, match=r"loader at \['a'\] ended before the longest.*min_size"):
        list(CombinedLoader({"a": once, "b": range(3)}, "max_size_cycle"))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (DataLoader(Numbers(2)), False),
        ([torch.zeros(2), torch.zeros(2)], False),
        ([(torch.zeros(2), 1), (np.zeros(2), "a")], False),
        ([], False),
        ([DataLoader(Numbers(2))], True),
        (({"x": range(3)}, [range(2)]), True),
        ({"x": torch.zeros(2)}, True),
    ],
)
def test_a_list_of_batches_is_one_loader(source: Any, expected: bool) -> None:
    """Only a dictionary, or a list with something in it that yields batches, holds loaders."""
    assert holds_loaders(source) is expected
