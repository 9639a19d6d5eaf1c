"""The run that faults happen to: run as a program, it prints the hash of weights and optimizer state.

Dropout, batch statistics, augmentation, accumulation and an uneven end: all that could show who took part.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import orchestrator as pl
from orchestrator.strategies import ElasticStrategy

EPOCHS, STEPS_PER_EPOCH, BATCH, FEATURES = 4, 6, 3, 6


class Points(Dataset[tuple[Tensor, Tensor]]):
    """So many samples that the last step of an epoch is uneven; each draws noise where it is read."""

    def __init__(self, length: int) -> None:
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(length, FEATURES, generator=generator)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        noise = 0.01 * torch.randn(FEATURES) + 0.01 * random.random()
        return self.x[index] + noise, self.x[index].sum(0, keepdim=True)


class Net(pl.LightningModule):
    """Trains with one of two optimizers, and hashes the optimizer's state at the end."""

    def __init__(self, optimizer: str, logs: bool) -> None:
        super().__init__()
        self.optimizer, self.logs = optimizer, logs
        self.hashed = ""
        self.net = nn.Sequential(
            nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 1)
        )

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The squared error."""
        loss = nn.functional.mse_loss(self.net(batch[0]), batch[1])
        if self.logs:
            self.log("loss", loss, on_step=True, on_epoch=True, sync_dist=True)
        return loss

    def on_train_end(self) -> None:
        """Hash what the optimizer keeps."""
        digest = hashlib.sha256()
        for state in self.optimizers().state_dict()["state"].values():
            for value in state.values():
                digest.update(torch.as_tensor(value).numpy().tobytes() if value is not None else b"")
        self.hashed = digest.hexdigest()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD with momentum, or AdamW."""
        if self.optimizer == "sgd":
            return torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9)
        return torch.optim.AdamW(self.parameters(), lr=0.01)


class Tells(pl.Callback):
    """Leaves a file for each process, and a line for each step of the first."""

    def __init__(self, folder: Path, pause_s: float) -> None:
        self.folder, self.pause_s = folder, pause_s

    def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
        """Say where the run is."""
        time.sleep(self.pause_s)
        (self.folder / f"pid.{os.getpid()}").touch()
        if trainer.engine.is_global_zero:
            with open(self.folder / "steps", "a", encoding="utf-8") as file:
                file.write(f"{trainer.global_step} {time.time()} {trainer.strategy.processes}\n")


def train(
    schedule: dict[str, Any], folder: Path, *, workers: int, pause_s: float, cpus: float = 1.0
) -> dict[str, Any]:
    """Train as a schedule says, on so many workers that reserve so many CPUs, or without a pause in this
    process; return what identifies the result.
    """
    ranks, accumulate = schedule["logical_ranks"], schedule["accumulate"]
    length = ranks * BATCH * STEPS_PER_EPOCH * accumulate - BATCH - 2
    grouped: dict[str, Any] = {}
    if pause_s:  # one worker is a group too, which may grow
        from ray.train import ScalingConfig

        scaling = ScalingConfig(num_workers=workers, resources_per_worker={"CPU": cpus})
        grouped = {"scaling_config": scaling, "max_failures": -1}
    pl.seed_everything(5, verbose=False)
    module = Net(schedule["optimizer"], schedule["logs"])
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=EPOCHS, accumulate_grad_batches=accumulate,
        strategy=ElasticStrategy(
            logical_ranks=ranks, min_workers=1, max_workers=max(schedule["most"], workers)
        ),
        callbacks=[Tells(folder, pause_s)], logger=False, log_every_n_steps=4, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        start_timeout_s=300, gradient_clip_val=1.0, **grouped,
    )  # fmt: skip
    trainer.fit(module, DataLoader(Points(length), batch_size=BATCH, shuffle=True))
    digest = hashlib.sha256(module.hashed.encode())
    for tensor in module.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return {"hash": digest.hexdigest(), "steps": trainer.global_step, "metrics": metrics}


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    print(json.dumps(train(given, Path(sys.argv[2]), workers=given["workers"], pause_s=float(sys.argv[3]))))
