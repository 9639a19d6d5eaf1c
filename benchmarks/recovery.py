"""From the kill of a worker to the next committed optimizer step, on three ranks with a spare that stands by,
for weights of several sizes.

A rank kills itself at a step of its own choice, in the middle of the forward pass; the clock runs on rank 0,
whose machine is the same. The spare has had time to come up before each kill. What it costs a step to survive
losses, when none happens, is measured by ``ddp.py``.
"""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from harness import measure, parse_arguments, report, summarize
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import orchestrator as pl
from cluster import pool, session

ROUNDS = 3
SIZES = {"1 MB": 250_000, "100 MB": 25_000_000, "1 GB": 250_000_000}
STEPS, KILL_AT = 60, 40
PAUSE_S = 0.4
FIRST = "killed with 1 MB"


class Net(pl.LightningModule):
    """So many weights; dies once in the middle of a step, where a file does not say that it has."""

    def __init__(self, weights: int, mark: Path) -> None:
        super().__init__()
        self.net = nn.Linear(64, 10)
        self.bulk = nn.Parameter(torch.zeros(weights), requires_grad=False)  # state, but no load on each step
        self.mark = mark

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Cross entropy."""
        if not KILL_AT - 2 < batch_idx <= KILL_AT:  # the retried step is no part of the pause
            time.sleep(PAUSE_S)
        if self.trainer.global_rank == 1 and batch_idx == KILL_AT and not self.mark.exists():
            self.mark.write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Clock(pl.Callback):
    """Notes when each step was committed."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
        """Rank 0 writes the time."""
        if trainer.is_global_zero:
            with open(self.file, "a", encoding="utf-8") as file:
                file.write(f"{time.time()}\n")


def run(weights: int, folder: str) -> tuple[float, list[float]]:
    """Train, and return when the kill was and when the steps were committed."""
    here = Path(tempfile.mkdtemp(dir=folder))
    data = DataLoader(TensorDataset(torch.randn(STEPS * 24, 64), torch.randint(0, 10, (STEPS * 24,))), 8)
    trainer = pl.Trainer(
        accelerator="cpu", devices=3, resources_per_worker={"CPU": 0.3}, max_epochs=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=here, callbacks=[Clock(here / "steps")], spares=1,
    )  # fmt: skip
    trainer.fit(Net(weights, here / "mark"), data)
    times = [float(line) for line in (here / "steps").read_text(encoding="utf-8").splitlines()]
    return float((here / "mark").read_text(encoding="utf-8")), times


def recover(weights: int, folder: str) -> Callable[[], Mapping[str, float]]:
    """Return a contender: a fit in which a worker is killed."""

    def contender() -> Mapping[str, float]:
        killed, times = run(weights, folder)
        return {"kill_to_commit_s": times[KILL_AT] - killed}

    return contender


def main() -> None:
    """Measure, print and save."""
    question = "How long from the kill of one of three workers to the next committed step?"
    arguments = parse_arguments(question)
    logging.getLogger("orchestrator").setLevel(logging.ERROR)
    session.connect()
    with tempfile.TemporaryDirectory() as folder:
        contenders = {f"killed with {name}": recover(size, folder) for name, size in SIZES.items()}
        figures = measure(contenders, ROUNDS)
    pool.end()
    report("recovery", question, summarize(figures, FIRST), FIRST, arguments.json)


if __name__ == "__main__":
    main()
