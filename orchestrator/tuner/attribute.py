"""Where a value to tune is kept: an attribute of the module or data module, or of their hyperparameters.

All places that have the name are written together, so that none of them is out of date. A name that is
nowhere is a `MisconfigurationError`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from modules.datamodule import LightningDataModule
from modules.module import LightningModule
from orchestrator.errors import MisconfigurationError

LEARNING_RATES = ("lr", "learning_rate")


def find_name(
    names: tuple[str, ...],
    argument: str,
    module: LightningModule,
    datamodule: LightningDataModule | None,
) -> str:
    """Return the first of `names` that is kept somewhere.

    Args:
        names: Names to look for.
        argument: What sets the name, as the user wrote it, for the message.
        module: Looked at first, then its hyperparameters.
        datamodule: Looked at then, likewise; None where there is none.

    Raises:
        MisconfigurationError: None of them is.
    """
    for name in names:
        if any(True for _ in _holders(name, module, datamodule)):
            return name
    owner = type(module).__qualname__
    where = owner if datamodule is None else f"{owner} and {type(datamodule).__qualname__}"
    raise MisconfigurationError(
        f"{argument}: {where} and their hyperparameters have no {' or '.join(map(repr, names))}. "
        f"Set self.{names[0]} in __init__ and use it, or name another attribute."
    )


def read(name: str, module: LightningModule, datamodule: LightningDataModule | None) -> Any:
    """Return the value kept under `name`."""
    holder = next(_holders(name, module, datamodule))
    return holder[name] if isinstance(holder, dict) else getattr(holder, name)


def write(name: str, value: Any, module: LightningModule, datamodule: LightningDataModule | None) -> None:
    """Keep `value` under `name` wherever that name is."""
    for holder in list(_holders(name, module, datamodule)):
        if isinstance(holder, dict):
            holder[name] = value
        else:
            setattr(holder, name, value)


def _holders(name: str, module: LightningModule, datamodule: LightningDataModule | None) -> Iterator[Any]:
    for owner in (module, datamodule):
        if owner is None:
            continue
        if hasattr(owner, name):
            yield owner
        if isinstance(owner.hparams, dict) and name in owner.hparams:
            yield owner.hparams
