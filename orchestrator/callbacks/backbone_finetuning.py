"""Train a head on a frozen backbone first, then both, the backbone with a learning rate that grows.

The module's attribute ``backbone`` is frozen before training; at a given epoch it thaws and joins the
optimizer, with its rate multiplied each epoch until it has reached the head's. A module without a backbone
raises `MisconfigurationError` before training, as do arguments that cannot work.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer

from orchestrator.callbacks.base_finetuning import BaseFinetuning
from orchestrator.errors import MisconfigurationError

if TYPE_CHECKING:
    from modules.module import LightningModule
    from orchestrator.trainer import Trainer


def multiplicative(epoch: int) -> float:
    """Return 2: the backbone's learning rate doubles each epoch."""
    return 2.0


class BackboneFinetuning(BaseFinetuning):
    """Thaws ``pl_module.backbone`` at an epoch.

    Args:
        unfreeze_backbone_at_epoch: The epoch, from 0, at whose start it thaws.
        lambda_func: Returns, by epoch, what its learning rate is multiplied by.
        backbone_initial_ratio_lr: Its first learning rate, as a share of the optimizer's.
        backbone_initial_lr: Its first learning rate itself, instead.
        should_align: Hold its rate at the optimizer's once it has reached it.
        initial_denom_lr: Accepted; the first rate is given by the two arguments above.
        train_bn: Batch normalization is trained from the beginning.
        verbose: Print both rates each epoch.
        rounding: Digits that are printed.

    Raises:
        MisconfigurationError: An argument cannot work.
    """

    def __init__(
        self,
        unfreeze_backbone_at_epoch: int = 10,
        lambda_func: Callable[[int], float] = multiplicative,
        backbone_initial_ratio_lr: float = 0.1,
        backbone_initial_lr: float | None = None,
        should_align: bool = True,
        initial_denom_lr: float = 10.0,
        train_bn: bool = True,
        verbose: bool = False,
        rounding: int = 12,
    ) -> None:
        super().__init__()
        epoch = unfreeze_backbone_at_epoch
        if not isinstance(epoch, int) or isinstance(epoch, bool) or epoch < 0:
            raise MisconfigurationError(
                f"BackboneFinetuning(unfreeze_backbone_at_epoch={epoch!r}) is not an epoch. Write 0 or more."
            )
        if not callable(lambda_func):
            raise MisconfigurationError(
                f"BackboneFinetuning(lambda_func={lambda_func!r}) cannot be called. Give a function of the "
                "epoch."
            )
        for name, value in (
            ("backbone_initial_ratio_lr", backbone_initial_ratio_lr),
            ("backbone_initial_lr", backbone_initial_lr),
        ):
            if value is not None and not (isinstance(value, int | float) and 0 < value < math.inf):
                raise MisconfigurationError(
                    f"BackboneFinetuning({name}={value!r}) is no rate. Write a number above 0."
                )
        self.unfreeze_backbone_at_epoch = epoch
        self.lambda_func = lambda_func
        self.backbone_initial_ratio_lr = backbone_initial_ratio_lr
        self.backbone_initial_lr = backbone_initial_lr
        self.should_align = should_align
        self.initial_denom_lr = initial_denom_lr
        self.train_bn = train_bn
        self.verbose = verbose
        self.rounding = rounding
        self.previous_backbone_lr: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the backbone's learning rate, and what the base class keeps."""
        return {**super().state_dict(), "previous_backbone_lr": self.previous_backbone_lr}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self.previous_backbone_lr = state_dict["previous_backbone_lr"]
        super().load_state_dict(state_dict)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a module without a backbone, and freeze it."""
        if not isinstance(getattr(pl_module, "backbone", None), nn.Module):
            raise MisconfigurationError(
                f"BackboneFinetuning needs {type(pl_module).__qualname__}.backbone, a torch.nn.Module. "
                "Give the "
                "part to thaw that name, or subclass BaseFinetuning."
            )
        super().setup(trainer, pl_module, stage)

    def freeze_before_training(self, pl_module: LightningModule) -> None:
        """Freeze the backbone."""
        self.freeze(_backbone(pl_module), train_bn=self.train_bn)

    def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: Optimizer) -> None:
        """Thaw the backbone at its epoch, and raise its learning rate from then on."""
        if epoch < self.unfreeze_backbone_at_epoch:
            return
        current = float(optimizer.param_groups[0]["lr"])
        if epoch == self.unfreeze_backbone_at_epoch or self.previous_backbone_lr is None:
            rate = self.backbone_initial_lr or current * self.backbone_initial_ratio_lr
            self.unfreeze_and_add_param_group(_backbone(pl_module), optimizer, rate, train_bn=self.train_bn)
        else:
            rate = self.lambda_func(epoch + 1) * self.previous_backbone_lr
            if self.should_align and rate > current:
                rate = current
            optimizer.param_groups[-1]["lr"] = rate
        self.previous_backbone_lr = rate
        if self.verbose and pl_module.trainer.is_global_zero:
            print(
                f"Learning rate {round(current, self.rounding)}, backbone {round(rate, self.rounding)}",
                flush=True,
            )


def _backbone(pl_module: LightningModule) -> nn.Module:
    backbone: nn.Module = pl_module.backbone  # type: ignore[assignment]
    return backbone
