"""What a training step may take and return."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import orchestrator as pl
from orchestrator.errors import MisconfigurationError
from tests.orchestrator.groups import Net, group_trainer
from tests.orchestrator.groups import loader as class_loader
from tests.orchestrator.tiny import Tiny, assert_equal_weights, loader, loss_of, network, quiet_trainer, sgd


class BatchOnly(Tiny):
    def training_step(self, batch: Any) -> Any:  # type: ignore[override]
        return loss_of(self.net, batch)


class Anything(Tiny):
    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        batch, batch_idx = args
        assert isinstance(batch_idx, int)
        return loss_of(self.net, batch)


class WithDefaults(Tiny):
    def training_step(self, batch: Any, batch_idx: int, optimizer_idx: int = 7) -> Any:
        assert optimizer_idx == 7
        return loss_of(self.net, batch)


class Dictionary(Tiny):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"loss": loss_of(self.net, batch), "more": batch_idx}


class OneElement(Tiny):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return loss_of(self.net, batch).reshape(1)


@pytest.mark.parametrize("kind", [BatchOnly, Anything, WithDefaults, Dictionary, OneElement])
def test_every_form_trains_alike(kind: type[Tiny]) -> None:
    """The batch alone, any arguments, further ones with defaults; a tensor or a dictionary: equal weights."""
    module, net = kind(), network()
    optimizer = sgd(net.parameters())
    for batch in loader(12):
        optimizer.zero_grad()
        loss_of(net, batch).backward()
        optimizer.step()
    quiet_trainer().fit(module, loader(12))
    assert_equal_weights(module.net, net)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("text", r"returned str\. Return the loss as a tensor"),
        (0.5, r"returned float\. Return the loss"),
        ({"los": 1}, r"a dictionary with keys \['los'\]\. Return the loss"),
        ([1], r"returned list\. Return the loss"),
    ],
)
def test_what_is_no_loss_is_refused(returned: Any, message: str) -> None:
    """A training step that returns something else is told what was found and what to return."""

    class Returns(Tiny):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return returned

    with pytest.raises(MisconfigurationError, match=message):
        quiet_trainer().fit(Returns(), loader(4))


class Skips(Net):
    """Leaves a batch out."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:  # type: ignore[override]
        return None if batch_idx == 1 else self.loss(batch)


class SkipsByHand(Skips):
    """Leaves a batch out by hand, which is alike on all ranks."""

    automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        loss = super().training_step(batch, batch_idx)
        if loss is not None:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()


@pytest.mark.ray
def test_on_a_group_a_loss_may_not_be_left_out(tmp_path: Path) -> None:
    """Other ranks wait for gradients in automatic optimization; by hand a batch may be left out by all."""
    with pytest.raises(RuntimeError, match=r"returned None for batch 1 on rank \d.*multiply it by 0"):
        group_trainer(tmp_path, max_epochs=1).fit(Skips(), class_loader(32, 4))
    trainer: pl.Trainer = group_trainer(tmp_path, max_epochs=1)
    trainer.fit(SkipsByHand(), class_loader(32, 4))
    assert trainer.global_step == 3
