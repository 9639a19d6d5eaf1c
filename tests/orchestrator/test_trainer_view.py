"""What users read from the Trainer about the length of training and its data."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import orchestrator as pl
from orchestrator.settings import Settings
from orchestrator.step_estimate import estimate_steps
from tests.orchestrator.tiny import Tiny, Validated, loader, quiet_trainer


class Reads(pl.Callback):
    """Reads attributes of the trainer after every training batch."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.found: list[Any] = []

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.found.append(tuple(getattr(trainer, name) for name in self.names))


@given(
    st.one_of(st.none(), st.integers(-1, 4)),
    st.integers(-1, 9),
    st.integers(1, 3),
    st.integers(1, 5),
)
def test_the_estimate_is_what_training_does(
    max_epochs: int | None, max_steps: int, accumulate: int, batches: int
) -> None:
    """The estimate equals the steps of a loop that stops at either limit."""
    settings = Settings(max_epochs=max_epochs, max_steps=max_steps, accumulate_grad_batches=accumulate)
    estimate = estimate_steps(settings, batches)
    if max_steps == -1 and max_epochs == -1:
        assert estimate == math.inf
        return
    last_epoch = max_epochs if max_epochs is not None else 1000 if max_steps == -1 else -1
    steps = epoch = 0
    while epoch != last_epoch and steps != max_steps:
        for batch in range(1, batches + 1):
            if (batch % accumulate == 0 or batch == batches) and steps != max_steps:
                steps += 1
        epoch += 1
    assert estimate == steps


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"max_epochs": 3}, None),
        ({}, None),
        ({"max_epochs": 3, "max_steps": 5}, None),
        ({"max_epochs": -1, "max_steps": 5}, 5),
        ({"max_steps": 5}, 5),
        ({"max_epochs": -1}, math.inf),
    ],
)
def test_without_data_only_some_limits_say_enough(arguments: dict[str, Any], expected: Any) -> None:
    """Where epochs limit training its length needs the data; where steps or nothing do, it does not."""
    assert estimate_steps(Settings(**arguments), None) == expected


@pytest.mark.parametrize(("max_steps", "expected"), [(-1, math.inf), (7, 7)])
def test_data_without_a_length_leave_the_limit_on_steps(max_steps: int, expected: float) -> None:
    """When nobody knows how long an epoch is, only max_steps bounds the estimate."""
    assert estimate_steps(Settings(max_epochs=2, max_steps=max_steps), math.inf) == expected


def test_hooks_read_the_length_of_training() -> None:
    """estimated_stepping_batches and is_last_batch hold in every training batch."""
    reads = Reads("estimated_stepping_batches", "is_last_batch")
    trainer = quiet_trainer(reads, max_epochs=2, accumulate_grad_batches=2)
    trainer.fit(Tiny(), loader(12))
    assert reads.found == [(4, False), (4, False), (4, True)] * 2
    assert trainer.global_step == trainer.estimated_stepping_batches


def test_an_estimate_before_a_fit_is_refused() -> None:
    """Where the data is needed and there is no fit that has any, the error says when it will be known."""
    with pytest.raises(RuntimeError, match=r"max_epochs=1, max_steps=-1\) counts epochs.*configure_opt"):
        _ = quiet_trainer().estimated_stepping_batches
    assert quiet_trainer(max_epochs=-1, max_steps=3).estimated_stepping_batches == 3


def test_loaders_are_the_users_own() -> None:
    """train_dataloader and val_dataloaders are what was given to fit, and None before."""
    train, one, two = loader(8), loader(4), loader(8)
    trainer = quiet_trainer()
    assert (trainer.train_dataloader, trainer.val_dataloaders, trainer.is_last_batch) == (None, None, False)
    trainer.fit(Validated(), train, [one, two])
    assert trainer.train_dataloader is train
    assert trainer.val_dataloaders == [one, two]


def test_loaders_of_the_module_are_seen() -> None:
    """Loaders that fit takes from the module's methods are those that the trainer shows."""

    class Feeds(Validated):
        def train_dataloader(self) -> Any:
            return loader(8)

        def val_dataloader(self) -> Any:
            return loader(4)

    trainer = quiet_trainer()
    trainer.fit(Feeds())
    assert (len(trainer.train_dataloader), len(trainer.val_dataloaders)) == (2, 1)
