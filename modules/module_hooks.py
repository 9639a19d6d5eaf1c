"""What a LightningModule may override: its steps, its data, and the hooks between them.

A hook that is not overridden is never called; what stands here is its signature and its meaning. A step or
loader that is needed and not overridden is refused by the trainer before anything starts; called by hand it
is a `NotImplementedError`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from modules.optimization import OptimizationMixin


class ModuleHooks(OptimizationMixin, nn.Module):
    """The methods of a LightningModule that the trainer calls."""

    # ---------------------------------------------------------------- steps

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Return the loss of a batch: a scalar tensor, or a dictionary with ``loss``; None skips the batch.

        A dictionary with ``loss_sum`` and ``loss_count`` instead makes the gradient of a step that of the sum
        of all sums, over micro-batches and ranks, divided by the sum of all counts (of tokens, say). With
        ``automatic_optimization`` False anything may be returned.

        Called as ``training_step(batch, batch_idx)``; ``batch_idx`` may be left out of the signature.
        """
        raise NotImplementedError

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate a batch: ``validation_step(batch, batch_idx, dataloader_idx=0)``. Use `log` for what
        matters.
        """
        raise NotImplementedError

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate a batch: ``test_step(batch, batch_idx, dataloader_idx=0)``."""
        raise NotImplementedError

    def predict_step(self, *args: Any, **kwargs: Any) -> Any:
        """Return the predictions of a batch; calls ``forward(batch)`` unless overridden."""
        return self(args[0] if args else kwargs["batch"])

    def configure_optimizers(self) -> Any:
        """Return an optimizer, or ``{"optimizer": ..., "lr_scheduler": ...}``, or ``([optimizers],
        [schedulers])``. Several optimizers need ``automatic_optimization = False``.
        """
        raise NotImplementedError

    def configure_model(self) -> None:
        """Build layers here rather than in ``__init__`` when they should be made on the worker. Must be
        idempotent.
        """

    def configure_callbacks(self) -> Any:
        """Return callbacks that belong to this module; they replace the trainer's of the same class."""
        return []

    # ---------------------------------------------------------------- data

    def prepare_data(self) -> None:
        """Download or write data, once per node."""

    def setup(self, stage: str) -> None:
        """Build what depends on the stage (fit, validate, test, predict), in every process."""

    def teardown(self, stage: str) -> None:
        """Clean up at the end of a stage."""

    def train_dataloader(self) -> Any:
        """Return the loader for training."""
        raise NotImplementedError

    def val_dataloader(self) -> Any:
        """Return the loader, or a list of loaders, for validation."""
        raise NotImplementedError

    def test_dataloader(self) -> Any:
        """Return the loader, or a list of loaders, for testing."""
        raise NotImplementedError

    def predict_dataloader(self) -> Any:
        """Return the loader, or a list of loaders, for prediction."""
        raise NotImplementedError

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Change a batch before it goes to the device."""
        return batch

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch of a type of one's own to the device."""
        return batch

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Change a batch on the device."""
        return batch

    # ---------------------------------------------------------------- hooks

    def on_fit_start(self) -> None:
        """Called when fit begins, after optimizers are built."""

    def on_fit_end(self) -> None:
        """Called when fit has ended."""

    def on_train_start(self) -> None:
        """Called before the first epoch."""

    def on_train_end(self) -> None:
        """Called after the last epoch."""

    def on_train_epoch_start(self) -> None:
        """Called before the first batch of a training epoch."""

    def on_train_epoch_end(self) -> None:
        """Called after an epoch's last batch and its validation."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        """Called before training_step. Return -1 to skip the rest of the epoch."""

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Called after the optimizer step."""

    def on_validation_start(self) -> None:
        """Called before validation."""

    def on_validation_end(self) -> None:
        """Called after validation."""

    def on_validation_model_zero_grad(self) -> None:
        """Called before a validation within fit, between optimizer steps."""

    def on_validation_model_eval(self) -> None:
        """Put the module into eval mode for validation."""
        self.eval()

    def on_validation_model_train(self) -> None:
        """Called after validation; overriding it replaces the return of each submodule to its own mode."""
        self.train()

    def on_validation_epoch_start(self) -> None:
        """Called before the first validation batch."""

    def on_validation_epoch_end(self) -> None:
        """Called after the last validation batch; `log` is allowed."""

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Called before validation_step."""

    def on_validation_batch_end(
        self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Called after validation_step."""

    def on_test_start(self) -> None:
        """Called before testing."""

    def on_test_end(self) -> None:
        """Called after testing."""

    def on_test_model_eval(self) -> None:
        """Put the module into eval mode for testing."""
        self.eval()

    def on_test_model_train(self) -> None:
        """Called after testing; overriding it replaces the return of each submodule to its own mode."""
        self.train()

    def on_test_epoch_start(self) -> None:
        """Called before the first test batch."""

    def on_test_epoch_end(self) -> None:
        """Called after the last test batch; `log` is allowed."""

    def on_test_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Called before test_step."""

    def on_test_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Called after test_step."""

    def on_predict_start(self) -> None:
        """Called before prediction."""

    def on_predict_end(self) -> None:
        """Called after prediction."""

    def on_predict_model_eval(self) -> None:
        """Put the module into eval mode for prediction."""
        self.eval()

    def on_predict_model_train(self) -> None:
        """Called after prediction; overriding it replaces the return of each submodule to its own mode."""
        self.train()

    def on_predict_epoch_start(self) -> None:
        """Called before the first prediction batch."""

    def on_predict_epoch_end(self) -> None:
        """Called after the last prediction batch."""

    def on_predict_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Called before predict_step."""

    def on_predict_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Called after predict_step."""

    def on_before_zero_grad(self, optimizer: Optimizer) -> None:
        """Called before gradients are zeroed."""

    def on_before_backward(self, loss: Tensor) -> None:
        """Called before backward."""

    def on_after_backward(self) -> None:
        """Called after backward."""

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Called after unscaling, before clipping and the optimizer's step."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """May add to the checkpoint before it is written."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Called with a checkpoint before its weights are loaded."""

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Run backward; override to do it in another way."""
        loss.backward(*args, **kwargs)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Zero the gradients; override to do it in another way."""
        optimizer.zero_grad()

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Step the optimizer; an override must call ``optimizer.step(closure=optimizer_closure)``.

        The closure runs training_step, zeroing and backward; ``optimizer.step`` runs it, then clipping and
        the optimizer's own step. `optimizer` is as `optimizers` returns it.
        """
        optimizer.step(closure=optimizer_closure)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Step a scheduler; `metric` is the monitored value of a plateau scheduler, else None."""
        if metric is None:
            scheduler.step()
        else:
            scheduler.step(metric)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients; an override may call `clip_gradients`."""
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
