"""The metrics that have been decided: what callbacks, the progress display and the user read.

Three views of the same values, as Lightning has them: ``callback`` (all), ``logged`` (sent to loggers) and
``progress``. Values of steps that have not been reduced yet are read from the slots on demand; reading never
communicates.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from orchestrator.log_slots import LogSlots
from orchestrator.slot import Slot


class Board:
    """Values by name, as scalar tensors on the CPU; `progress` holds floats."""

    def __init__(self) -> None:
        self.callback: dict[str, Tensor] = {}
        self.logged: dict[str, Tensor] = {}
        self.progress: dict[str, float] = {}

    def clear(self) -> None:
        """Forget everything."""
        self.callback.clear()
        self.logged.clear()
        self.progress.clear()

    def put_step(self, slot: Slot, value: float) -> None:
        """Take the value of a step."""
        tensor = self._show(slot, slot.step_name, value)
        self.callback[slot.step_name] = self.callback[slot.name] = tensor

    def put_epoch(self, slot: Slot, value: float) -> None:
        """Take the value of an epoch."""
        tensor = self._show(slot, slot.epoch_name, value)
        self.callback[slot.epoch_name] = self.callback[slot.name] = tensor

    def put_evaluation_step(self, slot: Slot, value: float) -> None:
        """Take the value of an evaluation's step, which callbacks do not see."""
        self._show(slot, slot.step_name, value)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"callback": dict(self.callback), "logged": dict(self.logged), "progress": dict(self.progress)}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned."""
        self.clear()
        self.callback.update(state["callback"])
        self.logged.update(state["logged"])
        self.progress.update(state["progress"])

    def _show(self, slot: Slot, name: str, value: float) -> Tensor:
        with torch.inference_mode(False):  # a tensor made in inference mode could not be changed outside it
            tensor = torch.tensor(value, dtype=slot.dtype)
        if slot.choices.logger:
            self.logged[name] = tensor
        if slot.choices.prog_bar:
            self.progress[name] = value
        return tensor

    def with_steps(self, slots: LogSlots | None) -> dict[str, Tensor]:
        """Return the callback view, with the newest step values of `slots`."""
        values = dict(self.callback)
        for slot in slots.stepped() if slots is not None else ():
            newest = slot.newest()
            last = torch.tensor(slot.host_last) if newest is None else newest.to(slot.dtype, copy=True)
            values[slot.name] = values[slot.step_name] = last
        return values
