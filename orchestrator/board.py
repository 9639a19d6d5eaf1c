"""The metrics that have been decided: what callbacks, the progress display and the user read.
 Three views of the same values, as Lightning has them: ``callback`` (all), ``logged`` (sent to loggers) and
``progress``. Values of steps that have not been reduced yet are read from the slots on demand; reading never
communicates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from orchestrator.log_slots import LogSlots, Slot


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
        name = f"{slot.name}_step" if slot.on_epoch else slot.name
        tensor = torch.tensor(value, dtype=slot.dtype)
        self.callback[name] = self.callback[slot.name] = tensor
        if slot.logger:
            self.logged[name] = tensor
        if slot.prog_bar:
            self.progress[name] = value

    def put_epoch(self, slot: Slot, value: float) -> None:
        """Take the value of an epoch."""
        name = f"{slot.name}_epoch" if slot.on_step else slot.name
        tensor = torch.tensor(value, dtype=slot.dtype)
        self.callback[name] = self.callback[slot.name] = tensor
        if slot.logger:
            self.logged[name] = tensor
        if slot.prog_bar:
            self.progress[name] = value

    def with_steps(self, slots: LogSlots | None) -> dict[str, Tensor]:
        """Return the callback view, with the newest step values of `slots`."""
        values = dict(self.callback)
        for slot in slots.stepped() if slots is not None else ():
            last = torch.tensor(slot.host_last) if slot.last is None else slot.last.to(slot.dtype, copy=True)
            values[slot.name] = last
            if slot.on_epoch:
                values[f"{slot.name}_step"] = last
        return values
