"""Save a checkpoint when training fails, so that the same script goes on from there when it runs again.

The next `fit` without a `ckpt_path` starts from the file, if it is there, and a fit that succeeds removes it.
On a group nothing is saved where one rank has failed, with a warning: ranks save together. A place that
cannot be raises `MisconfigurationError`.
"""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING

from orchestrator.callbacks.checkpoint import Checkpoint
from orchestrator.checkpoint import local_files
from orchestrator.errors import MisconfigurationError
from orchestrator.stops import AgreedStop

if TYPE_CHECKING:
    from modules.module import LightningModule
    from orchestrator.trainer import Trainer


class OnExceptionCheckpoint(Checkpoint):
    """Saves ``dirpath/filename.ckpt`` when fit fails, an interrupt from the keyboard included.

    Args:
        dirpath: Where to save.
        filename: The file's name without its ending.

    Raises:
        MisconfigurationError: The directory or the name cannot be.
    """

    FILE_EXTENSION = ".ckpt"

    def __init__(self, dirpath: str | os.PathLike[str], filename: str = "on_exception") -> None:
        if not isinstance(dirpath, str | os.PathLike) or "://" in os.fspath(dirpath):
            raise MisconfigurationError(
                f"OnExceptionCheckpoint(dirpath={dirpath!r}) is not a local path. Write a str or a Path."
            )
        if not isinstance(filename, str) or not filename:
            raise MisconfigurationError(
                f"OnExceptionCheckpoint(filename={filename!r}) is not a name. Write a str that is not empty."
            )
        self.dirpath = os.path.realpath(os.path.expanduser(dirpath))
        self.filename = filename

    @property
    def ckpt_path(self) -> str:
        """The file's path."""
        return os.path.join(self.dirpath, self.filename + self.FILE_EXTENSION)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save the run as it stands, where there is one."""
        if trainer.state.fn != "fit" or not trainer.global_step or trainer.fast_dev_run:
            return
        if trainer.world_size > 1 and not isinstance(exception, AgreedStop):
            warnings.warn(
                f"{type(exception).__name__} ended training, and OnExceptionCheckpoint saved nothing: "
                "ranks save "
                f"together, but one of {trainer.world_size} failed. Save while training, with "
                "ModelCheckpoint.",
                stacklevel=2,
            )
            return
        trainer.save_checkpoint(self.ckpt_path)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remove the file of an earlier failure after a fit that succeeded."""
        if stage == "fit" and trainer.state.status != "interrupted" and trainer.is_global_zero:
            local_files.remove(self.ckpt_path)
