"""What a sweep costs beyond training: 16 trials of up to 5 epochs with ASHA, two at a time; and 100 short
ones.

Each trial trains a network of one hidden layer (learning rate and width differ) on 50,000 rows of 784
numbers, batch 128, with one validation an epoch. Peer in the same run: Ray Tune's class trainable with
``reuse_actors`` and a plain PyTorch loop, the quickest that Tune has. Overhead is wall time less training
time over two.

Every trial notes how long it trained, in a file; all epochs that were really trained count.

    python benchmarks/sweep.py                  # both, twice
    python benchmarks/sweep.py --many           # 100 trials of 20 steps
    python benchmarks/sweep.py --freed          # from a stop to freed room, in one process and on workers
    python benchmarks/sweep.py --memory         # what 1,000 trials leave in the driver
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import ray
import torch
from harness import measure, parse_arguments, report, summarize
from ray import tune
from ray.train import ScalingConfig
from ray.tune.schedulers import ASHAScheduler
from torch import Tensor, nn

import orchestrator as pl
from cluster import session

ROUNDS = 2
EPOCHS, BATCH, ROWS, VALIDATION = 5, 128, 50_000, 10_000
RATES = [1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2]
CONFIGS = [{"rate": rate, "width": width} for width in (64, 128) for rate in RATES]


def table() -> pl.SharedTable:
    """Rows that a small network can learn a little of, the same in every run."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.rand(ROWS + VALIDATION, 784, generator=generator)
    labels = (rows @ torch.randn(784, 10, generator=generator)).argmax(dim=1)
    return pl.SharedTable({"x": rows, "y": labels})


def network(width: int) -> nn.Sequential:
    """One hidden layer."""
    return nn.Sequential(nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 10))


class Batches:
    """Shuffled batches for training, one batch for validation."""

    def __init__(self, data: pl.SharedTable, shuffled: bool) -> None:
        columns = data.columns
        kept = slice(ROWS) if shuffled else slice(ROWS, None)
        self.x, self.y, self.shuffled = columns["x"][kept], columns["y"][kept], shuffled

    def __len__(self) -> int:
        return -(-len(self.x) // BATCH) if self.shuffled else 1

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if not self.shuffled:
            yield self.x, self.y
            return
        for index in torch.randperm(len(self.x)).split(BATCH):
            yield self.x.index_select(0, index), self.y.index_select(0, index)


class Net(pl.LightningModule):
    """Notes how long each epoch took, validation included."""

    def __init__(self, rate: float, width: int, data: pl.SharedTable, notes: str) -> None:
        super().__init__()
        self.rate, self.data, self.notes = rate, data, notes
        self.net = network(width)

    def train_dataloader(self) -> Batches:
        """Shuffled."""
        return Batches(self.data, True)

    def val_dataloader(self) -> Batches:
        """All at once."""
        return Batches(self.data, False)

    def on_train_epoch_start(self) -> None:
        """Take the time."""
        self.began = time.perf_counter()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross entropy."""
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """The loss by which trials are compared, and the end of the epoch's time."""
        self.log("loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))
        note(self.notes, time.perf_counter() - self.began)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.rate)


def note(path: str, seconds: float) -> None:
    """Append one epoch's time; a short line at once, so that processes do not mix theirs."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(f"{seconds:.6f}\n")


def asha() -> ASHAScheduler:
    """Stops after one report and after three."""
    return ASHAScheduler(max_t=EPOCHS + 1, grace_period=1, reduction_factor=3)


def figures(wall: float, notes: str, trials: int) -> Mapping[str, float]:
    """Wall time, epochs trained, and what a trial cost beyond them, with two at a time."""
    epochs = [float(line) for line in Path(notes).read_text(encoding="utf-8").split()]
    overhead = wall - sum(epochs) / 2
    return {"wall_s": wall, "epochs": float(len(epochs)), "overhead_per_trial_s": 2 * overhead / trials}


def ours(folder: str, data: pl.SharedTable) -> Mapping[str, float]:
    """A Sweep."""
    notes = tempfile.mktemp(dir=folder)

    def train(config: dict[str, Any]) -> None:
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=EPOCHS,
            logger=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
        trainer.fit(Net(data=data, notes=notes, **config["c"]))

    began = time.time()
    pl.Sweep(
        train, {"c": tune.grid_search(CONFIGS)}, metric="loss", scheduler=asha(), max_concurrent_trials=2,
        storage_path=folder, save_checkpoints=False, verbose=False,
    ).run()  # fmt: skip
    return figures(time.time() - began, notes, len(CONFIGS))


def class_trainable(folder: str, data: pl.SharedTable) -> Mapping[str, float]:
    """Ray Tune's class trainable that takes the next configuration over in the same process."""
    notes = tempfile.mktemp(dir=folder)

    class Trial(tune.Trainable):  # type: ignore[misc]
        def setup(self, config: dict[str, Any]) -> None:
            torch.set_num_threads(1)
            self.reset_config(config)

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            config = new_config["c"]
            self.net = network(config["width"])
            self.optimizer = torch.optim.Adam(self.net.parameters(), lr=config["rate"])
            return True

        def step(self) -> dict[str, float]:
            began = time.perf_counter()
            for x, y in Batches(data, True):
                nn.functional.cross_entropy(self.net(x), y).backward()
                self.optimizer.step()
                self.optimizer.zero_grad()
            ((x, y),) = Batches(data, False)
            with torch.no_grad():
                loss = nn.functional.cross_entropy(self.net(x), y).item()
            note(notes, time.perf_counter() - began)
            return {"loss": loss, "done": self.iteration + 1 >= EPOCHS}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            return None

        def load_checkpoint(self, checkpoint: Any) -> None:
            return None

    began = time.time()
    tune.Tuner(
        tune.with_resources(Trial, {"cpu": 1}),
        param_space={"c": tune.grid_search(CONFIGS)},
        tune_config=tune.TuneConfig(
            metric="loss", mode="min", scheduler=asha(), max_concurrent_trials=2, reuse_actors=True
        ),
        run_config=tune.RunConfig(storage_path=folder, name=f"peer-{time.time_ns()}", verbose=0),
    ).fit()
    return figures(time.time() - began, notes, len(CONFIGS))


def short(epochs: int, devices: int, quality: float) -> None:
    """A training of a few steps."""

    class Small(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(4, 1)

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return self.net(batch[0]).square().mean()

        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            self.log("loss", quality, sync_dist=True)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    rows = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(8, 4)), batch_size=4)
    trainer = pl.Trainer(
        accelerator="cpu", devices=devices, max_epochs=epochs, logger=False, num_sanity_val_steps=0
    )
    trainer.fit(Small(), rows, rows)


class StopThird(tune.Stopper):  # type: ignore[misc]
    """Ends each trial at its third report, and notes when."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Decide."""
        stops = bool(result["training_iteration"] == 3)
        if stops:
            self.times.append(time.monotonic())
        return stops

    def stop_all(self) -> bool:
        """No."""
        return False


def freed(folder: str, workers: int) -> Mapping[str, float]:
    """Seconds from the decision to stop a trial until Ray has its room again; two trials, one by one."""
    watched, removed = threading.Event(), []

    def watch() -> None:
        known: set[str] = set()
        while not watched.is_set():
            for key, group in ray.util.placement_group_table().items():
                if group["state"] == "CREATED":
                    known.add(key)
                elif group["state"] == "REMOVED" and key in known:
                    known.remove(key)
                    removed.append(time.monotonic())
            time.sleep(0.005)

    stopper = StopThird()
    watcher = threading.Thread(target=watch)
    watcher.start()
    resources: Any = {"CPU": 1}
    if workers > 1:
        resources = ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 0.5})
    try:
        pl.Sweep(
            lambda config: short(9, workers, config["quality"]), {"quality": tune.grid_search([0.1, 0.2])},
            metric="loss", stop=stopper, resources_per_trial=resources, storage_path=folder,
            save_checkpoints=False, verbose=False,
        ).run()  # fmt: skip
        time.sleep(0.5)
    finally:
        watched.set()
        watcher.join()
    waits = [after - before for before, after in zip(sorted(stopper.times), sorted(removed), strict=True)]
    return {"freed_s": max(waits)}


class Resident(tune.Callback):  # type: ignore[misc]
    """Notes the driver's memory as trials end."""

    def __init__(self) -> None:
        self.bytes: list[int] = []

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Look."""
        self.bytes.append(psutil.Process().memory_info().rss)


def memory(folder: str) -> Mapping[str, float]:
    """MiB that the driver grows by from the 100th to the 1,000th trial, for 100 trials."""
    seen = Resident()
    pl.Sweep(
        lambda config: short(1, 1, config["quality"]), {"quality": tune.uniform(0.0, 1.0)}, metric="loss",
        num_samples=1000, max_concurrent_trials=2, run_config=tune.RunConfig(callbacks=[seen]),
        storage_path=folder, save_checkpoints=False, verbose=False,
    ).run()  # fmt: skip
    return {"grown_mib_per_100_trials": (seen.bytes[-1] - seen.bytes[99]) / 9 / 2**20}


def many(folder: str) -> Mapping[str, float]:
    """A hundred trials of 20 steps."""

    def train(config: dict[str, Any]) -> None:
        rows = torch.rand(20 * 8, 784)
        data = pl.SharedTable({"x": rows, "y": torch.randint(0, 10, (len(rows),))})

        class Short(Net):
            def train_dataloader(self) -> Any:
                columns = self.data.columns
                return list(zip(columns["x"].split(8), columns["y"].split(8), strict=True))

            def val_dataloader(self) -> Any:
                return self.train_dataloader()[:1]

        trainer = pl.Trainer(accelerator="cpu", max_epochs=1, logger=False, num_sanity_val_steps=0)
        trainer.fit(Short(config["rate"], 16, data, os.devnull))

    began = time.time()
    pl.Sweep(
        train, {"rate": tune.loguniform(1e-5, 1e-1)}, metric="loss", num_samples=100, max_concurrent_trials=2,
        storage_path=folder, save_checkpoints=False, verbose=False,
    ).run()  # fmt: skip
    wall = time.time() - began
    return {"wall_s": wall, "per_trial_s": wall / 100}


def main() -> None:
    """Run all contenders."""
    question = "What does a sweep cost beyond training?"
    arguments = parse_arguments(question, "--many", "--freed", "--memory")
    logging.getLogger("orchestrator").setLevel(logging.ERROR)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    session.connect()
    ray.get(ray.remote(lambda: None).remote())
    with tempfile.TemporaryDirectory() as folder:
        against, rounds, name = "orchestrator", 1, "sweep"
        contenders: dict[str, Any]
        if arguments.many:
            contenders, name = {against: lambda: many(folder)}, "sweep-many"
            question = "How long do 100 short trials take?"
        elif arguments.memory:
            contenders, name = {against: lambda: memory(folder)}, "sweep-memory"
            question = "What do 1,000 trials leave in the driver?"
        elif arguments.freed:
            question = "How long from the stop of a trial to freed room?"
            against, rounds, name = "in one process", ROUNDS, "sweep-freed"
            contenders = {against: lambda: freed(folder, 1), "on two workers": lambda: freed(folder, 2)}
        else:
            data = table()
            contenders = {
                "Tune's class trainable": lambda: class_trainable(folder, data),
                "orchestrator": lambda: ours(folder, data),
            }
            against, rounds = "Tune's class trainable", ROUNDS
        rows = summarize(measure(contenders, rounds), against)
    pl.shutdown()
    report(name, question, rows, against, arguments.json)


if __name__ == "__main__":
    main()
