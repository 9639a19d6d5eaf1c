"""Which checkpoints a callback keeps, in its own memory and in a checkpoint's, while they are being written.

What is noted about a save holds from its begin, on all ranks alike; the file is complete later. Whoever asks
for a path waits until then. Where the save failed, or the process that wrote it was lost, all ranks take back
what they had noted, when the next save is due or training ends.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from orchestrator.callbacks.checkpoint import Checkpoint
from orchestrator.checkpoint import local_files, policy
from orchestrator.checkpoint.background import Save
from orchestrator.checkpoint.writer import failure

if TYPE_CHECKING:
    from orchestrator.trainer import Trainer

_NOTED = (
    "_best_model_path",
    "best_model_score",
    "_best_k_models",
    "kth_best_model_path",
    "kth_value",
    "current_score",
    "_last_model_path",
    "_top",
    "_last_saved_step",
    "_last_saved_path",
    "_complete_path",
    "_written",
)
"""What a save changes."""


class KeptCheckpoints(Checkpoint):
    """What a `ModelCheckpoint` knows about its files.

    Args:
        monitor: The metric that says which are best, or None.
        mode: Whether a lower or a higher one is.
        save_top_k: How many are kept.
    """

    dirpath: str | None
    _pending: Save | None = None
    _before: Mapping[str, Any] | None = None
    _is_behind = False  # a save was begun, alike on all ranks, of which nobody has asked how it ended

    def __init__(self, *, monitor: str | None, mode: policy.Mode, save_top_k: int) -> None:
        self.monitor = monitor
        self.mode = mode
        self.save_top_k = save_top_k
        self._best_model_path = ""
        self.best_model_score: Tensor | None = None
        self._best_k_models: dict[str, Tensor] = {}
        self.kth_best_model_path = ""
        self.kth_value = torch.tensor(float("inf") if mode == "min" else -float("inf"))
        self.current_score: Tensor | None = None
        self._last_model_path = ""

        self._top = policy.TopK(k=save_top_k, mode=mode)
        self._last_saved_step = 0  # without a step there is nothing to save
        self._last_saved_path = ""
        self._complete_path = ""  # the newest that is known to be complete, while another is on its way
        self._written: frozenset[str] = frozenset()  # paths written since fit began

    @property
    def best_model_path(self) -> str:
        """Path of the best checkpoint, or of the newest without `monitor`; complete when it is returned."""
        self._wait()
        return self._best_model_path

    @best_model_path.setter
    def best_model_path(self, path: str) -> None:
        self._best_model_path = path

    @property
    def last_model_path(self) -> str:
        """The path named ``last``, with `save_last`; complete when it is returned."""
        self._wait()
        return self._last_model_path

    @last_model_path.setter
    def last_model_path(self, path: str) -> None:
        self._last_model_path = path

    @property
    def best_k_models(self) -> dict[str, Tensor]:
        """Score by path of all that are kept by score; complete when they are returned."""
        self._wait()
        return self._best_k_models

    @best_k_models.setter
    def best_k_models(self, models: dict[str, Tensor]) -> None:
        self._best_k_models = models

    def _wait(self) -> None:
        """Wait for the save that is on its way; one that failed is noted in `_finish`."""
        if self._pending is not None:
            self._pending.wait()

    # ---------------------------------------------------------------- state

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to this process: the save that is on its way."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_pending", "_before")}

    def state_dict(self) -> dict[str, Any]:
        """Return which checkpoints are kept, and their scores."""
        return {
            "monitor": self.monitor,
            "best_model_score": self.best_model_score,
            "best_model_path": self._best_model_path,
            "current_score": self.current_score,
            "dirpath": self.dirpath,
            "best_k_models": self._best_k_models,
            "kth_best_model_path": self.kth_best_model_path,
            "kth_value": self.kth_value,
            "last_model_path": self._last_model_path,
            "last_saved_step": self._last_saved_step,
            "last_saved_path": self._last_saved_path,
            "complete_path": self._complete_path,
            "is_behind": self._is_behind,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` returned; where saves now go to another directory, only the best
        path."""
        self.best_model_path = state_dict["best_model_path"]
        self._last_saved_step = state_dict.get("last_saved_step", self._last_saved_step)
        saved_in = state_dict.get("dirpath", self.dirpath)
        if saved_in != self.dirpath:
            warnings.warn(
                f"ModelCheckpoint saves in {self.dirpath!r} now, not in {saved_in!r}. "
                "Of the checkpoints there it keeps only best_model_path in mind, and removes none. "
                f"To go on there, write dirpath={saved_in!r}.",
                stacklevel=2,
            )
            return
        self.best_model_score = state_dict["best_model_score"]
        self.current_score = state_dict.get("current_score")
        self.best_k_models = dict(state_dict.get("best_k_models", {}))
        self.kth_best_model_path = state_dict.get("kth_best_model_path", "")
        self.kth_value = state_dict.get("kth_value", self.kth_value)
        self.last_model_path = state_dict.get("last_model_path", "")
        self._last_saved_path = state_dict.get("last_saved_path", "")
        self._complete_path = state_dict.get("complete_path", "")
        self._is_behind = state_dict.get("is_behind", False)
        scores = {path: float(score) for path, score in self.best_k_models.items()}
        self._top = policy.TopK(k=self.save_top_k, mode=self.mode, scores=scores)

    def to_yaml(self, filepath: str | os.PathLike[str] | None = None) -> None:
        """Write paths and scores of `best_k_models` as YAML, by default to best_k_models.yaml in
        `dirpath`."""
        import yaml

        if filepath is None:
            filepath = os.path.join(self.dirpath or "", "best_k_models.yaml")
        with open(filepath, "w", encoding="utf-8") as file:
            yaml.safe_dump({path: float(score) for path, score in self.best_k_models.items()}, file)

    # ---------------------------------------------------------------- how saves end

    def _finish(self, trainer: Trainer, *, alone: bool = False) -> None:
        """Wait for the save that is on its way; where it failed on a rank, or its process was lost, take back
        on all ranks what was noted about it. Communicates, unless `alone`.

        Args:
            trainer: The trainer.
            alone: Other ranks may be gone: what they noted stays.

        Raises:
            CheckpointWriteError: It failed, and not for a full disk.
        """
        if not self._is_behind:
            return
        pending, before = self._pending, self._before
        if pending is not None:
            pending.wait()
        error = None if pending is None or pending.error is None else failure(pending.path, pending.error)
        if pending is None and trainer.is_global_zero and not local_files.exists(self._last_saved_path):
            error = failure(self._last_saved_path, OSError("the process that wrote it was lost"))
            error.is_full = True  # it ends no training either
            warnings.warn(f"{error} The one before it stays.", stacklevel=2)
        if not alone and trainer.world_size > 1 and trainer.strategy is not None:
            found = trainer.strategy.gather((error, before))
            error = next((item for item, _ in found if item is not None), None)
            before = next((item for _, item in found if item is not None), None)
        self._pending = self._before = None
        self._is_behind = False
        if error is None:
            return
        if before is None:
            self._forget(self._last_saved_path)
        else:
            self.__dict__.update(before)
        if not error.is_full:
            raise error

    def _forget(self, path: str) -> None:
        """Take back what was noted about a checkpoint that is not there; nobody knows what was before."""
        self._top = top = policy.TopK(
            k=self.save_top_k,
            mode=self.mode,
            scores={kept: score for kept, score in self._top.scores.items() if kept != path},
        )
        self._best_k_models = {kept: as_tensor(value) for kept, value in top.scores.items()}
        if self._best_model_path == path:
            self._best_model_path = top.best
            self.best_model_score = self._best_k_models.get(top.best)
        if self._last_model_path == path:
            self._last_model_path = ""
        self._last_saved_path = self._complete_path

    @contextmanager
    def _undone_on_failure(self) -> Iterator[None]:
        """Take back what was noted about a checkpoint that could not be saved."""
        before = {name: self.__dict__[name] for name in _NOTED}
        try:
            yield
        except BaseException:
            self.__dict__.update(before)
            raise
        else:
            self._before = before


def as_tensor(score: float) -> Tensor:
    """Return a score as a scalar tensor, in double precision where single would change it."""
    tensor = torch.tensor(score)
    return tensor if tensor.item() == score else torch.tensor(score, dtype=torch.float64)
