"""What self.optimizers() returns is the user's optimizer in all but its step."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import nn

from orchestrator.errors import MisconfigurationError
from orchestrator.lightning_optimizer import LightningOptimizer


@pytest.fixture
def adam() -> torch.optim.Adam:
    """An optimizer of one parameter, which has a gradient."""
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    return torch.optim.Adam([parameter], lr=0.1)


def test_it_passes_for_the_optimizer(adam: torch.optim.Adam) -> None:
    """isinstance, attributes and methods are the optimizer's own; what is set is set on it."""
    wrapped: Any = LightningOptimizer(adam, None)
    assert isinstance(wrapped, torch.optim.Adam)
    assert isinstance(wrapped, LightningOptimizer)
    assert not isinstance(wrapped, torch.optim.SGD)
    assert wrapped.optimizer is adam
    assert wrapped.param_groups is adam.param_groups
    wrapped.marked = 3
    assert adam.marked == 3  # type: ignore[attr-defined]
    wrapped.zero_grad()
    assert adam.param_groups[0]["params"][0].grad is None
    assert repr(wrapped).startswith("LightningOptimizer(Adam")
    with pytest.raises(AttributeError, match="nothing_like_it"):
        wrapped.nothing_like_it  # noqa: B018


def test_outside_of_training_it_steps_as_the_optimizer_does(adam: torch.optim.Adam) -> None:
    """Without a conductor step is the optimizer's own, with a closure and without."""
    wrapped = LightningOptimizer(adam, None)
    before = adam.param_groups[0]["params"][0].clone()
    assert wrapped.step() is None
    assert wrapped.step(lambda: 5.0) == 5.0
    assert not torch.equal(adam.param_groups[0]["params"][0], before)
    assert adam.state[adam.param_groups[0]["params"][0]]["step"] == 2


def test_a_closure_that_cannot_be_called_is_refused(adam: torch.optim.Adam) -> None:
    """step(closure=...) says what it got."""
    with pytest.raises(MisconfigurationError, match=r"closure=1\.5\) is a float"):
        LightningOptimizer(adam, None).step(1.5)  # type: ignore[arg-type]


def test_it_stays_in_its_process(adam: torch.optim.Adam) -> None:
    """Pickling it is refused with what to keep instead."""
    with pytest.raises(TypeError, match=r"optimizer\.state_dict\(\)"):
        pickle.dumps(LightningOptimizer(adam, None))
