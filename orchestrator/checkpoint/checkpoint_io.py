"""How checkpoints are written, read and removed, for those who keep them elsewhere or in another form.

Subclass `CheckpointIO` and give an instance to ``Trainer(plugins=...)``. Writing and removing are asked of
rank 0 alone, reading of every rank. What a method raises ends the call that asked for it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any


class CheckpointIO(ABC):
    """The three things that are done with checkpoints."""

    @abstractmethod
    def save_checkpoint(self, checkpoint: dict[str, Any], path: str, storage_options: Any = None) -> None:
        """Write `checkpoint`, which holds plain values and tensors only, so that `path` finds it again."""

    @abstractmethod
    def load_checkpoint(self, path: str, map_location: Any = None) -> dict[str, Any]:
        """Return what was written under `path`, with tensors on the CPU."""

    @abstractmethod
    def remove_checkpoint(self, path: str) -> None:
        """Remove what was written under `path`; it is no error if that is gone."""
