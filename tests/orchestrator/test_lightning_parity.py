"""The same module source and seed, trained by Lightning and by us, ends with the same weights, to the bit.

What differs on purpose has a test of its own that shows by how much.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR

import orchestrator
from tests.orchestrator.parity import CASES, SGD, automatic, train
from tests.orchestrator.tiny import assert_equal_weights, loader

pytestmark = [pytest.mark.extras, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def lightning() -> Iterator[Any]:
    """Lightning's package, silent."""
    package = pytest.importorskip("lightning.pytorch")
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.ERROR)
    yield package
    log.setLevel(level)


@pytest.mark.parametrize("case", CASES)
def test_weights_are_lightnings(lightning: Any, case: str) -> None:
    """Weights, optimizer states, rates and counters after the fit are equal, the weights to the bit."""
    build, arguments = CASES[case]
    theirs, reference = train(lightning, build, **arguments)
    ours, trainer = train(orchestrator, build, **arguments)
    assert_equal_weights(ours, theirs)
    assert (trainer.global_step, trainer.current_epoch) == (reference.global_step, reference.current_epoch)
    for mine, other in zip(trainer.optimizers, reference.optimizers, strict=True):
        assert mine.state_dict()["param_groups"] == other.state_dict()["param_groups"]
    assert {name: float(item) for name, item in trainer.callback_metrics.items()} == pytest.approx(
        {name: float(item) for name, item in reference.callback_metrics.items()}, rel=1e-5
    )


def test_the_last_window_is_where_accumulation_differs(lightning: Any) -> None:
    """Lightning divides an incomplete last window by the full number of batches, we by its own."""

    def gradients(package: Any) -> list[float]:
        found: list[float] = []

        class Watches(package.Callback):  # type: ignore[misc]
            def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
                found.append(float(pl_module.weight.grad))

        class One(package.LightningModule):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.zeros(()))

            def training_step(self, batch: Any, batch_idx: int) -> Any:
                return self.weight * 1.0

            def configure_optimizers(self) -> Any:
                return torch.optim.SGD(self.parameters(), lr=0.1)

        trainer = package.Trainer(
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            max_epochs=1,
            accumulate_grad_batches=4,
            callbacks=[Watches()],
        )
        trainer.fit(One(), loader(40))
        return found

    assert gradients(lightning) == [1.0, 1.0, 0.5]
    assert gradients(orchestrator) == [1.0, 1.0, 1.0]


def test_the_frequency_of_a_step_scheduler_is_where_schedules_differ(lightning: Any) -> None:
    """Lightning counts batches within the epoch, we optimizer steps: ten steps of two make five."""

    def configure(parameters: Any) -> Any:
        optimizer = SGD(parameters)
        every = {"scheduler": StepLR(optimizer, 1), "interval": "step", "frequency": 2}
        return [optimizer], [every]

    steps = {}
    for package in (lightning, orchestrator):
        _, trainer = train(
            package, partial(automatic, configure=configure), limit_train_batches=5, max_epochs=2
        )
        assert trainer.global_step == 10
        steps[package.__name__] = trainer.lr_scheduler_configs[0].scheduler.last_epoch
    assert steps == {"lightning.pytorch": 4, "orchestrator": 5}


def test_the_loss_that_hooks_see_is_where_outputs_differ(lightning: Any) -> None:
    """With accumulation Lightning hands hooks the loss divided by the window, we what was returned."""

    def losses(package: Any) -> list[float]:
        found: list[float] = []

        class Watches(package.Callback):  # type: ignore[misc]
            def on_train_batch_end(
                self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
            ) -> None:
                found.append(float(outputs["loss"]))

        train(package, automatic, accumulate_grad_batches=2, max_epochs=1, callbacks=[Watches()])
        return found

    assert losses(orchestrator) == pytest.approx([2 * loss for loss in losses(lightning)])
