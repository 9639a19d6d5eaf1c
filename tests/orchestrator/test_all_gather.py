"""`self.all_gather` on a group: every rank gets the values of all, and gradients flow back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.orchestrator.groups import Net, group_trainer, loader
from tests.orchestrator.tiny import Validated, quiet_trainer
from tests.orchestrator.tiny import loader as tiny_loader

pytestmark = pytest.mark.ray


class Gathers(Net):
    """Keeps what it gathers at the start of training."""

    def on_train_start(self) -> None:
        rank = self.global_rank
        found = self.all_gather({"rank": rank, "pair": (torch.full((2,), float(rank)),)})
        leaf = torch.tensor([1.0 + rank], requires_grad=True)
        everything: Tensor = self.all_gather(leaf, sync_grads=True)
        (everything * torch.tensor([[2.0], [3.0]])).sum().backward()
        assert leaf.grad is not None
        self.found: Any = (found["rank"].tolist(), found["pair"][0].tolist(), leaf.grad.tolist())
        self.plain: Any = (everything.tolist(), self.all_gather(leaf).requires_grad)


def test_every_rank_gets_the_values_of_all(tmp_path: Path) -> None:
    """Tensors and numbers in any structure get a new first dimension; a gradient is the sum over ranks."""
    net = Gathers()
    group_trainer(tmp_path, max_epochs=1).fit(net, loader(16))
    assert net.found == ([0, 1], [[0.0, 0.0], [1.0, 1.0]], [4.0])
    assert net.plain == ([[1.0], [2.0]], False)


def test_in_one_process_nothing_is_added() -> None:
    """With a trainer in this process a tensor comes back as it is."""
    net = Validated()
    quiet_trainer().fit(net, tiny_loader(4))
    tensor = torch.ones(3)
    assert net.all_gather(tensor) is tensor
