"""Saves a checkpoint when it is told to, keeps the best or the newest, and always knows which is the last.

All ranks decide the same, from numbers that are equal on each, and save together; files are linked and
removed on rank 0 alone, behind training. A checkpoint is removed after its successor is complete, and never
if training resumed from it or if it was not written by this callback. What a failed save would have changed
is taken back (`KeptCheckpoints`); a full disk ends no training, other failures do, at the next save. A
monitored metric that validation did not log raises `MisconfigurationError`.
"""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from modules.checkpoint.remote import is_remote
from orchestrator.callbacks.kept_checkpoints import KeptCheckpoints, as_tensor
from orchestrator.checkpoint import local_files, policy
from orchestrator.errors import MisconfigurationError

if TYPE_CHECKING:
    from orchestrator.trainer import Trainer

INTERRUPTED_NAME = "interrupted.ckpt"
"""The file that a run which was told to stop is saved in, where no last checkpoint is kept."""


class CheckpointKeeper(KeptCheckpoints):
    """What `ModelCheckpoint` is, apart from when it saves. Its docstring describes arguments and
    attributes."""

    CHECKPOINT_JOIN_CHAR = "-"
    CHECKPOINT_EQUALS_CHAR = "="
    CHECKPOINT_NAME_LAST = "last"
    FILE_EXTENSION = ".ckpt"
    STARTING_VERSION = 1

    def __init__(
        self,
        *,
        dirpath: str | os.PathLike[str] | None,
        filename: str | None,
        monitor: str | None,
        mode: policy.Mode,
        save_top_k: int,
        save_last: bool | Literal["link"] | None,
        save_weights_only: bool,
        auto_insert_metric_name: bool,
        enable_version_counter: bool,
        verbose: bool,
    ) -> None:
        super().__init__(monitor=monitor, mode=mode, save_top_k=save_top_k)
        self.filename = filename
        self.save_last = save_last
        self.save_weights_only = save_weights_only
        self.auto_insert_metric_name = auto_insert_metric_name
        self.verbose = verbose
        self._enable_version_counter = enable_version_counter
        self._given_dirpath = None if dirpath is None else local_files.whole_path(dirpath)
        self.dirpath = self._given_dirpath

        self._found: frozenset[str] = frozenset()  # paths that were there when fit began
        self._validated = False
        self._told_missing = False

    # ---------------------------------------------------------------- saving

    def save_to_resume(self, trainer: Trainer) -> str:
        """Save the whole run as it stands, where ``ckpt_path="last"`` finds it, and return the path. All
        ranks call it together.

        It is the last checkpoint where such are kept whole; else ``interrupted.ckpt``, which a run that has
        gone on from it and has saved later ones removes when it ends.
        """
        strategy = trainer.strategy
        numbers = {name: float(value) for name, value in trainer.callback_metrics.items()}
        metrics: dict[str, float] = {**numbers, "epoch": trainer.current_epoch, "step": trainer.global_step}
        if strategy is not None:
            metrics = strategy.broadcast(metrics)  # each rank may have its own here
        self._finish(trainer)
        if self.save_last and not self.save_weights_only:
            self._save_last_alone(trainer, metrics)
            self._finish(trainer)
            return self.last_model_path
        path = os.path.join(str(self.dirpath), INTERRUPTED_NAME)
        trainer.save_checkpoint(path)
        self._last_saved_step = trainer.global_step
        return path

    def _remove_interrupted(self, trainer: Trainer) -> None:
        """Remove what an earlier run was interrupted with and this one went on from, if there is a later
        one."""
        path = os.path.join(str(self.dirpath), INTERRUPTED_NAME)
        if trainer.is_global_zero and self._written and str(trainer.ckpt_path or "") == path:
            local_files.remove(path)

    def _settle(self, trainer: Trainer, *, fitting: bool) -> None:
        """Decide where to save, and, before a fit, remember what is there already."""
        self.dirpath = self._given_dirpath or os.path.realpath(_default_directory(trainer))
        if fitting:
            if trainer.is_global_zero:
                local_files.tidy(self.dirpath)
            depth = max(self._template.count("/"), self.CHECKPOINT_NAME_LAST.count("/"))
            # Every rank sees the same files now: nobody saves before all ranks have trained together.
            self._found = local_files.names_below(self.dirpath, depth)
            self._pending = self._before = None
            self._is_behind = False
            self._written = frozenset()
            self._validated = self._told_missing = False

    def _save(
        self, trainer: Trainer, metrics: Mapping[str, float], *, last_only: bool = False, ending: bool = False
    ) -> None:
        """Save the present state as one of the best, as the last one, as both, or not at all.

        Args:
            trainer: The trainer.
            metrics: The numbers that choose and name the checkpoint.
            last_only: Only as the last one.
            ending: Training is over, so a metric that is missing fails nothing any more: it is a warning.
        """
        self._finish(trainer)
        if last_only or self.save_top_k == 0:
            if self.save_last:
                self._save_last_alone(trainer, metrics)
            return
        if self.monitor is None:
            self._save_newest(trainer, metrics)
            return
        score = metrics.get(self.monitor)
        if score is not None and self._top.admits(score):
            self._save_among_best(trainer, metrics, score)
            return
        if score is None:
            self._report_missing(trainer, metrics, fails=self._validated and not ending)
        elif self.verbose:
            self._tell(trainer, f"{_place(metrics)}: {self.monitor} is not among the best {self.save_top_k}")
        if self.save_last is True:
            self._save_last_alone(trainer, metrics)

    def _save_newest(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        leaving = self._best_model_path if self.save_top_k == 1 else ""
        with self._undone_on_failure():
            self._best_model_path = self._free_path(trainer, metrics, leaving)
            self._write(trainer, metrics, self._best_model_path, leaving)

    def _save_among_best(self, trainer: Trainer, metrics: Mapping[str, float], score: float) -> None:
        leaving = self._top.leaving
        path = self._free_path(trainer, metrics, leaving)
        with self._undone_on_failure():
            self._top = top = self._top.with_saved(path, score)
            self._best_k_models = {kept: as_tensor(value) for kept, value in top.scores.items()}
            self.current_score = self._best_k_models[path]
            self._best_model_path = top.best
            self.best_model_score = self._best_k_models[top.best]
            if top.is_full or top.k == -1:
                self.kth_best_model_path = top.worst
                self.kth_value = self._best_k_models[top.worst]
            self._write(trainer, metrics, path, leaving)
        if self.verbose:
            best = top.scores[top.best]
            text = f"{_place(metrics)}: {self.monitor} reached {score:.5f} (best {best:.5f}), saved {path!r}"
            self._tell(trainer, text)

    def _save_last_alone(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        with self._undone_on_failure():
            self._write(trainer, metrics, self._next_last_path(trainer, metrics))

    def _write(self, trainer: Trainer, metrics: Mapping[str, float], path: str, leaving: str = "") -> None:
        """Save to `path`, give it the last one's name too, then remove `leaving` and what had that name."""
        previous_last = last = self._last_model_path
        if self.save_last:
            last = self._next_last_path(trainer, metrics)
        self._last_model_path = last
        self._complete_path, self._last_saved_path = self._last_saved_path, path
        self._last_saved_step = trainer.global_step
        symbolic, links = self.save_last == "link", bool(self.save_last) and last != path
        old = [item for item in (leaving, previous_last) if item not in (path, last)]
        old = [item for item in old if self._is_ours(trainer, item)]
        plugin = trainer.plugins.checkpoint_io
        remove = local_files.remove if plugin is None else plugin.remove_checkpoint

        def on_written() -> None:
            if links:
                local_files.give_second_name(path, last, symbolic=symbolic)
            for item in old:
                remove(item)

        # This callback's state is in it.
        self._pending = trainer.save_checkpoint(path, self.save_weights_only, on_written=on_written)
        self._is_behind = self._pending is not None
        self._written |= {path, last} - {""}
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.after_save_checkpoint(self)  # type: ignore[arg-type]

    def _is_ours(self, trainer: Trainer, path: str) -> bool:
        """Whether this callback may remove or replace `path`."""
        resumed = trainer.ckpt_path
        if not path or (
            resumed is not None and local_files.whole_path(resumed) == local_files.whole_path(path)
        ):
            return False
        whole = path if is_remote(path) else os.path.abspath(path)
        return whole.startswith(os.path.join(str(self.dirpath), ""))

    # ---------------------------------------------------------------- names

    def format_checkpoint_name(
        self,
        metrics: Mapping[str, Any],
        filename: str | None = None,
        ver: int | None = None,
        prefix: str | None = None,
    ) -> str:
        """Return the path of a checkpoint with these metrics, in `dirpath` if that is known.

        Args:
            metrics: Numbers by name; one that the template asks for and that is absent counts as 0.
            filename: The template; this callback's own by default.
            ver: Append ``-v`` and this number.
            prefix: Put before the name, with a dash.
        """
        numbers = {
            name: value.item() if isinstance(value, Tensor) else value for name, value in metrics.items()
        }
        name = policy.format_name(
            filename or self._template,
            numbers,
            auto_insert_metric_name=self.auto_insert_metric_name,
            equals=self.CHECKPOINT_EQUALS_CHAR,
        )
        parts = [part for part in (prefix, name, None if ver is None else f"v{ver}") if part is not None]
        file_name = self.CHECKPOINT_JOIN_CHAR.join(parts) + self.FILE_EXTENSION
        return os.path.join(self.dirpath, file_name) if self.dirpath else file_name

    @property
    def _template(self) -> str:
        return self.filename or f"{{epoch}}{self.CHECKPOINT_JOIN_CHAR}{{step}}"

    def _free_path(self, trainer: Trainer, metrics: Mapping[str, float], leaving: str = "") -> str:
        """Return where to save: a name that nothing has, or that of `leaving`, which the new file
        replaces."""
        return self._first_free(
            trainer, metrics, self._template, leaving if self._is_ours(trainer, leaving) else ""
        )

    def _next_last_path(self, trainer: Trainer, metrics: Mapping[str, float]) -> str:
        return self._first_free(trainer, metrics, self.CHECKPOINT_NAME_LAST, self._last_model_path)

    def _first_free(self, trainer: Trainer, metrics: Mapping[str, float], template: str, reused: str) -> str:
        others = [item._written for item in trainer.callbacks if isinstance(item, CheckpointKeeper)]
        taken = self._found.union(*others) - {reused} if self._enable_version_counter else frozenset[str]()
        return policy.free_name(
            lambda version: self.format_checkpoint_name(metrics, template, ver=version),
            taken.__contains__,
            self.STARTING_VERSION,
        )

    # ---------------------------------------------------------------- words

    def _report_missing(self, trainer: Trainer, metrics: Mapping[str, float], *, fails: bool) -> None:
        logged = sorted(metrics.keys() - {"epoch", "step"})
        near = difflib.get_close_matches(str(self.monitor), logged, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        text = (
            f"ModelCheckpoint(monitor={self.monitor!r}) found no such metric: logged are {logged}.{hint} "
            f"Log it with self.log({self.monitor!r}, value), or monitor one of these."
        )
        if fails:
            raise MisconfigurationError(text)
        if trainer.is_global_zero and not self._told_missing:
            self._told_missing = True
            warnings.warn(text, stacklevel=2)

    def _tell(self, trainer: Trainer, text: str) -> None:
        if trainer.is_global_zero:
            print(text, flush=True)


def _default_directory(trainer: Trainer) -> str:
    """Return ``checkpoints`` in the first logger's version directory, else in the trainer's root
    directory."""
    if not trainer.loggers:
        return os.path.join(trainer.default_root_dir, "checkpoints")
    logger = trainer.loggers[0]
    root = logger.root_dir
    if root is None:
        root = os.path.join(logger.save_dir or trainer.default_root_dir, str(logger.name or ""))
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return os.path.join(root, version, "checkpoints")


def _place(metrics: Mapping[str, float]) -> str:
    return f"Epoch {metrics['epoch']:d}, step {metrics['step']:d}"
