"""The LightningModule: a torch module that also says how to train, evaluate and optimise it.

What a subclass may override is in `modules.module_hooks`; here is what it uses. The trainer attaches itself
and a sink for `log` while it works; both are plain attributes, never part of the state dict, of a pickle or
of a checkpoint. Used without a trainer, a LightningModule is an ordinary torch module, and `log` warns once
and does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import IO, Any, Self

import torch
from torch import Tensor

from modules import export
from modules.hyperparameters import HyperparametersMixin
from modules.log import LogMixin
from modules.module_hooks import ModuleHooks
from modules.saving import class_only_method, load_from_checkpoint

_ATTACHED = ("_trainer", "_log_sink", "_optimization")
_LEFT_BEHIND = ("_compiled_steps",)


class LightningModule(LogMixin, HyperparametersMixin, ModuleHooks):
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
