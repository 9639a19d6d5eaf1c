"""The sanity check: a few validation batches before training, so that an error there shows at once.

It leaves no trace in metrics and random streams. There is none where it was turned off, where nothing is
validated, or where a checkpoint is gone on from. What validation raises goes on to the caller.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from modules import rng

if TYPE_CHECKING:
    from orchestrator.engine import Engine


def sanity_check(engine: Engine) -> None:
    """Try some validation batches before training, leaving no trace in metrics and random streams."""
    batches = engine.settings.num_sanity_val_steps
    if not batches or engine.job.ckpt_path is not None or not engine.data.has_validation():
        return
    with rng.isolated():
        engine.state.stage = "sanity"
        engine.call("on_sanity_check_start")
        engine.data.load_validation()
        limits = [
            min(batches, limit) if batches > 0 and limit is not None else batches if batches > 0 else limit
            for limit in engine.data.val_limits
        ]
        if limits:
            engine.evaluate("sanity", engine.data.val, limits)
        engine.call("on_sanity_check_end")
    engine.board.clear()
