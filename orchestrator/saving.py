"""What ``trainer.save_checkpoint`` writes, wherever and whenever it is called, and how.

During a fit it is the run as it stands. Afterwards it is still the fit's: its optimizer state outlives
validations and tests that follow. In the driver of a group only the weights are there, and only they can be
saved. What is not in this process is a `RuntimeError` that says where it is; nothing is made up in its place.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modules.checkpoint import remote
from modules.checkpoint.shards import Parts
from modules.module import LightningModule
from orchestrator.checkpoint import contents, local_files, sharded_writer, writer
from orchestrator.checkpoint.background import Save, Write
from orchestrator.errors import MisconfigurationError

if TYPE_CHECKING:
    from orchestrator.engine import Engine
    from orchestrator.trainer import Trainer


@dataclass(slots=True, kw_only=True)
class LastFit:
    """What is left of a trainer's last fit.

    Attributes:
        engine: Its run, if that was in this process.
        lost: The module whose weights were lost with the workers that trained it.
    """

    engine: Engine | None = None
    lost: LightningModule | None = None


def save(
    trainer: Trainer,
    last_fit: LastFit,
    path: str,
    weights_only: bool,
    on_written: Callable[[], None] | None,
    caller: str,
) -> Save | None:
    """Write a checkpoint: now, or behind training. Communicates on a group.

    Args:
        trainer: Whose.
        last_fit: What is left of its last fit.
        path: Where to.
        weights_only: Leave out all that only training needs.
        on_written: Write behind training, and call this on rank 0, from another thread, when the checkpoint
            is complete.
        caller: The call, for messages.

    Returns:
        The save that is on its way; on a rank that writes nothing one that has ended. None where the
        checkpoint is complete.

    Raises:
        RuntimeError: What belongs to the checkpoint is not in this process.
        CheckpointWriteError: The file system refused.
    """
    engine, plugin = trainer.engine, trainer.plugins.checkpoint_io
    fits = engine is not None and engine.job.fn == "fit"
    behind = on_written is not None and fits and plugin is None
    write: Write | None
    if engine is None or not fits or plugin is not None or engine.strategy.dealing is None:
        content = content_to_save(trainer, last_fit, weights_only, caller)
        write = functools.partial(_write_file, path) if trainer.is_global_zero else None
    else:
        content, write = _sharded(engine, path, weights_only)
    if engine is not None and behind:
        then = _nothing if on_written is None or not engine.is_global_zero else on_written
        return engine.saves.begin(content, path, write, then)
    if plugin is None and write is not None:
        write(content, _count_nothing)
    elif plugin is not None and trainer.is_global_zero:
        plugin.save_checkpoint(content, path)
    if on_written is not None and trainer.is_global_zero:
        on_written()
    return None


def _write_file(path: str, content: Any, count: Callable[[int], None]) -> None:
    writer.write(content, path, count)


def _sharded(engine: Engine, path: str, weights_only: bool) -> tuple[dict[str, Any], Write]:
    """Return what this rank has to write of a sharded checkpoint, and what writes it. Communicates."""
    strategy = engine.strategy
    if remote.is_remote(path):
        raise MisconfigurationError(
            f"FSDPStrategy(state_dict_type='sharded') cannot write {path}: ranks put a directory together on "
            "storage that all see as files. Use such a path, or state_dict_type='full'."
        )
    parts = Parts()
    content = contents.build(engine, weights_only, parts)
    path = os.path.abspath(path)
    folder = strategy.broadcast(local_files.temporary_name(path))
    rank, world_size = strategy.rank, strategy.world_size
    saves, patience_s = engine.saves, engine.settings.collective_timeout_s

    def write(mine: Any, count: Callable[[int], None]) -> None:
        began = time.monotonic()

        def gives_up() -> bool:
            return saves.hurries or time.monotonic() - began > patience_s

        try:
            sharded_writer.write_parts(mine["parts"], path, folder, rank, count)
        except BaseException:
            if rank == 0:
                sharded_writer.abandon(folder, world_size, gives_up)
            raise
        if rank == 0:
            sharded_writer.write_rest(mine["content"], path, folder, world_size, gives_up, count)

    return {"parts": parts.content(), "content": content if rank == 0 else {}}, write


def _nothing() -> None:
    """What ranks other than 0 do behind a save."""


def _count_nothing(size_bytes: int) -> None:
    """Where nobody asks how far a save is."""


def content_to_save(trainer: Trainer, last_fit: LastFit, weights_only: bool, caller: str) -> dict[str, Any]:
    """Return the content of a checkpoint. Communicates on a group.

    Args:
        trainer: Whose.
        last_fit: What is left of its last fit.
        weights_only: Leave out all that only training needs.
        caller: The call, for messages.

    Raises:
        RuntimeError: What belongs to the checkpoint is not in this process.
    """
    running, module = trainer.engine, trainer.lightning_module
    if module is None:
        raise RuntimeError(
            f"{caller}: this trainer has no run in this process. "
            "Call it from a hook or after fit, or use a ModelCheckpoint callback."
        )
    if running is not None and running.job.fn == "fit":
        return contents.build(running, weights_only)
    fitted = last_fit.engine
    if fitted is not None and fitted.module is module:
        return contents.build(fitted, weights_only)
    if weights_only and running is not None:
        return contents.build(running, weights_only)
    if module is last_fit.lost:
        raise RuntimeError(
            f"{caller}: the last fit failed on its workers, and what it trained is lost with them. "
            "Use a checkpoint that a ModelCheckpoint callback has written."
        )
    if weights_only:
        return contents.build_weights(module, trainer.datamodule, trainer.state)
    if fitted is not None:
        raise RuntimeError(
            f"{caller}: the last fit trained another {type(fitted.module).__qualname__} than the "
            f"{type(module).__qualname__} of the last call, whose optimizer has no state. "
            "Use weights_only=True, or save before the other module is used."
        )
    if running is None or trainer.state.global_step:
        raise RuntimeError(
            f"{caller}: the optimizer's state is not in this process: it ended with the workers of fit. "
            "Use weights_only=True, call it from a hook of fit, or use a ModelCheckpoint callback."
        )
    return contents.build(running, weights_only)
