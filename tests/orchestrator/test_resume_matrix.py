"""From every step of an epoch a run goes on to the bits of the uninterrupted one, on ranks and logical ranks.

With dropout, a schedule, augmentation, accumulation, and with and without loader processes. Long, so these
run where slow tests do; `test_saving_behind.py` and `test_group_checkpoints.py` have shorter ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import orchestrator as pl
from orchestrator.callbacks import ModelCheckpoint
from orchestrator.strategies import ElasticStrategy
from tests.orchestrator.groups import Noisy, points
from tests.orchestrator.tiny import assert_equal_weights

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1800)]


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Points with noise that is drawn where they are read."""

    def __init__(self, length: int) -> None:
        self.points = points(length)

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        inputs, label = self.points[index]
        return inputs + 0.1 * torch.randn(inputs.shape), label


def fit(
    root: Path, devices: int, strategy: Any, workers: int, accumulate: int, length: int, **arguments: Any
) -> pl.LightningModule:
    """Train for two epochs, on a group or here, and save at each step; return the module."""
    torch.manual_seed(3)
    saver = ModelCheckpoint(root, save_top_k=-1, every_n_train_steps=1, filename="{step}")
    grouped = {} if devices == 1 else {"resources_per_worker": {"CPU": 0.1}, "start_timeout_s": 300.0}
    path = arguments.pop("ckpt_path", None)
    trainer = pl.Trainer(
        accelerator="cpu", devices=devices, strategy=strategy, accumulate_grad_batches=accumulate,
        callbacks=[saver], logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=root, **{"max_epochs": 2, **grouped, **arguments},
    )  # fmt: skip
    module = Noisy()
    data = DataLoader(Augmented(length), batch_size=4, shuffle=True, num_workers=workers)
    trainer.fit(module, data, ckpt_path=path)
    return module


def steps_in(root: Path) -> dict[int, Path]:
    """The checkpoints in `root` by their step."""
    return {int(path.stem.partition("=")[2]): path for path in root.glob("step=*.ckpt")}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("workers", [0, 2])
def test_three_ranks_of_ddp(workers: int, accumulate: int, tmp_path: Path) -> None:
    """At their world size, from each step of the first epoch. What is drawn in loader processes is drawn
    again where samples draw by their number, with deterministic=True.
    """
    kept: dict[str, Any] = {
        "workers": workers, "accumulate": accumulate, "length": 3 * 4 * 4, "deterministic": bool(workers),
    }  # fmt: skip
    whole = fit(tmp_path / "whole", 3, "ddp", **kept)
    found = steps_in(tmp_path / "whole")
    assert len(found) == 2 * 4 // accumulate
    for step in range(1, 4 // accumulate + 1):
        resumed = fit(tmp_path / f"from {step}", 3, "ddp", ckpt_path=found[step], **kept)
        assert_equal_weights(resumed, whole)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("workers", [0, 2])
def test_logical_ranks_on_one_to_three_processes(workers: int, accumulate: int, tmp_path: Path) -> None:
    """One process until a step, two for one step more, three from there: at each step of the first epoch."""
    strategy = ElasticStrategy(logical_ranks=3)
    kept: dict[str, Any] = {
        "strategy": strategy, "workers": workers, "accumulate": accumulate, "length": 3 * 4 * 4,
    }  # fmt: skip
    whole = fit(tmp_path / "1", 1, **kept)
    alone = steps_in(tmp_path / "1")
    assert len(alone) == 2 * 4 // accumulate
    for step in range(1, 4 // accumulate + 1):
        fit(tmp_path / f"2 {step}", 2, ckpt_path=alone[step], max_steps=step + 1, **kept)
        path = steps_in(tmp_path / f"2 {step}")[step + 1]
        resumed = fit(tmp_path / f"3 {step}", 3, ckpt_path=path, **kept)
        assert_equal_weights(resumed, whole)
