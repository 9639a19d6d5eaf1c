"""Notes which samples each batch of a DataLoader is made of, while it is read.

The noting sampler passes on what the loader's own yields, unchanged and in its order, so reading draws the
same random numbers. A loader that batches nothing, or reads a stream, has no such sampler and gives no notes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import Sampler

from modules.sampler import tell_epoch


class NotedBatches(Sampler[list[Any]]):
    """Yields what a batch sampler yields, and keeps it.

    Args:
        source: The batch sampler.

    Attributes:
        notes: The sample ids of each batch that was asked for in the present iteration.
    """

    def __init__(self, source: Any) -> None:
        self.source = source
        self.notes: list[list[Any]] = []

    def set_epoch(self, epoch: int) -> None:
        """Tell the batch sampler, and the sampler in it, which epoch the next iteration reads."""
        for target in (self.source, getattr(self.source, "sampler", None)):
            tell_epoch(target, epoch)

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[list[Any]]:
        self.notes.clear()
        for batch in self.source:
            ids = list(batch)
            self.notes.append(ids)
            yield ids
