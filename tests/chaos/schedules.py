"""Schedules of faults, drawn from a seed: what happens to which process or node, and at which step. Pure."""

from __future__ import annotations

import random
from dataclasses import dataclass

KINDS = ("kill", "freeze", "cut", "kill a node")
"""A worker's process is killed, or stopped; a node's link is cut and mended; all of a node's workers go."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that happens.

    Attributes:
        step: When the first process has made so many steps.
        kind: One of `KINDS`.
        target: Of those that can be hit, in order of their numbers; counted round.
    """

    step: int
    kind: str
    target: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A run, and what happens to it.

    Attributes:
        seed: That it was drawn from.
        workers: Processes at the start.
        most: Processes that are taken in at most: those beyond the start come when there is room.
        logical_ranks: V.
        optimizer: ``sgd``, with momentum, or ``adamw``.
        accumulate: Batches that make a step.
        logs: The module logs; else all that processes know alone is their place.
        faults: In order.
    """

    seed: int
    workers: int
    most: int
    logical_ranks: int
    optimizer: str
    accumulate: int
    logs: bool
    faults: tuple[Fault, ...]

    def describe(self) -> str:
        """Return all of it in one line."""
        faults = "; ".join(f"{item.kind} {item.target} at step {item.step}" for item in self.faults)
        silent = "" if self.logs else ", nothing logged"
        return (
            f"seed {self.seed}: {self.workers} workers, at most {self.most}, V={self.logical_ranks}, "
            f"{self.optimizer}, {self.accumulate} accumulated{silent}; {faults or 'no fault'}"
        )


def draw(seed: int, *, steps: int = 24, nodes: int = 4) -> Schedule:
    """Return the schedule of a seed, for a run of so many steps on so many nodes."""
    chance = random.Random(seed)
    workers = chance.randint(1, nodes)
    most = chance.randint(workers, nodes)
    at = sorted(chance.sample(range(3, steps - 4), chance.randint(0 if most > workers else 1, 3)))
    return Schedule(
        seed=seed,
        workers=workers,
        most=most,
        logical_ranks=chance.choice((6, 8)),
        optimizer=chance.choice(("sgd", "adamw")),
        accumulate=chance.choice((1, 2)),
        faults=tuple(Fault(step=step, kind=chance.choice(KINDS), target=chance.randrange(8)) for step in at),
        logs=chance.random() < 0.8,
    )
