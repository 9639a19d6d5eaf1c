"""Toggling decides whose parameters learn; manual backward needs a trainer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from modules.module import LightningModule


class Pair(LightningModule):
    """Two layers that share nothing, and a third that both optimizers have."""

    automatic_optimization = False

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.shared = nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 1)
        self.left.bias.requires_grad = False

    def learning(self) -> set[str]:
        return {name for name, item in self.named_parameters() if item.requires_grad}


LEFT, RIGHT, SHARED = {"left.weight"}, {"right.weight", "right.bias"}, {"shared.weight", "shared.bias"}


@pytest.fixture
def pair() -> tuple[Pair, Any, Any]:
    """A module whose trainer has an optimizer for each side."""
    module = Pair()
    left, right = (
        torch.optim.SGD([*side.parameters(), *module.shared.parameters()], lr=0.1)
        for side in (module.left, module.right)
    )
    module.trainer = SimpleNamespace(optimizers=[left, right])
    return module, left, right


def test_toggling_leaves_only_the_optimizers_own_parameters(pair: tuple[Pair, Any, Any]) -> None:
    """Others need no gradient until untoggled; what was frozen before stays so; shared ones keep learning."""
    module, left, right = pair
    module.toggle_optimizer(left)
    assert module.learning() == LEFT | SHARED
    module.untoggle_optimizer(left)
    assert module.learning() == LEFT | RIGHT | SHARED
    module.toggle_optimizer(right)
    assert module.learning() == RIGHT | SHARED
    module.toggle_optimizer(left)  # without untoggling
    assert module.learning() == LEFT | SHARED
    module.untoggle_optimizer(left)
    assert module.learning() == LEFT | RIGHT | SHARED


def test_a_toggled_context_ends_also_by_an_exception(pair: tuple[Pair, Any, Any]) -> None:
    """After the context all parameters learn that did before."""
    module, left, _ = pair
    with pytest.raises(ArithmeticError), module.toggled_optimizer(left):
        assert module.learning() == LEFT | SHARED
        raise ArithmeticError
    assert module.learning() == LEFT | RIGHT | SHARED


def test_manual_backward_needs_manual_optimization_and_a_trainer() -> None:
    """manual_backward says which of both is missing."""
    loss = torch.ones((), requires_grad=True)
    with pytest.raises(RuntimeError, match=r"Pair\.manual_backward\(\) was called, and no Trainer trains"):
        Pair().manual_backward(loss)
    with pytest.raises(RuntimeError, match=r"is for manual optimization.*automatic_optimization = False"):
        LightningModule().manual_backward(loss)
