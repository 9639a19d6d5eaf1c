"""What ``trainer.save_checkpoint`` writes, wherever and whenever it is called.

During a fit it is the run as it stands. Afterwards it is still the fit's: its optimizer state outlives
validations and tests that follow. In the driver of a group only the weights are there, and only they can be
saved. What is not in this process is a `RuntimeError` that says where it is; nothing is made up in its place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modules.module import LightningModule
from orchestrator.checkpoint import contents

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
