"""Collating under random generators that depend on which samples are put together, and on nothing else.

A collate function that draws (masks tokens, mixes samples) then gives the same batch in any process, wherever
and whenever the batch is made. The process's own streams go on as if nothing had been drawn. A sampler's ids
must have a `repr` that says which they are, as numbers have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.utils.data import DataLoader, Dataset, default_collate

from modules import rng
from modules.keyed_dataset import KeyedDataset


class _Samples(list[Any]):
    """Samples, with the key of the batch that they make."""

    key: int


class _KeyedBatches(Dataset[Any]):
    """A data set that gives whole batches of another's samples, with their key."""

    def __init__(self, dataset: KeyedDataset, seed: int) -> None:
        self.dataset = dataset
        self._seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        return self.dataset[index]

    def __getitems__(self, ids: Sequence[Any]) -> _Samples:
        found = _Samples(self.dataset[index] for index in ids)
        found.key = rng.fold(self._seed, "batch", self.dataset.epoch, repr(list(ids)))
        return found


class _KeyedCollate:
    """A collate function that is called under the generators of its batch."""

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self._collate = collate

    def __call__(self, samples: Any) -> Any:
        key = getattr(samples, "key", None)
        if key is None:
            return self._collate(samples)
        with rng.isolated(key):
            return self._collate(list(samples))


def keyed_collate(loader: DataLoader[Any], seed: int) -> dict[str, Any]:
    """Return the parts that a copy of `loader` needs so that collating is keyed; none where it draws nothing
    or samples are not keyed.
    """
    dataset = loader.dataset
    if loader.batch_sampler is None or loader.collate_fn is default_collate:
        return {}
    if not isinstance(dataset, KeyedDataset):
        return {}
    return {"dataset": _KeyedBatches(dataset, seed), "collate_fn": _KeyedCollate(loader.collate_fn)}
