"""Reads a loader as the ranks of a group do: each from a copy of its own."""

from __future__ import annotations

import copy
import multiprocessing
from collections.abc import Iterable
from typing import Any

from modules.loader import RankLoader

# Worker processes that are not forked from a test's process, which may hold the threads of other tests.
TWO_PROCESSES: dict[str, Any] = {"num_workers": 2, "multiprocessing_context": "forkserver"}
multiprocessing.set_forkserver_preload(["torch.utils.data", "tests.modules.datasets"])


def loaders(source: Iterable[Any], world_size: int, **options: Any) -> list[RankLoader]:
    """One view for each rank, of a copy of `source`, as if it had been pickled to the rank's process."""
    return [
        RankLoader(copy.deepcopy(source), rank=rank, world_size=world_size, **options)
        for rank in range(world_size)
    ]


def batches(loader: RankLoader, *, epoch: int = 0, skip: int = 0) -> list[Any]:
    """The batches of an epoch; tensors become lists."""
    loader.start_epoch(epoch)
    return [plain(batch) for batch in loader.iterate(skip)]


def plain(batch: Any) -> Any:
    """A batch as lists and numbers, so that it can be compared."""
    return batch.tolist() if hasattr(batch, "tolist") else batch


def flat(nested: Iterable[Iterable[Any]]) -> list[Any]:
    """The members of the members."""
    return [item for part in nested for item in part]
