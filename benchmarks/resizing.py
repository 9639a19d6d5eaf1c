"""What it costs an elastic run that processes go, come, and are slow.

*Losses*: three processes host six logical ranks; again and again the last one is killed in the middle of a
step, and a new one comes. From each kill to the next commit, and the wait for a commit at each arrival, by
the side of the usual step. Nobody is waited for, so neither depends on how long a process takes to come up.

*Slow*: three processes host 24 logical ranks, each of which takes 5 ms, or 15 ms in one of the processes. The
best whole numbers of logical ranks make a step of 55 ms. Beside it a run whose processes are alike, and whose
step is as long.
"""

from __future__ import annotations

import logging
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from harness import measure, parse_arguments, report, summarize
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import orchestrator as pl
from cluster import pool, session
from orchestrator.strategies import ElasticStrategy

ROUNDS = 3
KILLS, STEP_S, CALM_S = 12, 0.05, 1.0
FAST_S, SLOW_S, RANKS = 0.005, 0.015, 24
BEST_S = min(
    max(slow * SLOW_S, -(-(RANKS - slow) // 2) * FAST_S) for slow in range(RANKS)
)  # the other two share the rest
WATCHED = 20
"""Steps in which the layout is found, and steps that count."""


class Net(pl.LightningModule):
    """A small network, with what all tell of themselves in a folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.net, self.folder = nn.Linear(64, 10), folder

    def loss(self, batch: list[Tensor]) -> Tensor:
        """Cross entropy."""
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def on_train_batch_end(self, *args: Any) -> None:
        """The first process writes when a step was committed, and how many took part."""
        if dist.get_rank() == 0:
            self.write("steps", f"{time.time()} {dist.get_world_size()}")

    def write(self, name: str, line: str) -> None:
        """Append to a file of the folder."""
        with open(self.folder / name, "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def read(self, name: str) -> list[list[float]]:
        """Return the numbers in a file of the folder."""
        path = self.folder / name
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [[float(number) for number in line.split()] for line in lines]


class Mortal(Net):
    """Its last process dies, when all three have been there for a while; so many times."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Cross entropy."""
        time.sleep(STEP_S / 6)
        if dist.get_world_size() == 3 and dist.get_rank() == 2:
            kills, steps = self.read("kills"), self.read("steps")
            full = [at for at, processes in steps[-int(CALM_S / STEP_S) :] if processes == 3]
            if len(kills) < KILLS and len(full) == int(CALM_S / STEP_S):
                self.write("kills", f"{time.time()}")
                os.kill(os.getpid(), signal.SIGKILL)
        if len(self.read("kills")) == KILLS and dist.get_world_size() == 3:
            self.trainer.should_stop = True
        return self.loss(batch)


class Uneven(Net):
    """One process is slow, or all are alike."""

    def __init__(self, folder: Path, alike: bool) -> None:
        super().__init__(folder)
        self.alike = alike

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Cross entropy."""
        slow = SLOW_S if dist.get_rank() == 2 else FAST_S
        time.sleep(BEST_S / (RANKS / 3) if self.alike else slow)
        return self.loss(batch)


def fit(module: Net, logical_ranks: int, steps: int) -> None:
    """Train on three processes of a part of a CPU each."""
    rows = steps * logical_ranks
    data = TensorDataset(torch.randn(rows, 64), torch.randint(0, 10, (rows,)))
    pl.Trainer(
        accelerator="cpu", devices=3, resources_per_worker={"CPU": 0.3}, max_epochs=1, logger=False,
        strategy=ElasticStrategy(logical_ranks=logical_ranks, min_workers=1), max_failures=-1,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=module.folder,
    ).fit(module, DataLoader(data, batch_size=1))  # fmt: skip


def losses(folder: str) -> Mapping[str, list[float]]:
    """Return what kills and arrivals cost, and the usual step, in seconds."""
    module = Mortal(Path(tempfile.mkdtemp(dir=folder)))
    fit(module, logical_ranks=6, steps=20_000)
    steps, kills = module.read("steps"), [at for (at,) in module.read("kills")]
    return {
        "kill_to_commit_s": [min(at for at, _ in steps if at > kill) - kill for kill in kills],
        "wait_at_arrival_s": [
            later[0] - sooner[0] for sooner, later in pairwise(steps) if later[1] > sooner[1]
        ],
        "step_s": [later[0] - sooner[0] for sooner, later in pairwise(steps) if later[1] == sooner[1] == 3],
    }


def slow(folder: str, *, alike: bool) -> Mapping[str, float]:
    """Return the step behind those in which the layout is found."""
    module = Uneven(Path(tempfile.mkdtemp(dir=folder)), alike)
    fit(module, RANKS, 2 * WATCHED + 1)
    times = [at for at, _ in module.read("steps")][WATCHED:]
    return {"step_ms": 1000 * statistics.median(later - sooner for sooner, later in pairwise(times))}


def main() -> None:
    """Measure, print and save."""
    question = "What do lost, new and slow processes cost an elastic run?"
    arguments = parse_arguments(question)
    logging.getLogger("orchestrator").setLevel(logging.ERROR)
    session.connect()
    with tempfile.TemporaryDirectory() as folder:
        churn = losses(folder)
        uneven = measure(
            {
                "processes alike": lambda: slow(folder, alike=True),
                "one at a third of the speed": lambda: slow(folder, alike=False),
            },
            ROUNDS,
        )
    pool.end()
    rows = [
        *summarize({"processes killed": churn}, "processes killed"),
        *summarize(uneven, "processes alike"),
    ]
    for row in rows[: len(churn)]:
        row["ratio"] = None
        print(f"{row['metric']}: all of {row['runs']} within {row['max']:.3f} s")
    report("resizing", question, rows, "processes alike", arguments.json)


if __name__ == "__main__":
    main()
