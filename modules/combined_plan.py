"""How many samples each rank has in each batch, where a batch is made of one of each of several loaders.

Pure arithmetic over the members' own plans. A rank that has fewer batches of a member cycles through those
that it has, so the answer is exact for every rank and the same on all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modules.order import BatchPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class CombinedPlan:
    """The plan of several loaders read together; a sample of any member counts as one.

    Attributes:
        members: The members' plans; of the same ranks, and none without a batch on any of them.
        mode: min_size, max_size_cycle or max_size.
        world_size: Ranks.
    """

    members: tuple[BatchPlan, ...]
    mode: str
    world_size: int

    @property
    def num_batches(self) -> int:
        """Batches of the rank that has most."""
        return max(self.batches(rank) for rank in range(self.world_size))

    @property
    def first_uneven(self) -> int:
        """In all batches before this one, ranks have equally many samples."""
        found = [plan.first_uneven for plan in self.members if plan.first_uneven < plan.num_batches]
        return min([*found, self.num_batches])

    def batches(self, rank: int) -> int:
        """Batches that `rank` takes in the epoch."""
        chosen = min if self.mode == "min_size" else max
        return chosen(plan.batches(rank) for plan in self.members)

    def samples_in(self, rank: int, batches: int) -> int:
        """Samples in the first `batches` batches of `rank`, of all members together."""
        batches = min(batches, self.batches(rank))
        total = 0
        for plan in self.members:
            own = plan.batches(rank)
            passes, rest = divmod(batches, own) if self.mode == "max_size_cycle" else (0, batches)
            total += passes * plan.samples_in(rank, own) + plan.samples_in(rank, min(rest, own))
        return total

    def sizes(self, batch_idx: int) -> Sequence[int]:
        """Samples that each rank has in batch `batch_idx`, by rank; 0 where a rank has no such batch."""
        return [
            self.samples_in(rank, batch_idx + 1) - self.samples_in(rank, batch_idx)
            for rank in range(self.world_size)
        ]

    def samples_before(self, batch_idx: int) -> int:
        """Samples in all batches before `batch_idx`, over all ranks."""
        return sum(self.samples_in(rank, batch_idx) for rank in range(self.world_size))

    def batches_before(self, batch_idx: int) -> int:
        """Batches before `batch_idx` that have samples, over all ranks."""
        return sum(min(batch_idx, self.batches(rank)) for rank in range(self.world_size))
