"""A run that goes on from a checkpoint ends like one that never stopped, whatever callbacks do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import orchestrator as pl
from orchestrator.callbacks import (
    BackboneFinetuning,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from tests.orchestrator.callbacks.test_every_callback import Whole
from tests.orchestrator.tiny import assert_equal_weights, loader, quiet_trainer

CASES: dict[str, Callable[[], pl.Callback]] = {
    "mean": WeightAveraging,
    "moving": lambda: EMAWeightAveraging(decay=0.7, update_every_n_steps=2),
    "late": lambda: EMAWeightAveraging(decay=0.7, update_starting_at_step=7),
    "stochastic": lambda: StochasticWeightAveraging(0.02, 2, annealing_epochs=3),
    "thawed": lambda: BackboneFinetuning(1, backbone_initial_lr=0.01),
    "accumulated": lambda: GradientAccumulationScheduler({1: 2, 2: 3}),
}


class Quiet(Whole):
    """With or without a schedule of its own."""

    def __init__(self, scheduled: bool) -> None:
        super().__init__()
        self.scheduled = scheduled

    def configure_optimizers(self) -> Any:
        found = super().configure_optimizers()
        return found if self.scheduled else found["optimizer"]


@pytest.mark.parametrize(
    ("name", "scheduled"), [*((name, False) for name in CASES), ("stochastic", True), ("thawed", True)]
)
def test_a_resumed_run_ends_like_a_whole_one(name: str, scheduled: bool, tmp_path: Path) -> None:
    """Checkpoints of a run of four epochs, within epochs too, lead to its last weights, to the bit."""
    whole = Quiet(scheduled)
    every = 3 if name == "accumulated" else 5
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=every, save_top_k=-1)
    run = {"max_epochs": 4, "enable_checkpointing": True}
    quiet_trainer(CASES[name](), keep, **run).fit(whole, loader(12, shuffle=True), loader(4))
    paths = sorted(tmp_path.glob("*.ckpt"))
    assert len(paths) == 2
    for path in paths:
        torch.manual_seed(99)
        again = Quiet(scheduled)
        other = ModelCheckpoint(tmp_path / "other", every_n_epochs=0)
        quiet_trainer(CASES[name](), other, **run).fit(
            again, loader(12, shuffle=True), loader(4), ckpt_path=path
        )
        assert_equal_weights(again, whole)
