"""The older hooks that get all outputs of an epoch: ``validation_epoch_end(outputs)`` and the like.

Steps' outputs are kept for a module that defines one of them, and for no other: for as long as an epoch lasts
they hold memory. Each rank gets its own outputs, the ones of several evaluation loaders as a list of lists,
training's as ``{"loss": ...}`` without its graph. A rank that ran no batch is not called; a run resumed
within an epoch has the outputs since then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from orchestrator.callbacks.callback import Callback
from orchestrator.legacy import EPOCH_END_HOOKS as _HOOKS


class EpochOutputs(Callback):
    """Collects outputs and hands them to the module's older hooks, before the hooks of today.

    Args:
        owner: The module.
    """

    def __init__(self, owner: Any) -> None:
        self._ends: dict[str, Callable[[list[Any]], Any]] = {
            stage: getattr(owner, name) for stage, name in _HOOKS.items() if hasattr(owner, name)
        }
        self._outputs: dict[str, dict[int | None, list[Any]]] = {}

    def unused_hooks(self) -> frozenset[str]:
        """Return the hooks of stages whose end nobody listens to."""
        kinds = ("batch_end", "epoch_start", "epoch_end")
        return frozenset(
            f"on_{stage}_{kind}" for stage in _HOOKS if stage not in self._ends for kind in kinds
        )

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin anew."""
        self._outputs["train"] = {}

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep what the training step returned."""
        self._keep("train", outputs or None, None)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Call ``training_epoch_end``."""
        self._hand_over("train")

    def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin anew."""
        self._outputs["validation"] = {}

    def on_validation_batch_end(
        self,
        trainer: Any,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int | None = None,
    ) -> None:
        """Keep what the validation step returned."""
        self._keep("validation", outputs, dataloader_idx)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Call ``validation_epoch_end``."""
        self._hand_over("validation")

    def on_test_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin anew."""
        self._outputs["test"] = {}

    def on_test_batch_end(
        self,
        trainer: Any,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int | None = None,
    ) -> None:
        """Keep what the test step returned."""
        self._keep("test", outputs, dataloader_idx)

    def on_test_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Call ``test_epoch_end``."""
        self._hand_over("test")

    def _keep(self, stage: str, outputs: Any, loader: int | None) -> None:
        kept = self._outputs.setdefault(stage, {}).setdefault(loader, [])
        if outputs is not None:
            kept.append(outputs.detach() if isinstance(outputs, Tensor) else outputs)

    def _hand_over(self, stage: str) -> None:
        by_loader = self._outputs.pop(stage, {})
        if not by_loader:
            return
        if None in by_loader:
            self._ends[stage](by_loader[None])
        else:
            last = max(index for index in by_loader if index is not None)
            self._ends[stage]([by_loader.get(index, []) for index in range(last + 1)])


def collectors(module: Any) -> list[Callback]:
    """Return the collector that `module` needs for its older hooks, or nothing."""
    return (
        [EpochOutputs(module)]
        if any(callable(getattr(module, name, None)) for name in _HOOKS.values())
        else []
    )
