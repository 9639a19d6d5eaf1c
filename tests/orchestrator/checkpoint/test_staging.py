"""The copy of a checkpoint's state: equal, apart from what training does next, in memory that is kept."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import nn

from orchestrator.checkpoint import staging
from orchestrator.checkpoint.staging import Staging, fits, size_of


def content() -> dict[str, Any]:
    """State of all kinds."""
    layer = nn.Linear(3, 2)
    return {
        "state_dict": layer.state_dict(),
        "tied": [layer.weight.detach(), layer.weight.detach()[1:]],
        "sparse": torch.eye(3).to_sparse(),
        "half": torch.ones(3, dtype=torch.float16),
        "none": torch.empty(0),
        "plain": ("a", 1, None, {"b": 2.5}),
        "device": torch.device("cpu"),
    }


def test_the_copy_is_equal_and_apart() -> None:
    """What is changed afterwards is as it was in the copy, containers included."""
    before = content()
    before["list"] = seen = [1]
    copied = Staging().copy(before)
    assert copied is not None
    weight = before["state_dict"]["weight"].clone()
    before["state_dict"]["weight"].add_(1)
    seen.append(2)
    assert torch.equal(copied["state_dict"]["weight"], weight)
    assert copied["list"] == [1]
    assert copied["plain"] == before["plain"]
    assert torch.equal(copied["sparse"].to_dense(), torch.eye(3))
    assert copied["half"].dtype == torch.float16


def test_shared_memory_stays_shared() -> None:
    """A weight with two names is copied once, and a part of it stays a part."""
    before = content()
    copied = Staging().copy(before)
    assert copied is not None
    weight = copied["state_dict"]["weight"]
    assert copied["tied"][0].data_ptr() == weight.data_ptr()
    assert torch.equal(copied["tied"][1], weight[1:])
    assert isinstance(copied["state_dict"], OrderedDict)
    assert copied["state_dict"]._metadata == before["state_dict"]._metadata


def test_memory_is_kept_for_the_next_copy() -> None:
    """The second copy of the same state reserves nothing; another state takes what it needs."""
    kept = Staging()
    first = kept.copy({"a": torch.ones(5), "b": torch.ones(7)})
    assert first is not None
    places = [item.data_ptr() for item in first.values()]
    second = kept.copy({"a": torch.zeros(5), "b": torch.zeros(7)})
    assert second is not None
    assert [item.data_ptr() for item in second.values()] == places
    assert torch.equal(second["a"], torch.zeros(5))
    assert kept.kept_bytes == 48
    kept.copy({"a": torch.ones(2)})
    assert kept.kept_bytes == 8


def test_without_memory_there_is_no_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the machine has not enough left, nothing is reserved."""
    monkeypatch.setattr(staging, "_available_bytes", lambda: 100)
    kept = Staging()
    assert kept.copy({"a": torch.ones(100)}) is None
    assert kept.kept_bytes == 0
    assert fits(80, 0, 100) and not fits(81, 0, 100) and fits(500, 450, 100)


def test_large_tensors_get_large_pages() -> None:
    """They hold what was copied like any other."""
    tensor = torch.arange(2_000_000)
    copied = Staging().copy({"a": tensor})
    assert copied is not None and torch.equal(copied["a"], tensor)
    assert size_of({"a": tensor, "b": [tensor[1:]]}) == 16_000_000
