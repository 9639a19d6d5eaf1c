"""Finds out, before any worker starts, whether what a call needs can be sent to one, and names what cannot.

The trainer, the module, the data and the callbacks are pickled as they will be, but for the content of
tensors and arrays, which always can be sent: so it takes milliseconds whatever the size of a model. What
cannot be pickled is a `SerializationError` that says which argument it was and which attribute of it.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ray import cloudpickle

from cluster.serialization import dump

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.job import Job
    from orchestrator.trainer import Trainer


_TRAINER = ("_trainer", "trainer")


class _Nowhere:
    """A file that keeps nothing."""

    def write(self, data: bytes) -> int:
        """Take the data and forget it."""
        return len(data)


class _Rehearsal(cloudpickle.CloudPickler):
    """Pickles all but the content of tensors and arrays."""

    def persistent_id(self, value: object) -> str | None:
        """Stand in for what is large and can be sent for certain."""
        plain = isinstance(value, np.ndarray) and value.dtype != object
        return "data" if plain or isinstance(value, torch.Tensor) else None


def check(trainer: Trainer, job: Job) -> None:
    """Refuse what cannot be sent to another process.

    Args:
        trainer: With its callbacks and loggers.
        job: With the module and the data.

    Raises:
        SerializationError: It names the argument and the attribute.
    """
    if _travels((trainer, job)):
        return
    for name, value in _parts(trainer, job):
        if not _travels(value):
            dump(_without_trainer(value), name)
            dump(value, name)
    dump((trainer, job), "What this call needs")


def _travels(value: object) -> bool:
    rehearsal: Any = _Rehearsal
    try:
        rehearsal(_Nowhere()).dump(value)
    except Exception:
        return False
    return True


def _without_trainer(value: object) -> object:
    """What of an object is pickled, as attributes, but for the trainer, by which all things hang together."""
    try:
        state = value.__reduce_ex__(4)[2]
    except Exception:
        return value
    if not isinstance(state, dict):
        return value
    return SimpleNamespace(**{name: held for name, held in state.items() if name not in _TRAINER})


def _parts(trainer: Trainer, job: Job) -> Iterator[tuple[str, Any]]:
    """What the user gave, with the name that the user knows it by; the smallest first."""
    for kind, loader in job.loaders.items():
        yield f"The {kind} loader given to {job.fn}()", loader
    for callback in trainer.callbacks:
        yield f"The callback {type(callback).__qualname__}", callback
    for logger in trainer.loggers:
        yield f"The logger {type(logger).__qualname__}", logger
    if job.datamodule is not None:
        yield f"The data module {type(job.datamodule).__qualname__}", job.datamodule
    yield f"The module {type(job.module).__qualname__}", job.module
