"""Number formats: fp32, bf16 and fp16 with loss scaling, on CPU and GPU.

A precision gives the step three things, built once: a context for the forward pass, or None when there is
nothing to enter; a gradient scaler, or None; and the name it goes by. Weights stay fp32 in all of them. The
autocast context is one object that is entered again and again, with torch's weight cache on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from orchestrator.errors import MisconfigurationError, suggest

_ALIASES: dict[str, str] = {
    "32": "32-true",
    "32-true": "32-true",
    "bf16": "bf16-mixed",
    "bf16-mixed": "bf16-mixed",
    "16": "16-mixed",
    "16-mixed": "16-mixed",
}
_TYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def parse_precision(value: Any) -> str:
    """Return the full name of a precision as a user may write it: 32, "bf16", "16-mixed", ...

    Raises:
        MisconfigurationError: There is no such precision.
    """
    name = _ALIASES.get(str(value)) if not isinstance(value, bool) else None
    if name is None:
        raise MisconfigurationError(
            f"Trainer(precision={value!r}) is unknown.{suggest(value, _ALIASES)} "
            "Use 32, 'bf16-mixed' or '16-mixed'."
        )
    return name


@dataclass(slots=True, kw_only=True)
class Precision:
    """What a precision needs at run time.

    Attributes:
        name: Such as ``bf16-mixed``.
        autocast: The context of forward passes; None for fp32.
        scaler: Scales the loss so that fp16 gradients do not vanish; None otherwise.
    """

    name: str
    autocast: torch.autocast | None
    scaler: torch.amp.GradScaler | None

    @classmethod
    def create(cls, name: str, device: torch.device) -> Precision:
        """Build the precision called `name` (as `parse_precision` returns it) for `device`."""
        dtype = _TYPES.get(name)
        autocast = None if dtype is None else torch.autocast(device.type, dtype=dtype)
        scaler = torch.amp.GradScaler(device.type) if name == "16-mixed" else None
        return cls(name=name, autocast=autocast, scaler=scaler)

    def state_dict(self) -> dict[str, Any]:
        """Return the scaler's state; empty without one."""
        return {} if self.scaler is None else self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the scaler's state back."""
        if self.scaler is not None and state:
            self.scaler.load_state_dict(state)
