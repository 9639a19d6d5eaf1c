"""What a user writes, and the data it eats: modules, data modules, order of samples, checkpoint format.

This package knows neither processes nor Ray. It is told "rank r of W" and never which machine hosts it.
Public names are loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modules.cursor import Cursor as Cursor
    from modules.datamodule import LightningDataModule as LightningDataModule
    from modules.loader import RankLoader as RankLoader
    from modules.module import LightningModule as LightningModule
    from modules.rng import seed_everything as seed_everything
    from modules.sampler import ShardSampler as ShardSampler

_HOMES = {
    "Cursor": "modules.cursor",
    "LightningDataModule": "modules.datamodule",
    "LightningModule": "modules.module",
    "RankLoader": "modules.loader",
    "ShardSampler": "modules.sampler",
    "seed_everything": "modules.rng",
}

__all__ = [
    "Cursor",
    "LightningDataModule",
    "LightningModule",
    "RankLoader",
    "ShardSampler",
    "seed_everything",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(
            f"module 'modules' has no attribute {name!r}. Public names: {', '.join(__all__)}."
        )
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value
