"""What a step costs on two workers over plain `DistributedDataParallel`, for a small network whose step takes
about a millisecond, so that whatever is done around it shows.

All contenders run on the same two warm processes, over the same process group, on the same data. Plain DDP is
the loop that a user of PyTorch writes, with a `DataLoader` and a `DistributedSampler`. By default a fit
survives the loss of a worker, for which each rank sends what it alone knows to another before it commits a
step; ``max_failures=0`` does without.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import torch
from harness import measure, parse_arguments, report, summarize
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import orchestrator as pl
from cluster import pool

ROUNDS = 7
STEPS, WARM = 520, 50
"""Steps of a run, and how many pass before the clock starts."""


def loader(sampler: Any = None) -> DataLoader[Any]:
    """Return random images and labels, read in order, in batches of 64 for each of two ranks."""
    generator = torch.Generator().manual_seed(0)
    rows = 2 * 64 * STEPS
    images = torch.randn(1000, 784, generator=generator).repeat(-(-rows // 1000), 1)[:rows]
    return DataLoader(
        TensorDataset(images, torch.randint(0, 10, (rows,), generator=generator)), 64, sampler=sampler
    )


class Clock:
    """Wall and processor time of the steps behind the first few."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float]] = []

    def at(self, step: int) -> None:
        """Note the time where it counts."""
        if step in (WARM, STEPS - 1):
            self.marks.append((time.perf_counter(), time.process_time()))

    def figures(self) -> dict[str, float]:
        """Return microseconds a step."""
        (wall, cpu), (wall_end, cpu_end) = self.marks
        steps = STEPS - 1 - WARM
        return {"us_a_step": (wall_end - wall) / steps * 1e6, "cpu_us_a_step": (cpu_end - cpu) / steps * 1e6}


def network() -> nn.Module:
    """784-128-10."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))


class Module(pl.LightningModule):
    """The network, which may log a number in each step."""

    def __init__(self, logs: bool) -> None:
        super().__init__()
        self.net, self.logs, self.clock = network(), logs, Clock()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Cross entropy."""
        self.clock.at(batch_idx)
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        if self.logs:
            self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def fit(folder: str, *, logs: bool = False, **arguments: Any) -> Mapping[str, float]:
    """This project."""
    module = Module(logs)
    pl.Trainer(
        accelerator="cpu", devices=2, max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, default_root_dir=folder, **arguments,
    ).fit(module, loader())  # fmt: skip
    return module.clock.figures()


def plain_loop(context: Any, beforehand: bool) -> dict[str, float]:
    """The loop that a user of plain PyTorch writes; with batches made beforehand, reading costs nothing."""
    model = nn.parallel.DistributedDataParallel(network())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    clock, batches = Clock(), loader()
    batches = loader(DistributedSampler(batches.dataset, shuffle=False))
    for index, (inputs, labels) in enumerate(list(batches) if beforehand else batches):
        clock.at(index)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
    return clock.figures()


def plain(folder: str, *, beforehand: bool) -> Mapping[str, float]:
    """Run the plain loop on the workers that a fit would take."""
    trainer = pl.Trainer(accelerator="cpu", devices=2, default_root_dir=folder)
    with pool.lease(trainer.plan.group) as group:
        figures: list[dict[str, float]] = group.run(plain_loop, beforehand)
    return figures[0]


def main() -> None:
    """Run all contenders."""
    question = "What does a step on two workers cost over plain DDP?"
    arguments = parse_arguments(question)
    logging.getLogger("orchestrator").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        contenders = {
            "plain DDP": lambda: plain(folder, beforehand=False),
            "plain DDP, batches beforehand": lambda: plain(folder, beforehand=True),
            "orchestrator": lambda: fit(folder),
            "orchestrator, a metric logged": lambda: fit(folder, logs=True),
            "orchestrator, max_failures=0": lambda: fit(folder, max_failures=0),
        }
        for contender in contenders.values():
            contender()
        rows = summarize(measure(contenders, ROUNDS), "plain DDP")
    pl.shutdown()
    report("ddp", question, rows, "plain DDP", arguments.json)


if __name__ == "__main__":
    main()
