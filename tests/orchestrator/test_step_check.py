"""ElasticStrategy(check_step=True) finds a step that depends on more than elastic training can keep alike."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import orchestrator as pl
from orchestrator import logical_step
from orchestrator.errors import MisconfigurationError
from orchestrator.strategies import ElasticStrategy
from tests.orchestrator.tiny import FEATURES, assert_equal_weights, points, quiet_trainer


class Step(pl.LightningModule):
    """BatchNorm, dropout and a metric of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.seen = 0
        self.own = torch.Generator().manual_seed(1)

    def loss(self, batch: Any) -> Tensor:
        inputs, targets = batch
        loss = nn.functional.mse_loss(self.net(inputs), targets)
        self.log("loss", loss, on_epoch=True)
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.seen += 1  # changes nothing of the loss
        return self.loss(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Counts(Step):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.seen += 1
        return self.loss(batch) * self.seen


class DrawsByItself(Step):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, targets = batch
        return self.loss((inputs + torch.randn(inputs.shape, generator=self.own), targets))


class ChangesTheBatch(Step):
    """Each run gets a batch of its own, so this is fine."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, targets = batch
        return self.loss((inputs.mul_(2.0), targets))


class ReplacesABuffer(Step):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.mean = self.mean + 1.0
        return self.loss(batch) * self.mean.sum()


class CountsInABuffer(Step):
    """The loss of this step is the same; that of the next would not be."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.seen += 1
        self.mean.fill_(self.seen)
        return self.loss(batch)


class Locked(Step):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


def fit(kind: type[Step], *, checks: bool, **options: Any) -> tuple[pl.Trainer, Step]:
    """Train two epochs on two logical ranks."""
    pl.seed_everything(3, verbose=False)
    module = kind()
    strategy = ElasticStrategy(logical_ranks=2, check_step=checks)
    trainer = quiet_trainer(strategy=strategy, max_epochs=2, **options)
    trainer.fit(module, torch.utils.data.DataLoader(points(24), batch_size=4))
    return trainer, module


@pytest.mark.parametrize("kind", [Step, ChangesTheBatch])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_step_that_is_a_function_trains_as_without_the_check(kind: type[Step], precision: str) -> None:
    """Weights, metrics and what the module counts are those of the run without it."""
    trainer, module = fit(kind, checks=True, precision=precision)
    plain, expected = fit(kind, checks=False, precision=precision)
    assert_equal_weights(module, expected)
    assert dict(trainer.callback_metrics) == dict(plain.callback_metrics)
    assert module.seen == expected.seen


@pytest.mark.parametrize("kind", [Counts, DrawsByItself])
def test_a_step_that_depends_on_more_is_refused(kind: type[Step]) -> None:
    """Before the first step, by name, with what differs."""
    with pytest.raises(MisconfigurationError, match=rf"the loss, the gradient.* differ\. {kind.__name__}\."):
        fit(kind, checks=True)
    fit(kind, checks=False)


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        (ReplacesABuffer, r"ReplacesABuffer\.training_step replaces mean by other tensors"),
        (CountsInABuffer, r"the buffer mean differ\. CountsInABuffer\."),
        (Locked, r"Locked cannot be copied to be tried: TypeError"),
    ],
)
def test_what_else_is_refused(kind: type[Step], match: str) -> None:
    """Buffers that are replaced, or get other values; a module of which there can be no copy."""
    with pytest.raises(MisconfigurationError, match=match):
        fit(kind, checks=True)


def test_it_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not again where the step is built anew, as after a loss."""
    calls: list[int] = []
    monkeypatch.setattr(logical_step, "check_step", lambda module, batch, index, **named: calls.append(index))
    logical = SimpleNamespace(has_checked_step=False)
    parts = SimpleNamespace(module=None, precision=SimpleNamespace(autocast=None))
    for _ in range(2):
        step = logical_step._checked_once(lambda batch, index: index, parts, logical)  # type: ignore[arg-type]
        assert [step(None, 4), step(None, 5)] == [4, 5]
    assert calls == [4]


def test_the_switch_is_one() -> None:
    """Anything else is refused."""
    with pytest.raises(MisconfigurationError, match="check_step='yes'"):
        ElasticStrategy(check_step="yes")  # type: ignore[arg-type]
