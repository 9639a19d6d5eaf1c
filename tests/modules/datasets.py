"""Data sets and samplers to read from, light enough that a loader's worker process imports them quickly."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, Sampler, get_worker_info


class Numbers(Dataset[int]):
    """Sample i is i."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Any:
        return index


class Noisy(Numbers):
    """Sample i is i with numbers from the three generators that a process has."""

    def __getitem__(self, index: Any) -> Any:
        noise = [random.random(), float(np.random.rand()), float(torch.rand(()))]
        return torch.tensor([index, *noise], dtype=torch.float64)


class Asked(Numbers):
    """Remembers which samples it was asked for."""

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.asked: list[int] = []

    def __getitem__(self, index: Any) -> Any:
        self.asked.append(index)
        return index


class InSharedMemory(Dataset[bool]):
    """Says of its tensor whether it lies in shared memory, and of the process who started it."""

    def __init__(self) -> None:
        self.data = torch.arange(4)

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        return {"value": self.data[index], "is_shared": self.data.is_shared(), "started_by": os.getppid()}


class Stream(IterableDataset[int]):
    """0, 1, 2, ...; knows neither ranks nor loader processes."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.length))


class SizedStream(Stream):
    """A stream that says how long it is."""

    def __len__(self) -> int:
        return self.length


class ShuffledStream(Stream):
    """Draws its order, and some noise with each sample, from torch's global generator."""

    def __iter__(self) -> Iterator[Any]:
        for index in torch.randperm(self.length).tolist():
            yield torch.stack([torch.tensor(float(index)), torch.rand(())])


class EpochStream(Stream):
    """Adds 100 times the epoch that it was told."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(range(100 * self.epoch, 100 * self.epoch + self.length))


class SplitStream(Stream):
    """Divides its samples among loader processes."""

    def __iter__(self) -> Iterator[int]:
        worker = get_worker_info()
        start, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        return iter(range(start, self.length, step))


class BoundedStream(IterableDataset[int]):
    """Yields from `start` to `end`, which a ``worker_init_fn`` may narrow."""

    def __init__(self, start: int, end: int) -> None:
        self.start = start
        self.end = end

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.end))


def take_a_part(worker_id: int) -> None:
    """Give each loader process its own part of a `BoundedStream`, as torch's documentation shows."""
    worker = get_worker_info()
    assert worker is not None
    dataset: Any = worker.dataset
    each = -(-(dataset.end - dataset.start) // worker.num_workers)
    dataset.start = dataset.start + worker_id * each
    dataset.end = min(dataset.end, dataset.start + each)


class EnvironmentStream(Stream):
    """Asks the environment which rank it serves, in a method of its own."""

    def __iter__(self) -> Iterator[int]:
        rank, world_size = self._place()
        return iter(range(rank, self.length, world_size))

    def _place(self) -> tuple[int, int]:
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


class Wrapped(IterableDataset[int]):
    """Yields what another stream yields."""

    def __init__(self, inner: IterableDataset[int]) -> None:
        self.inner = inner

    def __iter__(self) -> Iterator[int]:
        return iter(self.inner)


class Evens(Sampler[int]):
    """Every other sample id: a sampler of the user's own."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return -(-self.length // 2)

    def __iter__(self) -> Iterator[int]:
        return iter(range(0, self.length, 2))


class Growing(Numbers):
    """A sampler that yields more in each epoch that it is told of."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.length))

    def set_epoch(self, epoch: int) -> None:
        self.length = 4 + epoch


class Buckets(Sampler[list[int]]):
    """Batches of 1, 2, 3, 1, 2, 3, ... samples in an order from a generator that only it knows."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.private = random.Random(0)

    def __iter__(self) -> Iterator[list[int]]:
        left = list(range(self.length))
        self.private.shuffle(left)
        sizes = [1, 2, 3]
        self.private.shuffle(sizes)
        batch: list[int] = []
        turn = 0
        while left:
            batch.clear()  # the same list for each batch, as some samplers do
            batch.extend(left[: sizes[turn % 3]])
            del left[: sizes[turn % 3]]
            turn += 1
            yield batch


class RankAware(Sampler[int]):
    """Takes its share by itself, without being torch's DistributedSampler."""

    def __init__(self, length: int, rank: int, world_size: int) -> None:
        self.length = length
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        return len(range(self.rank, self.length, self.world_size))

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.rank, self.length, self.world_size))
