"""An elastic trial takes a worker more while there is room, gives it back, and learns the same."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import orchestrator as pl
from cluster import pool, session
from orchestrator.strategies import ElasticStrategy
from orchestrator.sweep.dialogue import GO_ON, Report
from orchestrator.sweep.spare_room import FILE
from orchestrator.sweep.trial import Trial, set_current
from tests.orchestrator.groups import Net, points

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]
STEPS = 40


class Slow(Net):
    """Takes long steps in the second epoch until another process comes, in the fourth until it goes."""

    def __init__(self, folder: Path, waits: bool) -> None:
        super().__init__()
        self.folder, self.waits = folder, waits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        alone = self.trainer.strategy.processes == 1
        if self.waits and self.trainer.local_rank == 0:
            with open(self.folder / "processes", "a", encoding="utf-8") as file:
                file.write(f"{self.current_epoch} {self.trainer.strategy.processes}\n")
            if (self.current_epoch == 1 and alone) or (self.current_epoch == 3 and not alone):
                time.sleep(1.0)
        return super().training_step(batch, batch_idx)


@pytest.fixture(scope="module", autouse=True)
def room() -> Iterator[Any]:
    """Room for one worker, as a trial has reserved it."""
    session.connect()
    group = ray.util.placement_group([{"CPU": 0.5}])
    ray.get(group.ready())
    yield group
    pool.end()
    ray.util.remove_placement_group(group)


def fit(folder: Path, room: Any, waits: bool) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """Train in a trial whose sweep has room for others between the first report and the third; return the
    weights and what was reported.
    """
    folder.mkdir()
    told: list[dict[str, float]] = []

    def talk(question: object) -> str:
        assert isinstance(question, Report)
        told.append(question.metrics)
        if waits and len(told) == 1:
            (folder / FILE).touch()
        if waits and len(told) == 3:
            (folder / FILE).unlink()
        return GO_ON

    trial = Trial(
        name="trial_00000", number=0, config={}, metric="val_loss", mode="min",
        directory=str(folder / "trial"), num_workers=1, resources_per_worker={"CPU": 0.5},
        placement_group=room, talk=talk,
    )  # fmt: skip
    set_current(trial)
    try:
        pl.seed_everything(3, verbose=False)
        module = Slow(folder, waits)
        trainer = pl.Trainer(
            accelerator="cpu", strategy=ElasticStrategy(logical_ranks=4, max_workers=3), max_epochs=5,
            logger=False, enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False,
        )  # fmt: skip
        assert trainer.plan.on_group
        data = DataLoader(points(4 * 4 * STEPS), batch_size=4, shuffle=True)
        trainer.fit(module, data, DataLoader(points(16), batch_size=4))
    finally:
        set_current(None)
    return module.state_dict(), told


@pytest.mark.slow
def test_a_worker_comes_and_goes_and_nothing_else_changes(tmp_path: Path, room: Any) -> None:
    """Weights and reports are those of the trial that stays alone; a report is made once."""
    weights, told = fit(tmp_path / "alone", room, waits=False)
    grown_weights, grown_told = fit(tmp_path / "grown", room, waits=True)
    lines = (tmp_path / "grown" / "processes").read_text(encoding="utf-8").split("\n")[:-1]
    seen = {epoch: {line for line in lines if line.startswith(f"{epoch} ")} for epoch in (0, 2, 4)}
    assert seen[0] == {"0 1"}
    assert seen[2] <= {"2 2", "2 3"}
    assert seen[4] == {"4 1"}
    assert grown_told == told
    assert len(told) == 5
    assert all(torch.equal(grown_weights[name], weights[name]) for name in weights)
