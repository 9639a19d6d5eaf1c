"""Freeze parts of a module before training, and thaw them at epochs of one's choice.

A subclass says what is frozen and when it thaws; thawed parameters join the optimizer as a group of their
own. A checkpoint keeps which parameters are in which group and which are trainable, so a resumed run goes on
with them. On a group all ranks must do the same; gradients of what has thawed are reduced from the next
batch on, where it thaws at the start of an epoch. A module whose names have changed since the checkpoint
raises `MisconfigurationError`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from orchestrator.callbacks.callback import Callback
from orchestrator.errors import MisconfigurationError

if TYPE_CHECKING:
    from modules.module import LightningModule
    from orchestrator.trainer import Trainer

Modules: TypeAlias = "nn.Module | Iterable[Modules]"


class BaseFinetuning(Callback):
    """Subclass it: override `freeze_before_training` and `finetune_function`, and use the static methods."""

    def __init__(self) -> None:
        self._groups: dict[int, list[dict[str, Any]]] = {}
        self._trainable: list[str] | None = None

    def freeze_before_training(self, pl_module: LightningModule) -> None:
        """Freeze what is to be frozen at first, before optimizers are built. Override it."""
        raise NotImplementedError(f"{type(self).__qualname__} must define freeze_before_training(pl_module).")

    def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: Optimizer) -> None:
        """Thaw what is to be thawed at the start of `epoch`. Called for each optimizer. Override it."""
        raise NotImplementedError(
            f"{type(self).__qualname__} must define finetune_function(pl_module, epoch, optimizer)."
        )

    # ---------------------------------------------------------------- what subclasses use

    @staticmethod
    def flatten_modules(modules: Modules) -> list[nn.Module]:
        """Return all modules inside `modules` that hold parameters of their own or no others."""
        if isinstance(modules, nn.Module):
            return [item for item in modules.modules() if not list(item.children()) or item._parameters]
        return [found for item in modules for found in BaseFinetuning.flatten_modules(item)]

    @staticmethod
    def filter_params(
        modules: Modules, train_bn: bool = True, requires_grad: bool = True
    ) -> Iterator[nn.Parameter]:
        """Yield the parameters of `modules` whose ``requires_grad`` is as asked; without `train_bn` not
        those of batch normalization.
        """
        for module in BaseFinetuning.flatten_modules(modules):
            if isinstance(module, _BatchNorm) and not train_bn:
                continue
            for parameter in module.parameters(recurse=False):
                if parameter.requires_grad == requires_grad:
                    yield parameter

    @staticmethod
    def make_trainable(modules: Modules) -> None:
        """Thaw the parameters of `modules`; batch normalization counts again."""
        for module in BaseFinetuning.flatten_modules(modules):
            if isinstance(module, _BatchNorm):
                module.track_running_stats = True
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad = True

    @staticmethod
    def freeze_module(module: nn.Module) -> None:
        """Freeze the parameters of one module; batch normalization stops counting."""
        if isinstance(module, _BatchNorm):
            module.track_running_stats = False
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad = False

    @staticmethod
    def freeze(modules: Modules, train_bn: bool = True) -> None:
        """Freeze `modules`; with `train_bn` all but batch normalization, which is made trainable."""
        for module in BaseFinetuning.flatten_modules(modules):
            if isinstance(module, _BatchNorm) and train_bn:
                BaseFinetuning.make_trainable(module)
            else:
                BaseFinetuning.freeze_module(module)

    @staticmethod
    def filter_on_optimizer(optimizer: Optimizer, params: Iterable[nn.Parameter]) -> list[nn.Parameter]:
        """Return those of `params` that `optimizer` has not; warn when it has some already."""
        had = {id(item) for group in optimizer.param_groups for item in group["params"]}
        params = list(params)
        new = [item for item in params if id(item) not in had]
        if len(new) < len(params):
            warnings.warn(
                f"{len(params) - len(new)} of {len(params)} parameters that thaw are in the optimizer "
                "already, and stay in their group. Build it in configure_optimizers from the parameters that "
                "need gradients: [p for p in self.parameters() if p.requires_grad].",
                stacklevel=3,
            )
        return new

    @staticmethod
    def unfreeze_and_add_param_group(
        modules: Modules,
        optimizer: Optimizer,
        lr: float | None = None,
        initial_denom_lr: float = 10.0,
        train_bn: bool = True,
    ) -> None:
        """Thaw `modules`, and add their parameters to `optimizer` as a group.

        Args:
            modules: What thaws.
            optimizer: Gets the group.
            lr: The group's learning rate. By default that of the first group, divided by `initial_denom_lr`.
            initial_denom_lr: See `lr`.
            train_bn: Batch normalization joins too.
        """
        had = [item for group in optimizer.param_groups for item in group["params"]]
        awake = {id(item) for item in had if item.requires_grad}
        BaseFinetuning.make_trainable(modules)
        params = BaseFinetuning.filter_params(modules, train_bn=train_bn, requires_grad=True)
        thawed = [item for item in params if id(item) not in awake]
        new = BaseFinetuning.filter_on_optimizer(optimizer, thawed)
        if new:
            rate = optimizer.param_groups[0]["lr"] / initial_denom_lr if lr is None else lr
            optimizer.add_param_group({"params": new, "lr": rate})

    # ---------------------------------------------------------------- state and hooks

    def state_dict(self) -> dict[str, Any]:
        """Return each optimizer's groups, with parameters by name, and which parameters are trainable."""
        return {"internal_optimizer_metadata": self._groups, "trainable": self._trainable}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self._groups = {int(key): groups for key, groups in state_dict["internal_optimizer_metadata"].items()}
        self._trainable = state_dict.get("trainable")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Freeze, unless an earlier fit of this trainer goes on."""
        if stage == "fit" and trainer.current_epoch == 0:
            self._groups, self._trainable = {}, None
            self.freeze_before_training(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give optimizers the groups that they had when the checkpoint was written, before its state is put
        in; or when the last fit ended.
        """
        for index, groups in self._groups.items():
            if index < len(trainer.optimizers):
                _regroup(trainer.optimizers[index], groups, dict(pl_module.named_parameters()))
        if self._groups or self._trainable is not None:
            grouped = {
                name for groups in self._groups.values() for group in groups for name in group["params"]
            }
            trainable = grouped if self._trainable is None else set(self._trainable)
            for name, parameter in pl_module.named_parameters():
                parameter.requires_grad = name in trainable

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the subclass thaw, and note what there is now."""
        names = {id(item): name for name, item in pl_module.named_parameters()}
        for index, optimizer in enumerate(trainer.optimizers):
            self.finetune_function(pl_module, trainer.current_epoch, optimizer)
            self._groups[index] = [
                {**group, "params": [names.get(id(item), "") for item in group["params"]]}
                for group in optimizer.param_groups
            ]
        self._trainable = [name for name, item in pl_module.named_parameters() if item.requires_grad]


def _regroup(optimizer: Optimizer, groups: list[dict[str, Any]], named: dict[str, nn.Parameter]) -> None:
    """Give `optimizer` the parameter groups that `groups` describes by names."""
    lost = sorted({name for group in groups for name in group["params"]} - named.keys())
    if lost:
        raise MisconfigurationError(
            f"The optimizer's groups in the checkpoint hold parameters that the module has not: {lost}. "
            "Use the "
            "module that wrote it."
        )
    optimizer.param_groups.clear()
    for group in groups:
        optimizer.add_param_group({**group, "params": [named[name] for name in group["params"]]})
