"""The types of ``--model``, ``--data`` and callbacks where the command line names the class: ours, or an
installed Lightning's.

Whether a class is Lightning's is seen from its bases, so Lightning is imported only by a user's own class.
"""

from __future__ import annotations

from typing import Any

from modules.datamodule import LightningDataModule
from modules.module import LightningModule
from orchestrator import foreign
from orchestrator.callbacks.callback import Callback


class _Kind(type):
    """A class whose subclasses are those of `ours` and of Lightning's class of the same name."""

    ours: type

    def __subclasscheck__(cls, kind: type) -> bool:
        base = foreign.base_of(kind)
        return issubclass(kind, cls.ours) or (base is not None and base.__name__ == cls.__name__)

    def __instancecheck__(cls, item: Any) -> bool:
        return cls.__subclasscheck__(type(item))

    def __subclasses__(cls) -> list[type]:
        return cls.ours.__subclasses__()


def _kind(ours: type) -> type:
    return _Kind(ours.__name__, (), {"ours": ours, "__doc__": ours.__doc__, "__module__": ours.__module__})


ANY_MODULE = _kind(LightningModule)
ANY_DATAMODULE = _kind(LightningDataModule)
ANY_CALLBACK = _kind(Callback)
