"""What ``self.optimizers()`` returns: the user's optimizer, whose ``step`` also does what belongs to a step.

Everything but ``step`` and toggling is the optimizer's own: attributes are read from it and written to it,
and ``isinstance`` sees its class. The optimizer itself is never changed; `optimizer` is it. While nobody
conducts (before and after training) ``step`` is the optimizer's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from orchestrator.errors import MisconfigurationError

Closure = Callable[[], Any]


class Conductor(Protocol):
    """Runs the steps of optimizers: automatic or manual optimization."""

    def step(self, optimizer: LightningOptimizer, closure: Closure | None, options: dict[str, Any]) -> Any:
        """Step, with all that belongs to it, and return what the optimizer's step returns."""
        ...

    def synchronized(self, on: bool) -> AbstractContextManager[None]:
        """Return a context in which backward reduces gradients over ranks, or does not."""
        ...


class LightningOptimizer:
    """An optimizer, and who conducts its steps.

    Args:
        optimizer: The user's.
        module: Whose parameters are toggled.

    Attributes:
        conductor: Runs `step`; None outside of training.
    """

    __slots__ = ("__weakref__", "_module", "_optimizer", "conductor")

    def __init__(self, optimizer: Optimizer, module: Any) -> None:
        put = object.__setattr__
        put(self, "_optimizer", optimizer)
        put(self, "_module", module)
        put(self, "conductor", None)

    @property
    def optimizer(self) -> Optimizer:
        """The user's optimizer."""
        return self._optimizer  # type: ignore[no-any-return]

    def step(self, closure: Closure | None = None, **options: Any) -> Any:
        """Step: the closure if there is one, hooks, and the optimizer's own step with `options`.

        Args:
            closure: Zeroes gradients, runs forward and backward, and returns the loss.
            options: Passed on to the optimizer's ``step``.

        Raises:
            MisconfigurationError: `closure` cannot be called.
        """
        if closure is not None and not callable(closure):
            raise MisconfigurationError(
                f"optimizer.step(closure={closure!r}) is a {type(closure).__name__}. Give a function without "
                "arguments, or leave it out."
            )
        if self.conductor is not None:
            return self.conductor.step(self, closure, options)
        step = self._optimizer.step
        return step(**options) if closure is None else step(closure=closure, **options)

    @contextmanager
    def toggle_model(self, sync_grad: bool = True) -> Iterator[None]:
        """Within it only this optimizer's parameters need gradients.

        Args:
            sync_grad: On a group, backward reduces gradients over ranks. False accumulates on each rank; the
                next backward with True, or the optimizer's step, reduces what has come together.
        """
        conductor = self.conductor
        with (
            nullcontext() if conductor is None else conductor.synchronized(sync_grad),
            self._module.toggled_optimizer(self),
        ):
            yield

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """The optimizer's class, for `isinstance`."""
        return type(self._optimizer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "conductor":
            object.__setattr__(self, name, value)
        else:
            setattr(self._optimizer, name, value)

    def __repr__(self) -> str:
        return f"LightningOptimizer({self._optimizer!r})"

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("A LightningOptimizer belongs to its process. Keep optimizer.state_dict() instead.")


class AutomaticOptimization:
    """What a module that is optimised automatically is attached to: its optimizers, nothing to call.

    Args:
        optimizers: As the module sees them.
    """

    def __init__(self, optimizers: list[LightningOptimizer]) -> None:
        self.optimizers = optimizers

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Run backward; the loop does, so the module does not ask for it."""
        loss.backward(*args, **kwargs)

    def prepare_clipping(self, optimizer: Optimizer) -> None:
        """Gradients are ready when the loop clips them."""


def run_step(
    optimizer: LightningOptimizer,
    closure: Closure | None,
    options: dict[str, Any],
    finish: Closure,
    scaler: torch.amp.GradScaler | None,
) -> Any:
    """Run an optimizer's own step with `finish` after the closure, and return what it returns.

    Args:
        optimizer: Whose step.
        closure: Runs forward and backward; where a scaler skips steps it runs before the optimizer's step.
        options: Passed on to the optimizer's step.
        finish: What comes between backward and the optimizer's step.
        scaler: Steps for the optimizer unless gradients have overflowed; its ``update`` is the caller's.
    """
    if scaler is not None:
        loss = None if closure is None else closure()
        finish()
        if has_gradients(optimizer.optimizer):
            scaler.step(optimizer.optimizer, **options)
        return loss
    if closure is None:
        finish()
        return optimizer.optimizer.step(**options)

    def finished() -> Any:
        loss = closure()
        finish()
        return loss

    return optimizer.optimizer.step(closure=finished, **options)


def has_gradients(optimizer: Optimizer) -> bool:
    """Whether any of the optimizer's parameters has a gradient."""
    return any(item.grad is not None for group in optimizer.param_groups for item in group["params"])


def parameters_of(optimizer: Optimizer) -> list[torch.nn.Parameter]:
    """Return the parameters of all of the optimizer's groups."""
    return [item for group in optimizer.param_groups for item in group["params"]]
