"""``Trainer(overfit_batches=...)``: the same few samples in every epoch, so nothing may shuffle them.

The user's loader is left alone; a copy of it reads its data set in order. Loaders that are no DataLoader, and
those whose batches a sampler of the user's own composes, are read as they are, with a warning for the latter.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler

from modules.keyed_loader import KeyedLoader


def in_order(source: Any, kind: str, *, tells: bool) -> Any:
    """Return a loader of the same samples that reads them in order; `source` itself where it does already.

    Args:
        source: One loader.
        kind: train or val, for the warning.
        tells: This process warns.
    """
    if isinstance(source, KeyedLoader):
        return source.in_order()
    if not isinstance(source, DataLoader) or isinstance(source.dataset, IterableDataset):
        return source
    batches: Any = source.batch_sampler
    sampler = getattr(batches, "sampler", source.sampler)
    if isinstance(sampler, SequentialSampler):
        return source
    plain = batches is None or type(batches) is BatchSampler
    if tells:
        what = type(sampler).__qualname__ if plain else type(batches).__qualname__
        warnings.warn(
            f"Trainer(overfit_batches=...) and a {kind} loader whose order comes from {what}: "
            + (
                "its samples are read in the order of the data set."
                if plain
                else "it composes the batches, so they may differ from epoch to epoch. Give a loader "
                "without it."
            ),
            stacklevel=2,
        )
    if not plain:
        return source
    dataset: Any = source.dataset
    ordered = SequentialSampler(dataset)
    parts: dict[str, Any] = {"sampler": ordered, "_iterator": None}
    if batches is not None:
        parts["batch_sampler"] = BatchSampler(ordered, batches.batch_size, batches.drop_last)
    clone = copy.copy(source)
    clone.__dict__.update(parts)
    return clone
