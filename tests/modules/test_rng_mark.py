"""Marks of the random states: exact, and cheap where nothing was drawn."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from modules.rng_mark import RngMarker, put


def draw() -> list[Any]:
    return [
        random.random(),
        random.gauss(0, 1),
        float(np.random.rand()),
        float(np.random.randn()),
        float(torch.rand(())),
    ]


@pytest.mark.parametrize(
    "before",
    [
        lambda: None,
        lambda: random.gauss(0, 1),
        lambda: np.random.randn(),
        lambda: (np.random.randn(), np.random.randn()),
        lambda: [random.random() for _ in range(312)],
        lambda: np.random.seed(3),
        lambda: random.seed(3),
    ],
)
def test_what_is_drawn_after_a_mark_is_drawn_again(before: Callable[[], Any]) -> None:
    """Putting a mark back, also one that has travelled, brings the same numbers, whatever was drawn before
    and between marks.
    """
    marker = RngMarker()
    marker.take()
    for _ in range(3):
        before()
        mark = pickle.loads(pickle.dumps(marker.take()))
        drawn = draw()
        put(mark)
        assert draw() == drawn


def test_parts_that_did_not_change_are_the_same_objects() -> None:
    """A step that draws from torch alone copies nothing else."""
    marker = RngMarker()
    first = marker.take()
    torch.rand(3)
    second = marker.take()
    assert second.python is first.python
    assert second.numpy is first.numpy
    assert second.torch != first.torch


def test_a_normal_number_that_numpy_holds_back_counts() -> None:
    """Giving out the second of two normal numbers drawn together is a change."""
    marker = RngMarker()
    np.random.seed(0)
    np.random.randn()
    first = marker.take()
    held_back = np.random.randn()
    second = marker.take()
    put(first)
    assert np.random.randn() == held_back
    put(second)
    assert np.random.randn() != held_back
