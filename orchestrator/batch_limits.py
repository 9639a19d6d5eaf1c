"""How many batches of a loader are run: limits as numbers and as shares.

Pure functions of lengths. A share of an unknown length, one that comes to no batch, and a loader without a
batch are `MisconfigurationError`s that say what would do.
"""

from __future__ import annotations

import math
from typing import Any

from orchestrator.errors import MisconfigurationError


def batch_limit(name: str, limit: int | float | None, num_batches: int | None) -> int | None:
    """Return how many batches to run: `limit` as Lightning reads it, an int a number and a float a share of
    the loader.

    Args:
        name: The argument's name, for the message.
        limit: What the user gave.
        num_batches: Batches that there are; None when not known.

    Returns:
        A number of batches; None for all of a loader of unknown length.
    """
    if limit is None or (isinstance(limit, float) and limit == 1.0):
        return num_batches
    if isinstance(limit, int):
        return limit if num_batches is None else min(limit, num_batches)
    if limit == 0.0:
        return 0
    if num_batches is None:
        raise MisconfigurationError(
            f"Trainer({name}={limit}) needs a loader with a length, and this one has none. Use a number "
            "of batches."
        )
    found = int(num_batches * limit)
    if found == 0 and num_batches > 0:
        raise MisconfigurationError(
            f"Trainer({name}={limit}) gives 0 of {num_batches} batches. Use at least "
            f"{_least_share(num_batches):.6g}, or an int."
        )
    return found


def empty_loader(source: Any, kind: str, ranks: int, name: str = "") -> MisconfigurationError:
    """Return the error for a loader without a batch.

    Args:
        source: The loader.
        kind: train, val, test or predict.
        ranks: Ranks that share it.
        name: Where it stands among several; empty for a lone one.
    """
    dataset: Any = getattr(source, "dataset", None)
    sized = hasattr(dataset, "__len__")
    size = f" over {type(dataset).__qualname__} of length {len(dataset)}" if sized else ""
    return MisconfigurationError(
        f"The {kind} loader{f' at {name}' if name else ''} has 0 batches: {type(source).__qualname__}{size}, "
        f"batch_size={getattr(source, 'batch_size', None)}, drop_last={getattr(source, 'drop_last', None)}, "
        f"on {ranks} ranks. Give it data, or set limit_{kind}_batches=0 to leave it out."
    )


def _least_share(num_batches: int) -> float:
    """Return a short number of at least ``1 / num_batches``."""
    scale: int = 1000 * 10 ** int(math.log10(num_batches))
    return math.ceil(scale / num_batches) / scale
