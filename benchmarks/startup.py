"""How long from the call of ``fit`` on two workers to the first training step: the first time, and again.

Peers in the same run: two bare Ray actors that import torch and build an optimizer (what no start can beat),
and Ray Train's TorchTrainer with an empty loop (``--torch-trainer``; it takes long). Ray itself is running
before the clock starts, and has had the time to put processes into place that it keeps for the next to come.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import ray
import torch
from harness import measure, parse_arguments, report, summarize
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import orchestrator as pl
from cluster import pool, session

ROUNDS = 5
SETTLES_S = 3.0


class Net(pl.LightningModule):
    """A small module that notes when its first training step begins."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(8, 2)
        self.first_step_at = 0.0

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Cross entropy."""
        if not self.first_step_at:
            self.first_step_at = time.time()
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder: str) -> Mapping[str, float]:
    """One fit of one epoch."""
    data = DataLoader(TensorDataset(torch.randn(64, 8), torch.randint(0, 2, (64,))), batch_size=8)
    trainer = pl.Trainer(
        accelerator="cpu", devices=2, max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, default_root_dir=folder,
    )  # fmt: skip
    module = Net()
    began = time.time()
    trainer.fit(module, data)
    ended = time.time()
    return {"call_to_first_step_s": module.first_step_at - began, "whole_call_s": ended - began}


def settle() -> None:
    """End warm workers, and let Ray start the empty processes that it keeps."""
    pool.end()
    time.sleep(SETTLES_S)


def cold(folder: str) -> Mapping[str, float]:
    """A fit without warm workers."""
    settle()
    return fit(folder)


def warm(folder: str) -> Mapping[str, float]:
    """The fit after another."""
    fit(folder)
    return fit(folder)


class Bare:
    """An actor that imports torch and builds an optimizer."""

    def begin(self) -> float:
        """Return when it was ready to train."""
        import torch

        torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        return time.time()


def bare_actors() -> Mapping[str, float]:
    """Two actors in a placement group, until both could train."""
    settle()
    began = time.time()
    group = ray.util.placement_group([{"CPU": 1}] * 2)
    strategy = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy
    actors = [
        ray.remote(Bare).options(num_cpus=1, scheduling_strategy=strategy(group, index)).remote()
        for index in range(2)
    ]
    ready: list[float] = ray.get([actor.begin.remote() for actor in actors])
    for actor in actors:
        ray.kill(actor)
    ray.util.remove_placement_group(group)
    return {"call_to_first_step_s": max(ready) - began}


def torch_trainer(folder: str) -> Mapping[str, float]:
    """Ray Train with two workers whose loop does nothing."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    note = f"{folder}/began-{time.time()}"

    def loop() -> None:
        import time

        import ray.train
        import torch

        torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        if ray.train.get_context().get_world_rank() == 0:
            with open(note, "w") as file:
                file.write(str(time.time()))

    settle()
    began = time.time()
    TorchTrainer(
        loop, scaling_config=ScalingConfig(num_workers=2), run_config=RunConfig(storage_path=folder)
    ).fit()
    ended = time.time()
    with open(note) as file:
        return {"call_to_first_step_s": float(file.read()) - began, "whole_call_s": ended - began}


def main() -> None:
    """Run all contenders."""
    question = "How long until the first training step on two workers?"
    arguments = parse_arguments(question, "--torch-trainer")
    logging.getLogger("orchestrator").setLevel(logging.ERROR)
    session.connect()
    with tempfile.TemporaryDirectory() as folder:
        contenders: dict[str, Callable[[], Any]] = {
            "two bare actors": bare_actors,
            "orchestrator, cold": lambda: cold(folder),
            "orchestrator, warm": lambda: warm(folder),
        }
        if arguments.torch_trainer:
            contenders["Ray TorchTrainer"] = lambda: torch_trainer(folder)
        bare_actors()
        figures = measure(contenders, ROUNDS)
    pl.shutdown()
    rows = summarize(figures, "two bare actors")
    report("startup", question, rows, "two bare actors", arguments.json)


if __name__ == "__main__":
    main()
