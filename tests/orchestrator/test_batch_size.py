"""How many samples a batch has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from orchestrator.batch_size import batch_size_of, find_batch_size, sizes_in


@dataclass
class Pair:
    """A batch of a user's own."""

    left: Any
    right: Any


@pytest.mark.parametrize(
    ("batch", "size"),
    [
        (torch.zeros(3, 2), 3),
        (torch.zeros(()), 1),
        (torch.zeros(0, 2), 0),
        ([torch.zeros(5), torch.zeros(7)], 5),
        ({"x": {"y": (torch.zeros(6, 1),)}, "z": torch.zeros(2)}, 6),
        ([1, None, {"a": torch.zeros(4)}], 4),
        (Pair(None, torch.zeros(8)), 8),
        ("abc", 3),
    ],
)
def test_the_batch_size_is_that_of_the_first_tensor(batch: Any, size: int) -> None:
    """Weights come from the first tensor that is found in a batch, depth first."""
    assert find_batch_size(batch) == batch_size_of(batch) == size


@pytest.mark.parametrize("batch", [[], None, 12, [1, (None,)], Pair])
def test_without_a_tensor_there_is_no_size(batch: Any) -> None:
    """A batch without a tensor has no size that is known; counted it is one sample."""
    assert find_batch_size(batch) is None
    assert batch_size_of(batch) == 1


def test_all_sizes_are_found_in_order() -> None:
    """The different sizes in a batch come in the order of their tensors, each once."""
    assert sizes_in([torch.zeros(4), {"a": torch.zeros(2, 4)}, torch.zeros(4), torch.zeros(())]) == [4, 2, 1]
