"""Which checkpoints a logger uploads, and when: decided from what a ModelCheckpoint has kept.

``log_model=True`` uploads at the end what is kept then, ``"all"`` each checkpoint as it is saved, and so does
True with ``save_top_k=-1``, where all are kept. A file is uploaded again only after it has changed, and one
that is gone is left out. ``False`` uploads nothing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.errors import MisconfigurationError

if TYPE_CHECKING:
    from orchestrator.callbacks.model_checkpoint import ModelCheckpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFile:
    """A checkpoint to upload.

    Attributes:
        path: The file.
        score: Of the monitored metric, or None.
        is_best: Whether it is the best one, or the newest without a monitored metric.
        settings: Of the ModelCheckpoint that saved it.
    """

    path: str
    score: float | None
    is_best: bool
    settings: dict[str, Any]

    @property
    def aliases(self) -> list[str]:
        """What it may be asked for by."""
        return ["latest", "best"] if self.is_best else ["latest"]

    @property
    def metadata(self) -> dict[str, Any]:
        """What to keep beside it."""
        return {
            "score": self.score,
            "original_filename": os.path.basename(self.path),
            "ModelCheckpoint": self.settings,
        }


class CheckpointArtifacts:
    """Remembers what was uploaded.

    Args:
        logger: The logger's class, for messages.
        log_model: As the user gave it.

    Raises:
        MisconfigurationError: It is neither True, False nor "all".
    """

    def __init__(self, logger: str, log_model: Any) -> None:
        if log_model not in (True, False, "all"):
            raise MisconfigurationError(
                f"{logger}(log_model={log_model!r}) is unknown. Use True (at the end), False or 'all' (each)."
            )
        self.log_model = log_model
        self._waiting: ModelCheckpoint | None = None
        self._uploaded: dict[str, float] = {}

    def after_save(self, callback: ModelCheckpoint) -> list[CheckpointFile]:
        """Return what to upload now that `callback` has saved a checkpoint."""
        if self.log_model == "all" or (self.log_model and callback.save_top_k == -1):
            return self._changed(callback)
        if self.log_model:
            self._waiting = callback
        return []

    def at_end(self) -> list[CheckpointFile]:
        """Return what to upload at the end of a call."""
        waiting, self._waiting = self._waiting, None
        return [] if waiting is None else self._changed(waiting)

    def _changed(self, callback: ModelCheckpoint) -> list[CheckpointFile]:
        """Return the checkpoints that are new or have changed, oldest first, and count them as uploaded."""
        scores = {
            callback.last_model_path: callback.current_score,
            callback.best_model_path: callback.best_model_score,
            **callback.best_k_models,
        }
        times = {path: os.path.getmtime(path) for path in scores if path and os.path.exists(path)}
        new = [path for path, time in times.items() if self._uploaded.get(path, -1.0) < time]
        self._uploaded.update((path, times[path]) for path in new)
        settings = {
            name: getattr(callback, name)
            for name in ("monitor", "mode", "save_last", "save_top_k", "save_weights_only")
        }
        return [
            CheckpointFile(
                path=path,
                score=None if (score := scores[path]) is None else float(score),
                is_best=path == callback.best_model_path,
                settings=settings,
            )
            for path in sorted(new, key=times.__getitem__)
        ]
