"""Optimizers and schedulers as arguments: the types that a command line offers, and how one is made from what
it says.

A class is written as its path, ``torch.optim.Adam``, or its name alone, with arguments beside it. Optimizers
need parameters and schedulers need an optimizer, so they are made where those are known: in
``configure_optimizers``, in the process that trains. A class path that cannot be imported, or arguments that
the class does not take, raise what importing or calling it raises.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from modules.module import LightningModule


class ReduceLROnPlateau(torch.optim.lr_scheduler.ReduceLROnPlateau):
    """PyTorch's scheduler that acts when a metric stops improving, knowing the metric's name.

    Args:
        optimizer: Whose learning rates it lowers.
        monitor: The name of the metric, as logged.
        *args: PyTorch's, in its order.
        **kwargs: PyTorch's.
    """

    def __init__(self, optimizer: Optimizer, monitor: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(optimizer, *args, **kwargs)
        self.monitor = monitor


OptimizerCallable = Callable[[Any], Optimizer]
"""Annotates an argument of a module that is an optimizer without its parameters: it is called with them."""

LRSchedulerCallable = Callable[[Optimizer], LRScheduler | ReduceLROnPlateau]
"""Annotates an argument of a module that is a scheduler without its optimizer: it is called with it."""

LR_SCHEDULERS: tuple[type, ...] = (LRScheduler, ReduceLROnPlateau)


def instantiate_class(args: Any, init: Mapping[str, Any]) -> Any:
    """Return an object of ``init["class_path"]``.

    Args:
        args: Its first positional argument; a tuple holds several.
        init: The class's path as ``class_path``, and its keyword arguments as ``init_args``, if any.
    """
    positional = args if isinstance(args, tuple) else (args,)
    module, _, name = str(init["class_path"]).rpartition(".")
    return getattr(importlib.import_module(module), name)(*positional, **init.get("init_args", {}))


class ConfiguredOptimizers:
    """Stands as a module's ``configure_optimizers`` for the optimizer that the command line names.

    It travels with the module and makes both objects when training asks for them, so that layers made in
    ``configure_model`` are trained too.

    Args:
        module: Whose parameters are trained.
        build: Puts the two together, as `LightningCLI.configure_optimizers` does.
        optimizer: The optimizer's ``class_path`` and ``init_args``.
        lr_scheduler: The scheduler's, or None.
    """

    def __init__(
        self,
        module: LightningModule,
        build: Callable[[LightningModule, Optimizer, Any], Any],
        optimizer: dict[str, Any],
        lr_scheduler: dict[str, Any] | None,
    ) -> None:
        self.module = module
        self.build = build
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler

    def __call__(self) -> Any:
        """Return what ``configure_optimizers`` returns."""
        optimizer = instantiate_class(self.module.parameters(), self.optimizer)
        scheduler = instantiate_class(optimizer, self.lr_scheduler) if self.lr_scheduler else None
        return self.build(self.module, optimizer, scheduler)
