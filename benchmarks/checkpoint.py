"""What a checkpoint of 1.2 GB costs a training loop, when it is on the disk, and how long going on from it
takes, beside torch's own functions in the same run.

The state is a model and Adam's moments: three tensors for each of its weights. The loop runs matmuls of some
milliseconds that leave the model alone. *stall* is the loop's extra time, against its median step without a
save, from the call until the file is complete; *call* is the call's own part of it, in seconds and in CPU
seconds of the loop's thread (on a machine that others use too only the latter says much); *durable* is the
time from the call to a file that is flushed to the disk. Loading is what a resume does: read the file, and
load model and optimizer. ``--small`` takes a sixth of the state.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from harness import measure, parse_arguments, report, summarize
from torch import nn

from modules.checkpoint.format import read
from modules.checkpoint.seal import damaged_part
from orchestrator.checkpoint.background import BackgroundSaves
from orchestrator.checkpoint.writer import write

ROUNDS = 3
WIDTH, LAYERS, SMALL_LAYERS = 4096, 6, 1


class State:
    """The model, its optimizer, and steps that have nothing to do with them."""

    def __init__(self, layers: int) -> None:
        self.model = nn.Sequential(*[nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers)])
        self.optimizer = torch.optim.Adam(self.model.parameters(), fused=True)
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.size_bytes = 3 * sum(item.numel() * 4 for item in self.model.parameters())
        self._square = torch.randn(700, 700)

    def content(self) -> dict[str, Any]:
        """What a checkpoint of it holds."""
        return {
            "state_dict": self.model.state_dict(),
            "optimizer_states": [self.optimizer.state_dict()],
            "epoch": 0,
        }

    def step(self) -> float:
        """Run a step and return its seconds."""
        began = time.perf_counter()
        for _ in range(2):
            self._square @ self._square
        return time.perf_counter() - began

    def load(self, content: Mapping[str, Any]) -> None:
        """Take `content` back."""
        self.model.load_state_dict(content["state_dict"])
        self.optimizer.load_state_dict(content["optimizer_states"][0])


Saver = Callable[[Path], Callable[[], None]]
"""Begins a save and returns what waits for its end."""


def saving(state: State, save: Saver, folder: Path) -> Callable[[], Mapping[str, float]]:
    """Return a contender: a save while the loop runs."""

    def contender() -> Mapping[str, float]:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        os.sync()
        usual = statistics.median(state.step() for _ in range(25))
        ended: list[float] = []
        began, busy = time.perf_counter(), time.thread_time()
        wait = save(folder / "a.ckpt")
        called, worked = time.perf_counter() - began, time.thread_time() - busy

        def watch() -> None:
            wait()
            ended.append(time.perf_counter() - began)

        watcher = threading.Thread(target=watch)
        watcher.start()
        extra = 0.0
        while watcher.is_alive():
            extra += state.step() - usual
        watcher.join()
        return {
            "stall_s": called + max(0.0, extra),
            "call_s": called,
            "call_cpu_s": worked,
            "durable_s": ended[0],
        }

    return contender


def torch_save(state: State, *, flushes: bool) -> Saver:
    """Return how torch saves."""

    def save(path: Path) -> Callable[[], None]:
        with open(path, "wb") as file:
            torch.save(state.content(), file)
            if flushes:
                file.flush()
                os.fsync(file.fileno())
        return lambda: None

    return save


def behind(state: State, saves: BackgroundSaves) -> Saver:
    """Return how the Trainer saves."""

    def save(path: Path) -> Callable[[], None]:
        begun = saves.begin(
            state.content(), str(path), lambda content, count: _write(content, path, count), lambda: None
        )
        return begun.wait

    return save


def _write(content: Any, path: Path, count: Callable[[int], None]) -> None:
    write(content, path, count)


def timed(function: Callable[[], object], metric: str) -> Callable[[], Mapping[str, float]]:
    """Return a contender: the seconds of a call."""

    def contender() -> Mapping[str, float]:
        began = time.perf_counter()
        function()
        return {metric: time.perf_counter() - began}

    return contender


def main() -> None:
    """Measure, print and save."""
    question = "What does a checkpoint of a model with Adam cost the loop, and going on from it?"
    arguments = parse_arguments(question, "--small")
    torch.set_num_threads(1)
    state = State(SMALL_LAYERS if arguments.small else LAYERS)
    with tempfile.TemporaryDirectory() as root:
        saves = BackgroundSaves(print)
        savers = {
            "torch.save": torch_save(state, flushes=False),
            "torch.save + fsync": torch_save(state, flushes=True),
            "orchestrator": behind(state, saves),
        }
        contenders = {name: saving(state, save, Path(root) / "c") for name, save in savers.items()}
        for contender in contenders.values():  # memory that is kept is taken at the first save
            contender()
        figures = measure(contenders, ROUNDS)
        saves.end()
        path = Path(root) / "load.ckpt"
        write(state.content(), path)
        loads = {
            "torch.load": timed(lambda: state.load(torch.load(path, weights_only=True)), "load_s"),
            "orchestrator": timed(lambda: state.load(read(path, verify=False)), "load_s"),
            "orchestrator, verification": timed(lambda: damaged_part(path), "verify_s"),
        }
        loaded = measure(loads, ROUNDS)
    rows = [*summarize(figures, "torch.save + fsync"), *summarize(loaded, "torch.load")]
    size = state.size_bytes / 1e9
    for row in rows:
        row["GB_per_s"] = size / row["median"] if row["metric"] != "stall_s" else None
        if row["metric"] == "stall_s":
            row["ratio"] = row["median"] / statistics.median(figures["torch.save"]["stall_s"])
    rate = size / statistics.median(loaded["orchestrator, verification"]["verify_s"])
    print(f"State: {size:.2f} GB; verified at {rate:.2f} GB/s; stall against torch.save without fsync.")
    report("checkpoint", question, rows, "torch", arguments.json)


if __name__ == "__main__":
    main()
