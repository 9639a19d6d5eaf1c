"""What a LightningModule calls to optimise by hand: its optimizers, backward, clipping, and whose parameters
learn.

With ``automatic_optimization = False`` training_step runs backward and the optimizers itself. Nothing here
is called by the trainer itself. Without a trainer that trains the module, optimizers and backward are a
`RuntimeError`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer


class Optimization(Protocol):
    """What a trainer attaches while it trains.

    Attributes:
        optimizers: The optimizers, whose ``step`` does all that belongs to a step.
    """

    optimizers: list[Any]

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Run backward with scaling, hooks and reduction over ranks."""
        ...

    def prepare_clipping(self, optimizer: Optimizer) -> None:
        """Make the optimizer's gradients what its step would use."""
        ...


class OptimizationMixin:
    """The methods of a LightningModule for manual optimization."""

    automatic_optimization: bool
    trainer: Any
    _trainer: Any
    _optimization: Any

    def optimizers(self, use_pl_optimizer: bool = True) -> Any:
        """Return the optimizer, or the list of them when there are several.

        Args:
            use_pl_optimizer: Wrapped, so that ``step`` calls hooks, scales and counts; False returns the very
                objects of ``configure_optimizers``.
        """
        attached: Optimization | None = self.__dict__.get("_optimization")
        wrapped = use_pl_optimizer and attached is not None
        found = list(attached.optimizers if wrapped else self.trainer.optimizers)  # type: ignore[union-attr]
        return found[0] if len(found) == 1 else found

    def lr_schedulers(self) -> Any:
        """Return the scheduler, the list of them when there are several, or None."""
        found = [config.scheduler for config in self.trainer.lr_scheduler_configs]
        return None if not found else found[0] if len(found) == 1 else found

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Run ``loss.backward(*args, **kwargs)`` with hooks, loss scaling and the reduction over ranks.

        Call it instead of ``loss.backward()`` where ``automatic_optimization`` is False.

        Raises:
            RuntimeError: The module is optimised automatically, or nobody trains it.
        """
        if self.automatic_optimization:
            raise RuntimeError(
                f"{type(self).__qualname__}.manual_backward() is for manual optimization. Set "
                "self.automatic_optimization = False in __init__, or return the loss from training_step."
            )
        attached: Optimization | None = self.__dict__.get("_optimization")
        if attached is None:
            raise RuntimeError(
                f"{type(self).__qualname__}.manual_backward() was called, and no Trainer trains the module. "
                "Call trainer.fit(module), or loss.backward()."
            )
        attached.backward(loss, *args, **kwargs)

    def toggle_optimizer(self, optimizer: Any) -> None:
        """Let only the parameters of `optimizer` need gradients, until `untoggle_optimizer`."""
        self.untoggle_optimizer(optimizer)
        own = {id(item) for group in optimizer.param_groups for item in group["params"]}
        changed: list[nn.Parameter] = []
        for other in self.trainer.optimizers:
            for group in other.param_groups:
                for item in group["params"]:
                    if item.requires_grad and id(item) not in own:
                        item.requires_grad = False
                        changed.append(item)
        self.__dict__["_toggled_off"] = changed

    def untoggle_optimizer(self, optimizer: Any) -> None:
        """Undo `toggle_optimizer`: parameters need gradients again where they did before."""
        for item in self.__dict__.pop("_toggled_off", ()):
            item.requires_grad = True

    @contextmanager
    def toggled_optimizer(self, optimizer: Any) -> Iterator[None]:
        """Within it only the parameters of `optimizer` need gradients."""
        self.toggle_optimizer(optimizer)
        try:
            yield
        finally:
            self.untoggle_optimizer(optimizer)

    def clip_gradients(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients of the optimizer's parameters: ``"norm"`` of all together (default) or each
        ``"value"``. What is not given is as in the Trainer; without a value nothing is clipped.

        In manual optimization, call it between `manual_backward` and the optimizer's step.

        Raises:
            ValueError: There is no such algorithm.
        """
        if gradient_clip_algorithm not in (None, "norm", "value"):
            raise ValueError(
                f"clip_gradients(gradient_clip_algorithm={gradient_clip_algorithm!r}): there is no such "
                'algorithm. Use "norm" or "value".'
            )
        if gradient_clip_val is None and self._trainer is not None:
            gradient_clip_val = self._trainer.gradient_clip_val
        if gradient_clip_algorithm is None and self._trainer is not None:
            gradient_clip_algorithm = self._trainer.gradient_clip_algorithm
        if not gradient_clip_val:
            return
        if self._optimization is not None:
            self._optimization.prepare_clipping(optimizer)
        parameters = [item for group in optimizer.param_groups for item in group["params"]]
        if gradient_clip_algorithm == "value":
            nn.utils.clip_grad_value_(parameters, gradient_clip_val)
        else:
            nn.utils.clip_grad_norm_(parameters, gradient_clip_val)
