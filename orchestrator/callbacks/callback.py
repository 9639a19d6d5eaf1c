"""The base class of callbacks: a method for every point of training, all empty.

A hook that a subclass does not override is never called, so an unused hook costs nothing. Hooks run on every
rank, in the order in which callbacks were given, checkpointing ones last. An exception in a hook ends
training like one in the module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modules.log import LogMixin

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from modules.module import LightningModule
    from orchestrator.trainer import Trainer


class Callback(LogMixin):
    """Override any of the hooks. The trainer and the module come first, then what the hook is about.

    In a hook, ``self.log`` and ``self.log_dict`` record what ``pl_module.log`` would.

    Attributes:
        watches_metrics: Run ``on_train_epoch_end`` after the module's, when the epoch's metrics are decided.
        tunes: Run before all callbacks that do not: this one finds out a setting that others start from.
        meets_ranks: ``on_train_batch_end`` communicates, or counts what must be equal on all ranks; so it
            also runs on a rank whose data has ended, with None for outputs and batch.
    """

    watches_metrics: bool = False
    tunes: bool = False
    meets_ranks: bool = False

    @property
    def state_key(self) -> str:
        """The key of this callback's state in a checkpoint; two callbacks of one class need two keys."""
        return type(self).__qualname__

    def _generate_state_key(self, **arguments: Any) -> str:
        """Return a `state_key` of the class name and `arguments`, for classes that are used twice."""
        return f"{type(self).__qualname__}{arguments!r}"

    def unused_hooks(self) -> frozenset[str]:
        """Return the names of hooks that this class overrides but that do nothing in this object.

        Asked once, before training; so a hook that only some arguments need costs the others nothing.
        """
        return frozenset()

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: tensors, numbers, strings, and containers of them."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        state.pop("_log_sink", None)
        return state

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Called first, before anything is built. `stage` is fit, validate, test or predict."""

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Called last, also after a failure."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called when fit begins, optimizers are built."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called when fit has ended."""

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called before the validation batches that are tried before training."""

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called after the validation batches that are tried before training."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called before the first epoch."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called after the last epoch."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called before the first batch of a training epoch."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called after an epoch's last batch and its validation."""

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Called before training_step."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Called after the optimizer step; `outputs` is what training_step returned, detached."""

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called before validation."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called after validation."""

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called before the first validation batch."""

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called after the last validation batch, before epoch metrics are reduced."""

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Called before validation_step."""

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Called after validation_step."""

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called before testing."""

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called after testing."""

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called before the first test batch."""

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called after the last test batch, before epoch metrics are reduced."""

    def on_test_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Called before test_step."""

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Called after test_step."""

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called before prediction."""

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called after prediction."""

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called before the first prediction batch."""

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called after the last prediction batch."""

    def on_predict_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Called before predict_step."""

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Called after predict_step."""

    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Called before gradients are zeroed."""

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Called before backward; `loss` is the value that is differentiated."""

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called after backward, before gradients are unscaled and clipped."""

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Called after unscaling, before clipping and the optimizer's step."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Called when training ends by an exception, before teardown."""

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """May add to the checkpoint before it is written."""

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Called with a checkpoint that is being resumed."""
