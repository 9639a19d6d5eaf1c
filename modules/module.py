"""The LightningModule: a torch module that also says how to train, evaluate and optimise it.

Hooks and steps that are not overridden are never called. The trainer attaches itself and a sink for `log`
while it works; both are plain attributes, never part of the state dict, of a pickle or of a checkpoint. Used
without a trainer, a LightningModule is an ordinary torch module, and `log` warns once and does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import IO, Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from modules import export
from modules.hyperparameters import HyperparametersMixin
from modules.log import LogMixin
from modules.optimization import OptimizationMixin
from modules.saving import class_only_method, load_from_checkpoint

_ATTACHED = ("_trainer", "_log_sink", "_optimization")
_LEFT_BEHIND = ("_compiled_steps",)


class LightningModule(OptimizationMixin, LogMixin, HyperparametersMixin, nn.Module):
    """Subclass it, give it layers, and override ``training_step`` and ``configure_optimizers``.

    Attributes:
        automatic_optimization: The trainer runs backward, clipping and the optimizer; False leaves them to
            ``training_step``, see `modules.optimization`.
        strict_loading: Names of weights must agree when a checkpoint is loaded.
        example_input_array: An input of ``forward``, for graphs, summaries and exports: a tensor, a tuple of
            arguments, or a dictionary of keyword arguments.
        prepare_data_per_node: Run ``prepare_data`` on each node, else only on the first.
        allow_zero_length_dataloader_with_multiple_devices: Accept loaders without a batch; nothing is run on
            them. A rank that gets none of the data is fine in any case.
    """

    automatic_optimization: bool = True
    strict_loading: bool = True
    example_input_array: Any = None
    prepare_data_per_node: bool = True
    allow_zero_length_dataloader_with_multiple_devices: bool = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._trainer: Any = None
        self._log_sink = None
        self._optimization: Any = None

    # ---------------------------------------------------------------- what to override: steps

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

    # ---------------------------------------------------------------- what to override: data

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

    # ---------------------------------------------------------------- what to override: hooks

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

    # ---------------------------------------------------------------- what to use

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print on rank 0 only."""
        if self._trainer is None or self._trainer.is_global_zero:
            print(*args, **kwargs)

    @property
    def trainer(self) -> Any:
        """The trainer that is using this module."""
        if self._trainer is None:
            raise RuntimeError(
                f"{type(self).__qualname__} is not attached to a Trainer. Call trainer.fit(module) first."
            )
        return self._trainer

    @trainer.setter
    def trainer(self, trainer: Any) -> None:
        self.__dict__["_trainer"] = trainer

    @property
    def current_epoch(self) -> int:
        """The trainer's epoch, from 0; 0 without a trainer."""
        return 0 if self._trainer is None else int(self._trainer.current_epoch)

    @property
    def global_step(self) -> int:
        """Optimizer steps so far; 0 without a trainer."""
        return 0 if self._trainer is None else int(self._trainer.global_step)

    @property
    def global_rank(self) -> int:
        """This process's rank; 0 without a trainer."""
        return 0 if self._trainer is None else int(self._trainer.global_rank)

    @property
    def local_rank(self) -> int:
        """This process's rank on its node; 0 without a trainer."""
        return 0 if self._trainer is None else int(self._trainer.local_rank)

    @property
    def logger(self) -> Any:
        """The first logger, or None."""
        return None if self._trainer is None else self._trainer.logger

    @property
    def loggers(self) -> list[Any]:
        """All loggers."""
        return [] if self._trainer is None else list(self._trainer.loggers)

    @property
    def device(self) -> torch.device:
        """Where the first parameter or buffer is; the CPU when there is none."""
        tensor: Tensor | None = next(self.parameters(), None)
        if tensor is None:
            tensor = next(self.buffers(), None)
        return torch.device("cpu") if tensor is None else tensor.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the first floating-point parameter; the default type when there is none."""
        found = next((item.dtype for item in self.parameters() if item.is_floating_point()), None)
        return torch.get_default_dtype() if found is None else found

    @property
    def on_gpu(self) -> bool:
        """Whether the module is on a CUDA device."""
        return self.device.type == "cuda"

    @property
    def device_mesh(self) -> Any:
        """The strategy's mesh of devices, or None where it has none."""
        return None if self._trainer is None else getattr(self._trainer.strategy, "device_mesh", None)

    def all_gather(self, data: Any, group: Any = None, sync_grads: bool = False) -> Any:
        """Return the values of all ranks. On a group call it on all ranks, with the same shapes.

        Args:
            data: A tensor or number, or dictionaries, lists and tuples of them.
            group: A process group; all ranks when None.
            sync_grads: Let gradients flow back to the ranks that the values came from.

        Returns:
            The same structure. In a process of its own each tensor as it is; on a group each has a new first
            dimension of the ranks.
        """
        strategy = None if self._trainer is None else self._trainer.strategy
        if isinstance(data, Mapping):
            return type(data)((name, self.all_gather(item, group, sync_grads)) for name, item in data.items())  # type: ignore[call-arg]
        if isinstance(data, tuple) and hasattr(data, "_fields"):
            return type(data)(*(self.all_gather(item, group, sync_grads) for item in data))
        if isinstance(data, (list, tuple)):
            return type(data)(self.all_gather(item, group, sync_grads) for item in data)
        if isinstance(data, (bool, int, float)):
            data = torch.tensor(data, device=self.device)
        if not isinstance(data, Tensor) or strategy is None:
            return data
        return strategy.all_gather(data, group, sync_grads)

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

    def freeze(self) -> None:
        """Stop training: no parameter needs a gradient, and the module is in eval mode."""
        for parameter in self.parameters():
            parameter.requires_grad = False
        self.eval()

    def unfreeze(self) -> None:
        """Undo `freeze`: all parameters need gradients, and the module is in train mode."""
        for parameter in self.parameters():
            parameter.requires_grad = True
        self.train()

    @class_only_method
    def load_from_checkpoint(
        cls,
        checkpoint_path: str | os.PathLike[str] | IO[bytes],
        map_location: Any = None,
        hparams_file: str | os.PathLike[str] | None = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """Build an instance from a checkpoint's hyperparameters and weights; see `modules.saving`."""
        return load_from_checkpoint(
            cls, checkpoint_path, map_location, hparams_file, strict, weights_only, **kwargs
        )

    def to_onnx(
        self,
        file_path: str | os.PathLike[str] | IO[bytes] | None = None,
        input_sample: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Export ``forward`` to ONNX; see `modules.export.to_onnx`."""
        return export.to_onnx(self, file_path, input_sample, **kwargs)

    def to_torchscript(
        self,
        file_path: str | os.PathLike[str] | None = None,
        method: str = "script",
        example_inputs: Any = None,
        **kwargs: Any,
    ) -> torch.jit.ScriptModule:
        """Export ``forward`` to TorchScript, deprecated by torch; see `modules.export.to_torchscript`."""
        return export.to_torchscript(self, file_path, method, example_inputs, **kwargs)

    def to_exported_program(
        self,
        file_path: str | os.PathLike[str] | IO[bytes] | None = None,
        input_sample: Any = None,
        **kwargs: Any,
    ) -> torch.export.ExportedProgram:
        """Export ``forward`` with `torch.export`; see `modules.export.to_exported_program`."""
        return export.to_exported_program(self, file_path, input_sample, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        kept = {name: value for name, value in state.items() if name not in _LEFT_BEHIND}
        return {**kept, **dict.fromkeys(_ATTACHED)}


# For torch.jit.script: what it must not compile, because it is about training.
LightningModule.__jit_unused_properties__ = [  # type: ignore[attr-defined]
    name for name in dir(LightningModule) if isinstance(getattr(LightningModule, name), property)
]
