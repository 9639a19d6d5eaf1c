"""Number formats: fp32, fp64, bf16 and fp16, mixed or throughout, and fp8 matrix products, on CPU and GPU.

A precision gives the loops what they need, built once: a context for the forward pass, or None when there is
nothing to enter; a gradient scaler, or None; the type that inputs are brought to, or None. In the mixed forms
weights stay fp32, and the autocast context is one object that is entered again and again with torch's weight
cache on, so that a weight is cast once a step. In the true forms the module itself is cast, and stays so.
What a device cannot do is refused before anything starts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from orchestrator.errors import MisconfigurationError, suggest

_ALIASES: dict[str, str] = {
    "64": "64-true",
    "64-true": "64-true",
    "32": "32-true",
    "32-true": "32-true",
    "16": "16-mixed",
    "16-mixed": "16-mixed",
    "16-true": "16-true",
    "bf16": "bf16-mixed",
    "bf16-mixed": "bf16-mixed",
    "bf16-true": "bf16-true",
    "8": "fp8-mixed",
    "fp8": "fp8-mixed",
    "fp8-mixed": "fp8-mixed",
}
_NAMES = tuple(dict.fromkeys(_ALIASES.values()))
_MIXED = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16, "fp8-mixed": torch.bfloat16}
_TRUE = {"64-true": torch.float64, "bf16-true": torch.bfloat16, "16-true": torch.float16}


def parse_precision(value: Any) -> str:
    """Return the full name of a precision as a user may write it: 32, "bf16", "16-mixed", ...

    Raises:
        MisconfigurationError: There is no such precision.
    """
    name = _ALIASES.get(str(value)) if isinstance(value, (int, str)) and not isinstance(value, bool) else None
    if name is None:
        raise MisconfigurationError(
            f"Trainer(precision={value!r}) is unknown.{suggest(value, _ALIASES)} "
            f"Use 64, 32, 16, 'bf16', 8, or one of {', '.join(_NAMES)}."
        )
    return name


def check_precision(name: str, device_type: str) -> None:
    """Refuse what devices of a type ("cpu", "cuda", "mps") cannot compute in, or what is not installed.

    Args:
        name: As `parse_precision` returns it.
        device_type: Where the module will be.

    Raises:
        MisconfigurationError: This precision cannot run there.
    """
    if name == "fp8-mixed":
        from orchestrator import float8

        float8.check(device_type)
    if device_type == "mps" and name == "64-true":
        raise MisconfigurationError(
            "Trainer(precision='64-true'): Apple GPUs have no 64-bit numbers. Use 32, or accelerator='cpu'."
        )


class _DefaultType:
    """A context, entered again and again, in which new tensors are of one type unless told otherwise."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._before: list[torch.dtype] = []

    def __enter__(self) -> None:
        self._before.append(torch.get_default_dtype())
        torch.set_default_dtype(self.dtype)

    def __exit__(self, *error: object) -> None:
        torch.set_default_dtype(self._before.pop())


@dataclass(slots=True, kw_only=True)
class Precision:
    """What a precision needs at run time.

    Attributes:
        name: Such as ``bf16-mixed``.
        autocast: The context of forward passes; None for fp32. For the true forms it sets the type of new
            tensors.
        scaler: Scales the loss so that fp16 gradients do not vanish; None otherwise.
        dtype: The type of weights and inputs in the true forms; None where both stay as they are.
    """

    name: str
    autocast: AbstractContextManager[Any] | None
    scaler: torch.amp.GradScaler | None
    dtype: torch.dtype | None = None

    @classmethod
    def create(cls, name: str, device: torch.device) -> Precision:
        """Build the precision called `name` (as `parse_precision` returns it) for `device`."""
        dtype = _TRUE.get(name)
        if dtype is not None:
            return cls(name=name, autocast=_DefaultType(dtype), scaler=None, dtype=dtype)
        mixed = _MIXED.get(name)
        autocast = None if mixed is None else torch.autocast(device.type, dtype=mixed)
        scaler = torch.amp.GradScaler(device.type) if name == "16-mixed" else None
        return cls(name=name, autocast=autocast, scaler=scaler)

    @property
    def compute_dtype(self) -> torch.dtype | None:
        """The type that matrix products are computed in where weights are kept in another; else None."""
        return _MIXED.get(self.name)

    def new_tensors(self) -> AbstractContextManager[Any]:
        """Return a context in which new tensors are of the weights' type."""
        return nullcontext() if self.dtype is None else _DefaultType(self.dtype)

    def convert(self, module: nn.Module, device: torch.device) -> None:
        """Bring the module's weights and floating-point buffers to this precision, for good.

        Raises:
            MisconfigurationError: fp8, on a GPU that cannot.
        """
        if self.dtype is not None:
            module.to(self.dtype)
        elif self.name == "fp8-mixed":
            from orchestrator import float8

            float8.convert(module, device)

    def revert(self, module: nn.Module) -> None:
        """Put ordinary layers back in the place of those that `convert` made."""
        if self.name == "fp8-mixed":
            from orchestrator import float8

            float8.revert(module)

    def forget_step(self) -> None:
        """Forget of a step that is run again what the scaler has unscaled of it."""
        if self.scaler is not None:
            self.scaler._per_optimizer_states.clear()  # nothing public does without counting the step

    def state_dict(self) -> dict[str, Any]:
        """Return the scaler's state; empty without one."""
        return {} if self.scaler is None else self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the scaler's state back."""
        if self.scaler is not None and state:
            self.scaler.load_state_dict(state)


class _WithoutInit(torch.overrides.TorchFunctionMode):
    """Leaves out the functions of torch.nn.init that say so to torch, which layers of torch.nn use."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


@contextmanager
def module_creation(name: str, device: str, empty_init: bool | None) -> Iterator[None]:
    """A context in which modules are built as a run in the precision `name` needs them.

    Args:
        name: As `parse_precision` returns it; the true forms build weights in their type at once.
        device: Where to build them.
        empty_init: Leave weights unfilled, because a checkpoint will fill them.
    """
    dtype = _TRUE.get(name, torch.get_default_dtype())
    with _DefaultType(dtype), torch.device(device):
        if empty_init:
            with _WithoutInit():
                yield
        else:
            yield
