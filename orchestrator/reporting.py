"""Brings what was logged to where it is read: the board, the loggers, the display.

All that is logged for steps is read at log points, and all that is logged for an epoch at its end: with one
copy from the device and, on a group, one exchange for all metrics together, whatever their reduction. Between
them nothing waits and nothing communicates. All ranks call these methods at the same moments; they need not
have logged the same names. A value that is not finite is mentioned once and stops nothing.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from orchestrator.errors import MisconfigurationError
from orchestrator.log_reduction import Record, combine
from orchestrator.log_slots import LogSlots
from orchestrator.log_values import to_host
from orchestrator.metric_exchange import Share, compute, shares
from orchestrator.slot import Slot, metric_value

if TYPE_CHECKING:
    from orchestrator.engine import Engine


class Reporting:
    """The reporting half of an engine.

    Args:
        engine: Whose slots, board, loggers and ranks.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._eval_batches: dict[tuple[str, int], int] = {}

    def log_steps(self, outputs: Any = None) -> None:
        """A log point: read the steps' values with one copy, reduce those that ask for it, hand them on.
        Communicates.

        Args:
            outputs: What the training step returned; its loss is looked at too, where something is read from
                its device anyway.
        """
        engine = self._engine
        slots = engine.train_slots
        if engine.place.world_size == 1:
            named, losses = self._read_steps(outputs)
        else:
            clock = engine.validation_clock
            is_up = clock is not None and clock.is_up()

            def own() -> tuple[list[Record], list[dict[str, Any]], list[float], bool, bool, float]:
                named, losses = self._read_steps(outputs)
                records = [slot.step_record(value) for slot, value in named]
                stops, own_step_s = bool(engine.trainer.should_stop), engine.vitals.own_step_s()
                return records, slots.announce(), losses, stops, is_up, own_step_s

            gathered = slots.gather(engine.strategy, own)
            engine.take_agreement([stop for _, _, _, stop, *_ in gathered])
            engine.vitals.compare([own_step_s for *_, own_step_s in gathered])
            if clock is not None:
                clock.agreed = gathered[0][4]
            for _, descriptions, *_ in gathered:
                slots.adopt(descriptions)
            losses = [item for _, _, found, *_ in gathered for item in found]
            named = _combined_steps(slots, [found for found, *_ in gathered])
        self._put_steps(slots, named)
        self._mention_what_is_not_finite(named, losses)
        self._send({slot.step_name: value for slot, value in named if slot.choices.logger}, self._last_step())

    def _read_steps(self, outputs: Any) -> tuple[list[tuple[Slot, float]], list[float]]:
        """Return the values of this rank's last step, and its loss where that is read with them."""
        slots = self._engine.train_slots
        chosen = slots.stepped()
        loss = _loss_in(outputs)
        if loss is not None and all(slot.last is None or slot.last.device != loss.device for slot in chosen):
            loss = None
        values = slots.read_steps(chosen, loss)
        return list(zip(chosen, values, strict=False)), [] if loss is None else values[-1:]

    def log_evaluation_step(self, slots: LogSlots, stage: str, loader: int) -> None:
        """Hand the values that a batch of an evaluation has logged ``on_step`` to the loggers, with one copy.

        They are this rank's; they stand at the number of the batch among those of the same stage and loader.
        """
        place = self._eval_batches.get((stage, loader), 0)
        self._eval_batches[stage, loader] = place + 1
        chosen = slots.stepped()
        if not chosen or stage == "sanity":
            return
        values = slots.read_steps(chosen)
        for slot, value in zip(chosen, values, strict=True):
            self._engine.board.put_evaluation_step(slot, value)
            slot.stepped = False
        self._send(
            {
                slot.step_name: value
                for slot, value in zip(chosen, values, strict=True)
                if slot.choices.logger
            },
            place,
            with_epoch=False,
        )

    def reduce(self, slots: LogSlots, *, steps: bool = False) -> dict[tuple[str, str], float]:
        """Reduce the epoch's metrics of `slots` over ranks, put them on the board, and return them by name
        and hook. Communicates.

        May be called again in the same epoch: numbers are then reduced anew, and of metric objects those that
        were logged meanwhile.

        Args:
            slots: Of training or of an evaluation.
            steps: Also put the values of the steps since the last log point on the board.
        """
        strategy = self._engine.strategy
        if strategy.world_size == 1:
            objects = slots.wanted_metrics()
            chosen = slots.stepped() if steps else []
            named = list(zip(chosen, slots.read_steps(chosen), strict=True))
            records = [slots.epoch_records()]
            computed = {path: metric.compute() for path, metric in objects.items()}
        else:

            def own() -> tuple[list[Record], list[Record], list[dict[str, Any]], dict[str, Share]]:
                chosen = slots.stepped() if steps else []
                last = [
                    slot.step_record(value)
                    for slot, value in zip(chosen, slots.read_steps(chosen), strict=True)
                ]
                return last, slots.epoch_records(), slots.announce(), shares(slots.wanted_metrics())

            gathered = slots.gather(strategy, own)
            for _, _, descriptions, _ in gathered:
                slots.adopt(descriptions)
            named = _combined_steps(slots, [found for found, _, _, _ in gathered])
            records = [found for _, found, _, _ in gathered]
            computed = self._compute_together(slots, [sent for _, _, _, sent in gathered])
        self._put_steps(slots, named)
        self._refuse_monitors()
        values = combine(records)
        values.update(slots.take_computed(_numbers(slots, computed)))
        for slot in slots.epoch_slots():
            value = values.get((slot.name, slot.hook))
            if value is not None:
                self._engine.board.put_epoch(slot, value)
        return values

    def _compute_together(self, slots: LogSlots, sent: list[dict[str, Share]]) -> dict[str, Any]:
        """Return the metric objects' values over all ranks, from what each rank has `sent`.

        A rank that has not logged a metric that another has is asked once more.
        """
        wanted = list(dict.fromkeys(path for by_path in sent for path in by_path))
        lacking = [path for path in wanted if any(path not in by_path for by_path in sent)]
        if lacking:

            def own() -> dict[str, Share]:
                slots.objects.share_states()
                return shares({path: slots.objects.at(path) for path in lacking})

            for by_path, more in zip(sent, slots.gather(self._engine.strategy, own), strict=True):
                by_path.update({path: share for path, share in more.items() if path not in by_path})
        return {path: compute(slots.objects.at(path), [by_path[path] for by_path in sent]) for path in wanted}

    def log_epoch(self, slots: LogSlots, values: dict[tuple[str, str], float]) -> None:
        """Hand the metrics of an epoch to the loggers."""
        metrics = {
            slot.epoch_name: values[slot.name, slot.hook]
            for slot in slots.epoch_slots()
            if slot.choices.logger and (slot.name, slot.hook) in values
        }
        self._send(metrics, self._last_step())
        if self._engine.is_global_zero:
            for logger in self._engine.trainer.loggers:
                logger.save()

    def _refuse_monitors(self) -> None:
        """Refuse to go on where a callback watches a metric that rank 0 alone has logged.

        Raises:
            MisconfigurationError: One does: other ranks need not know the metric, and could decide otherwise.
        """
        engine = self._engine
        if engine.job.fn != "fit":
            return
        names = {
            name
            for slots in {engine.slots, engine.train_slots}
            for slot in slots.all_slots()
            if slot.choices.rank_zero_only
            for name in (slot.name, slot.step_name, slot.epoch_name)
        }
        for callback in engine.trainer.callbacks if names else ():
            monitor = getattr(callback, "monitor", None)
            if monitor in names:
                raise MisconfigurationError(
                    f"{type(callback).__name__}(monitor={monitor!r}) watches a metric that is logged by "
                    "self.log(..., rank_zero_only=True): the other ranks need not know it. Log it on every "
                    "rank, without rank_zero_only."
                )

    def _put_steps(self, slots: LogSlots, named: list[tuple[Slot, float]]) -> None:
        for slot, value in named:
            self._engine.board.put_step(slot, value)
            slot.stepped = False
        slots.end_steps()

    def _last_step(self) -> int:
        state = self._engine.state
        return max(0, state.windows - 1) if self._engine.job.fn == "fit" else state.global_step

    def _send(self, metrics: dict[str, float], step: int, *, with_epoch: bool = True) -> None:
        if metrics and self._engine.is_global_zero:
            if with_epoch:  # batches of an evaluation have numbers of their own
                metrics.setdefault("epoch", self._engine.state.epoch)
            if "step" in metrics:
                step = int(metrics.pop("step"))
            for logger in self._engine.trainer.loggers:
                logger.log_metrics(metrics, step)

    def _mention_what_is_not_finite(self, named: list[tuple[Slot, float]], losses: list[float]) -> None:
        """Warn, once a run, of values that are NaN or infinite."""
        told = self._engine.train_slots.told
        found = {slot.step_name: value for slot, value in named if not math.isfinite(value)}
        bad_loss = next((value for value in losses if not math.isfinite(value)), None)
        if bad_loss is not None:
            found = {"the loss": bad_loss, **found}
        if not found or "finite" in told:
            return
        told.add("finite")
        if self._engine.is_global_zero:
            warnings.warn(
                f"After {self._engine.state.global_step} optimizer steps "
                f"{', '.join(f'{name} is {value}' for name, value in found.items())}. Training goes on; "
                "EarlyStopping on a logged metric stops it (check_finite=True).",
                stacklevel=2,
            )


def _combined_steps(slots: LogSlots, records_by_rank: list[list[Record]]) -> list[tuple[Slot, float]]:
    """Return the slots that some rank has a value of a step for, with the value of all ranks."""
    combined = combine(records_by_rank)
    return [
        (slot, combined[slot.name, slot.hook])
        for slot in slots.all_slots()
        if (slot.name, slot.hook) in combined
    ]


def _loss_in(outputs: Any) -> Tensor | None:
    """Return the loss in what a training step returned, if it is a tensor of one element."""
    loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
    return loss.detach().reshape(()) if isinstance(loss, Tensor) and loss.numel() == 1 else None


def _numbers(slots: LogSlots, computed: dict[str, Any]) -> dict[str, float]:
    """Return what metric objects have computed as numbers, with one copy to the host."""
    if not computed:
        return {}
    named = {slot.attribute: slot for slot in slots.epoch_slots() if slot.attribute in computed}
    tensors = []
    for path, value in computed.items():
        tensor = metric_value(named[path].name, slots.objects.at(path), value)
        for slot in slots.epoch_slots():
            if slot.attribute == path and tensor.dtype is torch.float64:
                slot.dtype = torch.float64
        tensors.append(tensor)
    return dict(zip(computed, to_host(tensors, [0.0] * len(tensors)), strict=True))
