"""What a training step costs over the plain PyTorch loop, in one process on one thread, for a tiny model.

The data are ready tensors, so only the loop differs. CPU time of the thread, because it does not depend on
what else the machine does. Peer in the same run, when installed: Lightning with logger, checkpoints and
progress bar off.
"""

from __future__ import annotations

import importlib.util
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from harness import measure, parse_arguments, report, summarize
from torch import Tensor, nn

import orchestrator

STEPS, WARM, ROUNDS = 1500, 300, 7
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": 1,
    "max_epochs": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
}


class Batches:
    """The same few batches again and again."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self._batches = [
            (torch.randn(64, 784, generator=generator), torch.randint(0, 10, (64,), generator=generator))
            for _ in range(16)
        ]

    def __len__(self) -> int:
        return STEPS

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (self._batches[index % 16] for index in range(STEPS))


def network() -> nn.Module:
    """784-128-10."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))


def module_class(base: type[Any], metrics: int) -> type[Any]:
    """Return the module, for either library."""

    class Module(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = network()
            self.clock: list[float] = []

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if batch_idx in (WARM, STEPS - 1):
                self.clock.append(time.thread_time())
            loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
            for index in range(metrics):
                self.log(f"metric{index}", loss, on_step=True, on_epoch=True)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=1e-3)

    return Module


def plain() -> Mapping[str, float]:
    """The loop that a user of plain PyTorch writes."""
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    clock = []
    for index, (inputs, labels) in enumerate(Batches()):
        if index in (WARM, STEPS - 1):
            clock.append(time.thread_time())
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
    return {"cpu_us_a_step": (clock[1] - clock[0]) / (STEPS - 1 - WARM) * 1e6}


def ours(metrics: int) -> Mapping[str, float]:
    """This project."""
    with tempfile.TemporaryDirectory() as folder:
        module = module_class(orchestrator.LightningModule, metrics)()
        orchestrator.Trainer(**QUIET, default_root_dir=folder).fit(module, Batches())
    return {"cpu_us_a_step": (module.clock[1] - module.clock[0]) / (STEPS - 1 - WARM) * 1e6}


def lightning(metrics: int) -> Mapping[str, float]:
    """Lightning's Trainer on the same module."""
    import lightning.pytorch as peer

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        module = module_class(peer.LightningModule, metrics)()
        peer.Trainer(**QUIET, enable_model_summary=False, default_root_dir=folder).fit(module, Batches())
    return {"cpu_us_a_step": (module.clock[1] - module.clock[0]) / (STEPS - 1 - WARM) * 1e6}


def main() -> None:
    """Run all contenders."""
    question = "What does a step of a tiny model cost over the plain loop?"
    arguments = parse_arguments(question)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("orchestrator").setLevel(logging.ERROR)
    contenders: dict[str, Callable[[], Mapping[str, float]]] = {
        "plain PyTorch": plain,
        "orchestrator": lambda: ours(0),
        "orchestrator, 5 metrics": lambda: ours(5),
    }
    if importlib.util.find_spec("lightning") is not None:
        contenders["Lightning"] = lambda: lightning(0)
        contenders["Lightning, 5 metrics"] = lambda: lightning(5)
    for contender in contenders.values():
        contender()
    rows = summarize(measure(contenders, ROUNDS), "plain PyTorch")
    report("step", question, rows, "plain PyTorch", arguments.json)


if __name__ == "__main__":
    main()
