"""What ``Trainer(plugins=...)`` takes: a `CheckpointIO`, and where the processes come from.

At most one of each. Anything else is a `MisconfigurationError` that says which argument does the same here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from orchestrator.checkpoint.checkpoint_io import CheckpointIO
from orchestrator.environments import Environment, SLURMEnvironment, TorchElasticEnvironment
from orchestrator.errors import MisconfigurationError

_INSTEAD = (
    ("AsyncCheckpointIO", "Checkpoints are not written in the background. Leave it out."),
    ("Precision", "Use Trainer(precision=...)."),
    ("SyncBatchNorm", "Use Trainer(sync_batchnorm=True)."),
    ("CheckpointIO", "Subclass orchestrator.plugins.CheckpointIO."),
    ("Environment", "Processes are Ray workers, or torchrun's or srun's, which are found out. Leave it out."),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugins:
    """The plugins of a Trainer.

    Attributes:
        checkpoint_io: Writes, reads and removes checkpoints; None for files.
        environment: Where the processes come from; None to find out.
    """

    checkpoint_io: CheckpointIO | None = None
    environment: Environment | None = None


def parse_plugins(value: Any) -> Plugins:
    """Return the plugins that ``Trainer(plugins=value)`` means.

    Raises:
        MisconfigurationError: One is unknown, or there are two of a kind.
    """
    given = [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]
    found: dict[str, Any] = {}
    for item in given:
        if isinstance(item, CheckpointIO):
            kind = "checkpoint_io"
        elif isinstance(item, (TorchElasticEnvironment, SLURMEnvironment)):
            kind = "environment"
        else:
            raise MisconfigurationError(f"Trainer(plugins=...) has {item!r}. {_advice(item)}")
        if kind in found:
            raise MisconfigurationError(
                f"Trainer(plugins=...) has a {type(found[kind]).__name__} and a {type(item).__name__}, which "
                "do the same. Leave one of them out."
            )
        found[kind] = item
    return Plugins(**found)


def _advice(item: Any) -> str:
    if isinstance(item, type):
        return "Give an instance, not the class."
    name = type(item).__name__
    for part, advice in _INSTEAD:
        if part in name:
            return advice
    return "Use a CheckpointIO, a SLURMEnvironment or a TorchElasticEnvironment of orchestrator.plugins."


__all__ = ["CheckpointIO", "Plugins", "SLURMEnvironment", "TorchElasticEnvironment", "parse_plugins"]
