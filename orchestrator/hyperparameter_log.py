"""Which hyperparameters a run sends to its loggers: the module's and the data module's, together.

A name that both have must mean one thing: other values under one name are a `MisconfigurationError`, as the
record of a run would be wrong about one of the two.
"""

from __future__ import annotations

from typing import Any

import torch

from modules.datamodule import LightningDataModule
from modules.module import LightningModule
from orchestrator.errors import MisconfigurationError


def logged_hyperparameters(module: LightningModule, datamodule: LightningDataModule | None) -> dict[str, Any]:
    """Return the initial hyperparameters of those that saved some for loggers.

    Raises:
        MisconfigurationError: Module and data module have different values of one name.
    """
    own: dict[str, Any] = dict(module.hparams_initial) if module._log_hyperparams else {}
    if datamodule is None or not datamodule._log_hyperparams:
        return own
    of_data = dict(datamodule.hparams_initial)
    differing = [name for name in own if name in of_data and not _same(own[name], of_data[name])]
    if differing:
        shown = ", ".join(f"{name}: {own[name]!r} and {of_data[name]!r}" for name in differing)
        raise MisconfigurationError(
            f"{type(module).__qualname__} and {type(datamodule).__qualname__} have different "
            f"hyperparameters of one name: {shown}. Rename one, leave it out with "
            "save_hyperparameters(ignore=...), or use Trainer(enable_autolog_hparams=False)."
        )
    return {**of_data, **own}


def _same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    try:
        return bool(one == other)
    except Exception:  # an array, say, whose comparison is no truth
        return one is other
