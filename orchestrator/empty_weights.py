"""Build a module without filling its weights: for modules whose weights are loaded right afterwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.overrides import TorchFunctionMode


class SkipInit(TorchFunctionMode):
    """A context in which torch's initialisers leave tensors as they are: whatever was in that memory."""

    def __torch_function__(
        self, function: Callable[..., Any], kinds: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        named = dict(kwargs or {})
        if getattr(function, "__module__", "") == "torch.nn.init":
            return named["tensor"] if "tensor" in named else args[0]
        return function(*args, **named)
