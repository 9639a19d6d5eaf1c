"""What logical ranks cost: a step of ``elastic`` beside one of ``ddp``, and the exchange beside an
all-reduce.

A transformer of 10 M parameters on two workers of one machine, each logical rank with one batch, so that both
strategies do the same work; then the tree reduction of 10 M numbers alone, where each process hosts one
logical rank and where it hosts several.
"""

from __future__ import annotations

import logging
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from harness import measure, parse_arguments, report, summarize
from torch.utils.data import DataLoader, TensorDataset

import orchestrator as pl
from cluster import pool, session
from cluster.layout import spread
from cluster.tree_reduce import TreePlan, TreeSum
from modules.models.gpt import ByteGPT
from orchestrator.strategies import ElasticStrategy

ROUNDS = 3
WORKERS, STEPS, REPEATS, NUMBERS = 2, 12, 15, 10_000_000


class Clock(pl.Callback):
    """Notes when each step was committed."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
        """The first process writes the time."""
        if trainer.is_global_zero:
            with open(self.file, "a", encoding="utf-8") as file:
                file.write(f"{time.perf_counter()}\n")


def step_of(strategy: Any, folder: str) -> Callable[[], Mapping[str, float]]:
    """Return a contender: the steps of a fit."""

    def contender() -> Mapping[str, float]:
        here = Path(tempfile.mkdtemp(dir=folder))
        pl.seed_everything(1, verbose=False)
        tokens = torch.randint(0, 256, (WORKERS * STEPS * 2, 65))
        module = ByteGPT(context=64, layers=6, heads=6, width=384)
        trainer = pl.Trainer(
            accelerator="cpu", devices=WORKERS, strategy=strategy, max_epochs=1, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=here, callbacks=[Clock(here / "steps")], threads_per_worker=1, max_failures=0,
        )  # fmt: skip
        trainer.fit(module, DataLoader(TensorDataset(tokens), batch_size=2, collate_fn=_inputs))
        times = [float(line) for line in (here / "steps").read_text(encoding="utf-8").splitlines()]
        return {"step_ms": 1000 * statistics.median(later - sooner for sooner, later in pairwise(times[2:]))}

    return contender


def _inputs(samples: list[Any]) -> Any:
    return torch.stack([item[0] for item in samples])


def exchange(logical_ranks: int | None) -> Callable[[], Mapping[str, float]]:
    """Return a contender: the reduction of 10 M numbers over so many logical ranks; None for an "
    "all-reduce."""

    def contender() -> Mapping[str, float]:
        context = processes.get_context("spawn")
        results: Any = context.SimpleQueue()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        started = [
            context.Process(target=_exchange, args=(rank, logical_ranks, port, results))
            for rank in range(WORKERS)
        ]
        for process in started:
            process.start()
        seconds = [results.get() for _ in started]
        for process in started:
            process.join()
        return {"exchange_ms": 1000 * max(seconds)}

    return contender


def _exchange(rank: int, logical_ranks: int | None, port: int, results: Any) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", rank=rank, world_size=WORKERS)
    seconds = []
    if logical_ranks is not None:
        layout = spread(logical_ranks, WORKERS)
        tree = TreeSum(TreePlan.of(layout), rank, NUMBERS, dtype=torch.float32, device=torch.device("cpu"))
    vector = torch.ones(NUMBERS)
    for _ in range(REPEATS):
        if logical_ranks is None:
            dist.barrier()
            began = time.perf_counter()
            dist.all_reduce(vector)
            vector /= WORKERS
        else:
            for hosted in layout[rank]:
                tree.add(hosted, tree.vector().fill_(1.0))
            dist.barrier()
            began = time.perf_counter()
            tree.finish(float(logical_ranks))
        seconds.append(time.perf_counter() - began)
    results.put(statistics.median(seconds))
    dist.destroy_process_group()


def main() -> None:
    """Measure, print and save."""
    question = "What do logical ranks cost beside plain data parallelism?"
    arguments = parse_arguments(question)
    logging.getLogger("orchestrator").setLevel(logging.ERROR)
    alone = measure(
        {"all-reduce": exchange(None), "tree, V=2": exchange(2), "tree, V=6": exchange(6)}, ROUNDS
    )
    session.connect()
    with tempfile.TemporaryDirectory() as folder:
        steps = measure(
            {
                "ddp": step_of("ddp", folder),
                "elastic, V=2": step_of(ElasticStrategy(logical_ranks=WORKERS), folder),
            },
            ROUNDS,
        )
    pool.end()
    rows = [*summarize(alone, "all-reduce"), *summarize(steps, "ddp")]
    report("elastic", question, rows, "ddp and all-reduce", arguments.json)


if __name__ == "__main__":
    main()
