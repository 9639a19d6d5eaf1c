"""Gives batch normalization the statistics of the weights that a module has now, where these were averaged.

One pass over the training data without gradients, by the training step itself; every running mean and
variance is the plain mean over the batches. Rank 0's statistics become those of all ranks, as under DDP. What
the step logs is not recorded. Whatever the step raises goes on to the caller.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from orchestrator.step_parts import training_step_arguments

if TYPE_CHECKING:
    from orchestrator.engine import Engine


def has_batch_norm(module: nn.Module) -> bool:
    """Whether `module` has a layer with running statistics."""
    return bool(_layers(module))


def refresh_batch_norm(engine: Engine) -> None:
    """Compute the running statistics of the engine's module anew. All ranks call it together."""
    module, feed, transfer = engine.module, engine.feed, engine.transfer
    layers = _layers(module)
    if feed is None or not layers:
        return
    momenta = [layer.momentum for layer in layers]
    takes_index = training_step_arguments(module) == 2
    sink = module.__dict__["_log_sink"]
    module.__dict__["_log_sink"] = lambda *arguments: None
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the mean over all batches
    try:
        feed.start(engine.state.epoch)
        batch_idx = 0
        with torch.no_grad():
            while feed.advance():
                if feed.has_batch:
                    batch = feed.batch if transfer is None else transfer(feed.batch, 0)
                    arguments = (batch, batch_idx) if takes_index else (batch,)
                    if engine.precision.autocast is None:
                        module.training_step(*arguments)
                    else:
                        with engine.precision.autocast:
                            module.training_step(*arguments)
                batch_idx += 1
                if feed.is_last:
                    break
    finally:
        feed.close()
        module.__dict__["_log_sink"] = sink
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
    if engine.strategy.world_size > 1:
        buffers = [buffer for layer in layers for buffer in layer.buffers(recurse=False)]
        kept = engine.strategy.broadcast([buffer.cpu() for buffer in buffers])
        for buffer, value in zip(buffers, kept, strict=True):
            buffer.copy_(value)


def _layers(module: nn.Module) -> list[_BatchNorm]:
    return [
        item for item in module.modules() if isinstance(item, _BatchNorm) and item.running_mean is not None
    ]
