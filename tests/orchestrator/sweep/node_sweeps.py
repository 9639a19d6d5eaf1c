"""The sweeps that tests run on nodes of their own: ``python -m`` this, with the sweep's name and a folder.

Each process of a trial notes every step in a file of its own, ``TRIAL.PID.RANK``. At the end one line of JSON
tells what came out and what the cluster still holds.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.train import ScalingConfig
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import orchestrator as pl
from cluster import session
from orchestrator.strategies import ElasticStrategy
from orchestrator.sweep.rungs import SynchronousRungs

STEPS = 4  # of an epoch
_SETTLE_S = 15.0


class Noted(pl.LightningModule):
    """Learns ones from noise, and notes each step of each process.

    Args:
        lr: Learning rate.
        folder: For the notes.
        victim: Epoch in which rank 1 of the first trial is killed, once; -1 for none.
        waits: Take long steps in the last epochs until another process has come.
    """

    def __init__(self, lr: float, folder: str, victim: int = -1, waits: bool = False) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lr, self.folder, self.victim, self.waits = lr, Path(folder), victim, waits
        self.net = torch.nn.Linear(4, 1)
        with torch.no_grad():
            self.net.weight.fill_(0.1)
            self.net.bias.zero_()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        noise = 0.1 * torch.rand(len(batch[0]), 1)
        return torch.nn.functional.mse_loss(self.net(batch[0]) + noise, torch.ones(len(batch[0]), 1))

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        rank = self.trainer.global_rank
        with open(self.folder / f"{self.lr}.{os.getpid()}.{rank}", "a", encoding="utf-8") as file:
            file.write(f"{self.trainer.global_step}\n")
        mark = self.folder / "killed"
        if rank == 1 and self.current_epoch == self.victim and self.lr == 0.1 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.waits and self.current_epoch >= 4 and self.trainer.strategy.processes == 1:
            time.sleep(2.0)
        time.sleep(0.01)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        loss = torch.nn.functional.mse_loss(self.net(batch[0]), torch.ones(len(batch[0]), 1))
        self.log("loss", loss, sync_dist=True)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class Rows(pl.LightningDataModule):
    """As many rows as `ranks` ranks read in `STEPS` steps of four."""

    def __init__(self, ranks: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.rows = TensorDataset(torch.rand(4 * STEPS * ranks, 4, generator=generator))

    def train_dataloader(self) -> Any:
        return DataLoader(self.rows, batch_size=4, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(self.rows, batch_size=4)


def sweep(folder: Path, rates: list[float], ranks: int, **options: Any) -> pl.Sweep:
    """A sweep over learning rates; options of the Trainer and the module are told by their names."""
    module = {name: options.pop(name) for name in ("victim", "waits") if name in options}
    trainer = {
        "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "num_sanity_val_steps": 0,
        "start_timeout_s": 240.0, **options.pop("trainer"),
    }  # fmt: skip
    return pl.Sweep(
        Noted, {"lr": tune.grid_search(rates), "folder": str(folder), **module}, metric="loss",
        datamodule=Rows(ranks), trainer=trainer, storage_path=folder / "sweeps", name="mine", verbose=False,
        **options,
    )  # fmt: skip


def asha(folder: Path, **options: Any) -> pl.Sweep:
    """Trials on two workers each; of the first two one goes on for sure, and the last two end at once."""
    from ray.tune.schedulers import ASHAScheduler

    rule = ASHAScheduler(max_t=4, grace_period=1, reduction_factor=2)
    rates = [0.1, 0.05, 0.0001, 0.00001]
    return sweep(
        folder, rates, 2, scheduler=rule, trainer={"devices": 2, "max_epochs": 4}, max_concurrent_trials=2,
        **options,
    )  # fmt: skip


def undisturbed(folder: Path, **options: Any) -> pl.Sweep:
    """Trials that nothing stops."""
    return sweep(folder, [0.1, 0.05, 0.02], 2, trainer={"devices": 2, "max_epochs": 4}, **options)


def worker_killed(folder: Path) -> pl.Sweep:
    """The same, but one trial loses a worker."""
    return undisturbed(folder, victim=2)


class KillActor(tune.Callback):
    """Kills the process that leads the first trial once it has reported twice."""

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
        if str(trial) == "trial_00000" and result["training_iteration"] == 2 and not trial.num_failures:
            os.kill(result["pid"], signal.SIGKILL)


def actor_killed(folder: Path) -> pl.Sweep:
    """The same, but one trial loses the process that leads it, and is tried again."""
    return undisturbed(folder, max_failures=1, run_config=tune.RunConfig(callbacks=[KillActor()]))


def driver_killed(folder: Path) -> pl.Sweep:
    """The same, one trial after the other: so some have ended, one runs and some have not begun."""
    return undisturbed(folder, max_concurrent_trials=1)


def elastic(folder: Path) -> pl.Sweep:
    """Six trials of four logical ranks under a rule that does not depend on the cluster."""
    rule = SynchronousRungs(max_t=8, grace_period=1, reduction_factor=2, concurrency=3)
    return sweep(
        folder, [0.1, 0.05, 0.02, 0.01, 0.2, 0.001], 4, scheduler=rule, waits=os.environ.get("WAITS") == "1",
        trainer={"max_epochs": 8, "strategy": ElasticStrategy(logical_ranks=4)},
        resources_per_trial=ScalingConfig(num_workers=1),
    )  # fmt: skip


def held() -> dict[str, Any]:
    """What the cluster still holds: resources in use (objects' memory too) and placement groups."""
    deadline = time.monotonic() + _SETTLE_S
    while True:
        whole, free = ray.cluster_resources(), ray.available_resources()
        used = {name: whole[name] - free.get(name, 0.0) for name in whole if whole[name] != free.get(name)}
        groups = [
            key for key, group in ray.util.placement_group_table().items() if group["state"] != "REMOVED"
        ]
        if not (used or groups) or time.monotonic() > deadline:
            return {**used, **({"placement groups": groups} if groups else {})}
        time.sleep(0.2)


def main() -> None:
    """Run one sweep and print what came out."""
    session.connect()
    if sys.argv[1] == "nothing":
        print(json.dumps({"held": held()}))
        return
    result = {
        "asha": asha, "worker": worker_killed, "undisturbed": undisturbed, "actor": actor_killed,
        "driver": driver_killed, "elastic": elastic,
    }[sys.argv[1]](Path(sys.argv[2])).run()  # fmt: skip
    print(
        json.dumps(
            {
                "errors": [str(error) for error in result.errors],
                "statuses": [record.status for record in result._records],
                "streams": [record.values("loss") for record in result._records],
                "best": result.best_trial.number,
                "held": held(),
            }
        )
    )


if __name__ == "__main__":
    main()
