"""What is done when workers of a run are lost: decided here, in the driver, in one place.

A lost worker is fenced first: its process is killed if it can be, and its line to the driver is cut, so it
can do nothing any more in the run's name. Then the survivors are freed from collectives that wait for it, a
replacement takes its rank, and all form the next generation of the process group. Survivors keep their
processes. What the replacement must know it learns from them, which is the callable's business. A worker that
is lost while this goes on is replaced in the same way. When the budget is used up, or no replacement comes in
time, the loss is raised as it would have been without recovery.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cluster.errors import SpecError


@dataclass(slots=True, kw_only=True)
class RecoveryPolicy:
    """How much a run survives. The same object given to a second call goes on counting.

    Attributes:
        max_failures: Lost workers that are replaced; -1 for any number.
        wait_s: Seconds to wait for a replacement: a spare, or room for a new worker.
        failures: Those that were.
        min_workers: Go on without lost workers while so many are left; None replaces each.
        max_workers: With `min_workers`, take in so many at most; None for as many as at the start.
        room: With `min_workers`: asked again and again how many workers there may be at this moment, given
            how many there are or were asked for. Those above the start's number are called as it says so, and
            given back where it says less. None: `max_workers` are called at the start, and kept.

    Raises:
        SpecError: A value that cannot be.
    """

    max_failures: int = -1
    wait_s: float = 300.0
    failures: int = 0
    min_workers: int | None = None
    max_workers: int | None = None
    room: Callable[[int], int] | None = None

    def __post_init__(self) -> None:
        """Check both values."""
        if isinstance(self.max_failures, bool) or self.max_failures < -1:
            raise SpecError(f"max_failures={self.max_failures!r}. Use a number of failures, or -1 for any.")
        if not self.wait_s > 0:
            raise SpecError(f"wait_s={self.wait_s!r}. Give seconds, more than 0.")

    def take(self, lost: int) -> bool:
        """Count so many lost workers, or a lost connection between workers that are all there; return whether
        the run goes on.
        """
        self.failures += max(1, lost)
        return self.max_failures == -1 or self.failures <= self.max_failures


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """What was done about lost workers.

    Attributes:
        ranks: The ranks that have new processes.
        elastic: Lost ranks that are not among them are done without.
        causes: Why the old ones were lost, by rank.
        generation: The generation that all have formed.
        replaced_s: Seconds from the verdict until all members were told to form the generation.
    """

    ranks: tuple[int, ...]
    causes: dict[int, str]
    generation: int
    replaced_s: float
    elastic: bool = False

    def describe(self) -> str:
        """Return the story in one line."""
        lost = "; ".join(f"rank {rank}: {cause}" for rank, cause in sorted(self.causes.items()))
        if self.elastic:
            return (
                f"Lost {lost}. The others go on, after {self.replaced_s:.2f} s, generation {self.generation}."
            )
        return f"Lost {lost}. Replaced in {self.replaced_s:.2f} s, generation {self.generation}."
