"""Hook tables: which methods run at each point of training, decided once.

A hook becomes a tuple of bound methods that somebody really overrode; an empty tuple costs nothing.
Callbacks come first, in their order, then the module. An instance attribute of a hook's name counts as an
override; a hook that a callback calls unused is left out. Changing a class or an instance after training has
started is not noticed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from modules.datamodule import LightningDataModule
from modules.module import LightningModule
from orchestrator import foreign
from orchestrator.callbacks.callback import Callback
from orchestrator.foreign_trainer import ForeignTrainer

Hook = Callable[..., Any]


def overrides(owner: object, name: str, base: type) -> bool:
    """Whether `owner` has a method `name` of its own, other than the empty one of `base`, or of Lightning's
    class of that name for an object of Lightning's.
    """
    if name in getattr(owner, "__dict__", {}):
        return True
    if not isinstance(owner, base):
        base = foreign.base_of(type(owner)) or base
    own = getattr(type(owner), name, None)
    return own is not None and own is not getattr(base, name, None)


class HookTable:
    """The hooks of one trainer, module, data module and list of callbacks.

    Args:
        trainer: Passed to callbacks as their first argument.
        module: The module; also passed to callbacks.
        datamodule: The data module, or None.
        callbacks: In the order in which they run.
    """

    def __init__(
        self,
        trainer: Any,
        module: LightningModule,
        datamodule: LightningDataModule | None,
        callbacks: Sequence[Callback],
    ) -> None:
        self._trainer = trainer
        self._module = module
        self._datamodule = datamodule
        self._callbacks = tuple(callbacks)
        self._tables: dict[str, tuple[Hook, ...]] = {}

    def __getitem__(self, name: str) -> tuple[Hook, ...]:
        """Return the callbacks' methods, then the module's, for hook `name`."""
        table = self._tables.get(name)
        if table is None:
            table = self._tables[name] = self.of_callbacks(name) + self.of_module(name)
        return table

    def of_callbacks(self, name: str, only: Callable[[Callback], bool] | None = None) -> tuple[Hook, ...]:
        """Return the callbacks' methods for hook `name`, of those callbacks that `only` admits."""
        return tuple(
            functools.partial(getattr(callback, name), self.trainer_for(callback), self._module)
            for callback in self._with(name)
            if only is None or only(callback)
        )

    def positions(self, name: str, only: Callable[[Callback], bool]) -> frozenset[int]:
        """Return where the methods of those callbacks that `only` admits are in the table of hook `name`."""
        return frozenset(index for index, callback in enumerate(self._with(name)) if only(callback))

    def _with(self, name: str) -> list[Callback]:
        """Return the callbacks that have the hook and use it."""
        return [
            callback
            for callback in self._callbacks
            if overrides(callback, name, Callback) and name not in foreign.unused_hooks(callback)
        ]

    def trainer_for(self, owner: object) -> Any:
        """Return the trainer as `owner` is to see it: an object of Lightning's sees a view of it."""
        return self._trainer if foreign.base_of(type(owner)) is None else ForeignTrainer(self._trainer)

    def of_module(self, name: str) -> tuple[Hook, ...]:
        """Return the module's method for hook `name`, if it has one of its own."""
        return (getattr(self._module, name),) if overrides(self._module, name, LightningModule) else ()

    def of_datamodule(self, name: str) -> tuple[Hook, ...]:
        """Return the data module's method for hook `name`, if it has one of its own."""
        if self._datamodule is None or not overrides(self._datamodule, name, LightningDataModule):
            return ()
        return (getattr(self._datamodule, name),)

    def data_hook(self, name: str) -> Hook | None:
        """Return the method for a hook that data module and module share; the data module's wins."""
        found = self.of_datamodule(name) or self.of_module(name)
        return found[0] if found else None
