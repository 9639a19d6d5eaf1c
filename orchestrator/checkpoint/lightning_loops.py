"""The progress of training as Lightning's loops keep it, so that each can go on from the other's files.

Only counters: Lightning reads every one of these keys, and takes most of them for totals over training. It
keeps neither the order of samples nor random states, so in the middle of an epoch it goes on after as many
batches of ours, but not bit for bit.
"""

from __future__ import annotations

from typing import Any

from orchestrator.state import TrainState


def loops(state: TrainState, *, is_last_batch: bool) -> dict[str, Any]:
    """Return what stands under ``loops`` in a Lightning checkpoint.

    Args:
        state: The counters.
        is_last_batch: The last batch that was run ended its epoch.
    """
    begun = state.epoch + (state.epoch_batches > 0)
    processed = state.epoch + state.epoch_ended
    epochs = {"ready": begun, "started": begun, "processed": processed, "completed": state.epoch}
    steps = _counts(state.global_step, "ready", "completed")
    in_hooks = int(state.epoch_batches > 0 and not (state.validated or state.epoch_ended))
    past, current = _batches(state.past_batches + state.epoch_batches), _batches(state.epoch_batches)
    for counts in (past, current):  # Lightning completes a batch after its last hook
        counts["completed"] -= in_hooks
    return {
        "fit_loop": {
            "state_dict": {},
            "epoch_progress": {"total": epochs, "current": dict(epochs)},
            "epoch_loop.state_dict": {"_batches_that_stepped": state.windows},
            "epoch_loop.batch_progress": {
                "total": past,
                "current": current,
                "is_last_batch": is_last_batch,
            },
            "epoch_loop.scheduler_progress": _progress(_counts(0, "ready", "completed")),
            "epoch_loop.automatic_optimization.state_dict": {},
            "epoch_loop.automatic_optimization.optim_progress": {
                "optimizer": {
                    "step": _progress(steps),
                    "zero_grad": _progress({**steps, "started": state.global_step}),
                }
            },
            "epoch_loop.manual_optimization.state_dict": {},
            "epoch_loop.manual_optimization.optim_step_progress": _progress(steps),
            "epoch_loop.val_loop.state_dict": {},
            "epoch_loop.val_loop.batch_progress": {**_progress(_batches(0)), "is_last_batch": False},
        },
        **{
            f"{stage}_loop": {
                "state_dict": {},
                "batch_progress": {**_progress(_batches(0)), "is_last_batch": False},
            }
            for stage in ("validate", "test", "predict")
        },
    }


def place(content: dict[str, Any]) -> tuple[int, int]:
    """Return how many epochs had ended when Lightning wrote `content`, and the batches of a running one.

    Args:
        content: The checkpoint.
    """
    loop = (content.get("loops") or {}).get("fit_loop")
    if loop is None:
        return content["epoch"] + 1, 0
    epochs, batches = loop["epoch_progress"]["current"], loop["epoch_loop.batch_progress"]
    if epochs["started"] == epochs["processed"]:
        return epochs["processed"], 0
    if batches["is_last_batch"]:
        return epochs["processed"] + 1, 0
    return epochs["processed"], batches["current"]["processed"]


def batches_that_stepped(content: dict[str, Any], otherwise: int) -> int:
    """Return how many batches had stepped when Lightning wrote `content`: where its log points are.

    Args:
        content: The checkpoint.
        otherwise: Where it does not say.
    """
    loop = (content.get("loops") or {}).get("fit_loop") or {}
    return int((loop.get("epoch_loop.state_dict") or {}).get("_batches_that_stepped", otherwise))


def _counts(number: int, *names: str) -> dict[str, int]:
    return dict.fromkeys(names, number)


def _batches(number: int) -> dict[str, int]:
    return _counts(number, "ready", "started", "processed", "completed")


def _progress(counts: dict[str, int]) -> dict[str, dict[str, int]]:
    return {"total": dict(counts), "current": dict(counts)}
