"""Where an engine runs: which rank of how many, on what device, and how it speaks to the driver.

The same in the driver's own process and on a worker, so that nothing below needs to ask which it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch


def _silence(event: object) -> None:
    """Drop an event: nobody listens."""


def _no_answer(question: object) -> object:
    """Answer None: nobody is asked."""
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One rank's place.

    Attributes:
        rank: This process among all.
        world_size: Processes.
        local_rank: This process among those of its node.
        node_rank: Its node among all.
        num_nodes: Nodes.
        device: Where the module lives.
        keeps: The result stays in this process, rather than going to another one from rank 0.
        emit: Send an event to the driver without waiting.
        ask: Send a question to the driver and wait for its answer.
        told: What the driver has said meanwhile, by name.
        standing: Makes what `emit` tells the driver after a checkpoint; None where there is no other driver.
        pickler: Pickles what a loader's worker processes get; None for torch's own way.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    node_rank: int = 0
    num_nodes: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    keeps: bool = False
    emit: Callable[[object], None] = _silence
    ask: Callable[[object], object] = _no_answer
    told: dict[str, object] = field(default_factory=dict)
    standing: Callable[[Any, Any], object] | None = None
    pickler: type[Any] | None = None
