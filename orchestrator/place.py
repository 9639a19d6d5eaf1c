"""Where an engine runs: which rank of how many, on what device, and how it speaks to the driver.

The same in the driver's own process and on a worker, so that nothing below needs to ask which it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch


def _silence(event: object) -> None:
    """Drop an event: nobody listens."""


def _no_answer(question: object) -> object:
    """Answer None: nobody is asked."""
    return None


class Peers(Protocol):
    """What a rank needs of the group to go on after the loss of another.

    Attributes:
        joining: This rank replaces one that was lost, and has met nobody yet.
        generation: The number of the process group.
        members: The numbers of its processes, in its order.
    """

    joining: bool

    @property
    def generation(self) -> int:
        """The number of the process group."""
        ...

    @property
    def members(self) -> tuple[int, ...]:
        """The numbers of its processes, in its order."""
        ...

    def move(self, generation: int, members: Sequence[int]) -> int:
        """Leave a process group that is whole for another, which all its members form."""
        ...

    def is_broken(self, error: BaseException) -> bool:
        """Whether an exception comes of the loss of a peer."""
        ...

    def rejoin(self) -> int:
        """Leave the broken process group and form the next one with the replacements."""
        ...

    def hand_over(self, number: int, data: bytes) -> None:
        """Give what this rank alone knows to its holder, and wait for what this rank holds for others."""
        ...

    def held(self) -> dict[int, dict[int, bytes]]:
        """Return what this rank holds for others: by rank, then by number."""
        ...

    def note_progress(self, count: int) -> None:
        """Say how far this rank has come: a growing count."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One rank's place.

    Attributes:
        rank: This process among all.
        world_size: Ranks: processes, or logical ranks where there are such.
        logical_ranks: How many share the mathematics under ``strategy="elastic"``; None under others.
        grouped: There is a process group.
        local_rank: This process among those of its node.
        node_rank: Its node among all.
        num_nodes: Nodes.
        device: Where the module lives.
        keeps: The result stays in this process, rather than going to another one from rank 0.
        emit: Send an event to the driver without waiting.
        ask: Send a question to the driver and wait for its answer.
        told: What the driver has said meanwhile, by name.
        standing: Makes what `emit` tells the driver after a checkpoint; None where there is no other driver.
        peers: How to go on after the loss of another rank; None where a loss ends the run.
        joins: This rank takes the place of one that was lost.
        pickler: Pickles what a loader's worker processes get; None for torch's own way.
    """

    rank: int = 0
    world_size: int = 1
    logical_ranks: int | None = None
    grouped: bool = False
    local_rank: int = 0
    node_rank: int = 0
    num_nodes: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    keeps: bool = False
    emit: Callable[[object], None] = _silence
    ask: Callable[[object], object] = _no_answer
    told: dict[str, object] = field(default_factory=dict)
    standing: Callable[[Any, Any], object] | None = None
    peers: Peers | None = None
    joins: bool = False
    pickler: type[Any] | None = None
