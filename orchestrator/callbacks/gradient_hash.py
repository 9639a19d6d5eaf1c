"""Logs a hash of all gradients at log points, so that a run can be compared with its replay to the last bit.

The hash is a number of 24 bits, which every logger keeps exactly: two gradients that differ have the same one
once in 17 million times. It is taken before the optimizer steps, after reduction over ranks and before
clipping, and reads every gradient from its device: a step that is logged waits for that, others do not.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import torch

from orchestrator.callbacks.callback import Callback

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from modules.module import LightningModule
    from orchestrator.trainer import Trainer

_BITS = 0xFFFFFF


class GradientHash(Callback):
    """Logs ``gradient_hash``; `orchestrator replay` compares it like any number of the run.

    Args:
        name: What it is called in the loggers.
    """

    def __init__(self, name: str = "gradient_hash") -> None:
        self.name = name

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Hash the gradients where this step is a log point."""
        if (trainer.state.windows + 1) % trainer.log_every_n_steps == 0:
            self.log(self.name, float(hash_of(pl_module)), on_step=True, on_epoch=False, batch_size=1)


def hash_of(module: torch.nn.Module) -> int:
    """Return 24 bits that depend on every bit of every gradient, and on the names of the weights.

    Args:
        module: Gradients that are not there count as such.
    """
    found = 0
    for name, parameter in module.named_parameters():
        found = zlib.crc32(name.encode(), found)
        gradient = parameter.grad
        if gradient is not None:
            data = gradient.detach().contiguous().cpu().view(-1).view(torch.uint8)
            found = zlib.crc32(data.numpy().tobytes(), found)
    return found & _BITS
