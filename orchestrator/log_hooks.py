"""Where `self.log` may be called, and what it records there unless told otherwise.

Three kinds of places: steps of training, where the newest value counts; steps of evaluation, where the mean
over the epoch does; and hooks around epochs, where there is no step at all. Everywhere else there is neither
a step nor an epoch to which a value could belong, and logging is refused. Pure tables; nothing here fails.
"""

from __future__ import annotations

TRAIN_STEP = frozenset(
    {
        "training_step",
        "on_train_batch_start",
        "on_train_batch_end",
        "on_before_zero_grad",
        "on_before_backward",
        "on_after_backward",
        "on_before_optimizer_step",
        "backward",
        "optimizer_step",
        "optimizer_zero_grad",
        "configure_gradient_clipping",
        "clip_gradients",
    }
)
EVAL_STEP = frozenset(
    name
    for stage in ("validation", "test")
    for name in (f"{stage}_step", f"on_{stage}_batch_start", f"on_{stage}_batch_end")
)
EPOCH_ONLY = frozenset(
    name
    for stage in ("train", "validation", "test")
    for name in (f"on_{stage}_start", f"on_{stage}_epoch_start", f"on_{stage}_epoch_end")
)
ALLOWED = TRAIN_STEP | EVAL_STEP | EPOCH_ONLY


def records_step(hook: str, on_step: bool | None) -> bool:
    """Whether the value of the step is recorded, where the user wrote ``on_step=on_step``."""
    return hook in TRAIN_STEP if on_step is None else on_step


def records_epoch(hook: str, on_epoch: bool | None) -> bool:
    """Whether the reduction of the epoch is recorded, where the user wrote ``on_epoch=on_epoch``."""
    return hook not in TRAIN_STEP if on_epoch is None else on_epoch
