"""Writes the configuration of a run beside its checkpoints and logs, so that it can be run again:
``orchestrator fit --config lightning_logs/version_0/config.yaml``.

It is written once a run, by rank 0, before training starts. A file that is there already is never replaced
unless asked for: the same content is left, another goes beside it as ``config-v1.yaml``, and so on, as with
checkpoints. A folder that cannot be written raises `OSError`.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from modules.module import LightningModule
from orchestrator.callbacks.callback import Callback


class SaveConfigCallback(Callback):
    """Writes the configuration when a run begins.

    Override `save_config` to send it elsewhere too: it runs on rank 0, when loggers are ready.

    Args:
        parser: Knows how the configuration is written.
        config: What was asked for.
        config_filename: The file's name.
        overwrite: Replace a file that is there.
        multifile: Keep arguments that came from files of their own in such.
        save_to_log_dir: Write it to ``trainer.log_dir``; False leaves it to `save_config`.
    """

    def __init__(
        self,
        parser: ArgumentParser,
        config: Namespace,
        config_filename: str = "config.yaml",
        overwrite: bool = False,
        multifile: bool = False,
        save_to_log_dir: bool = True,
    ) -> None:
        self.parser = parser
        self.config = config
        self.config_filename = config_filename
        self.overwrite = overwrite
        self.multifile = multifile
        self.save_to_log_dir = save_to_log_dir
        self.already_saved = False

    def setup(self, trainer: Any, pl_module: LightningModule, stage: str) -> None:
        """Write it, the first time."""
        if self.already_saved:
            return
        self.already_saved = True
        if not trainer.is_global_zero:
            return
        if self.save_to_log_dir and trainer.log_dir is not None:
            self._write(Path(trainer.log_dir))
        self.save_config(trainer, pl_module, stage)

    def save_config(self, trainer: Any, pl_module: LightningModule, stage: str) -> None:
        """Override to send the configuration elsewhere, a tracking service for one; on rank 0 only."""

    def _write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / self.config_filename
        if self.multifile:
            path = self._free(path, None)
            self.parser.save(
                self.config, str(path), skip_unset=False, overwrite=self.overwrite, multifile=True
            )
            return
        text = self.parser.dump(self.config, skip_unset=False)
        path = self._free(path, text)
        path.write_text(text, encoding="utf-8")

    def _free(self, path: Path, text: str | None) -> Path:
        """Return where to write: `path`, or a name beside it where another configuration is there."""
        free, version = path, 0
        while not self.overwrite and free.exists() and free.read_text(encoding="utf-8") != text:
            version += 1
            free = path.with_name(f"{path.stem}-v{version}{path.suffix}")
        if version:
            warnings.warn(
                f"{path} holds another configuration, so this run's is {free.name} beside it. Choose another "
                "default_root_dir or a logger for a folder of its own, or "
                "LightningCLI(save_config_kwargs={'overwrite': True}).",
                stacklevel=2,
            )
        return free
