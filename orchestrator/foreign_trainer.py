"""Our Trainer as Lightning's own callbacks, loggers and modules expect to find theirs.

Everything is our Trainer's, read and set through this view; only what Lightning's objects look up in the
insides of their Trainer is answered here, in Lightning's words. A part that has no counterpart is an
`AttributeError` that names it. The view holds nothing, so it may be made anew at any time, and pickles.
"""

from __future__ import annotations

import contextlib
import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from orchestrator import foreign
from orchestrator.adjusting import FitLoop

if TYPE_CHECKING:
    from orchestrator.engine import Engine
    from orchestrator.trainer import Trainer


class ForeignTrainer:
    """A view of a Trainer for Lightning's objects.

    Args:
        trainer: Ours.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.__dict__["_ours"] = trainer

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            return getattr(self._ours, name)
        except AttributeError:
            raise AttributeError(
                f"trainer.{name}: something of Lightning's reads this from its own Trainer, and "
                "orchestrator's has no such attribute. Use orchestrator's class of the same name, if there "
                "is one."
            ) from None

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._ours, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        return (ForeignTrainer, (self._ours,))

    @property
    def _engine(self) -> Engine:
        engine: Engine | None = self._ours.engine
        if engine is None:
            raise AttributeError("The trainer runs in other processes: read this from a hook.")
        return engine

    @property
    def barebones(self) -> bool:
        """Lightning's name for a run without logging."""
        return bool(getattr(self._ours.settings, "barebones", False))

    @property
    def strategy(self) -> ForeignStrategy:
        """The parts of Lightning's strategy that callbacks use."""
        return ForeignStrategy(self._engine)

    @property
    def accelerator(self) -> Any:
        """What Lightning's device monitor asks."""
        return SimpleNamespace(get_device_stats=_device_stats)

    @property
    def progress_bar_callback(self) -> Any:
        """Lightning's progress bar among the callbacks, or None."""
        found = (item for item in self._ours.callbacks if foreign.is_foreign_progress_bar(item))
        return next(found, None)

    @property
    def fit_loop(self) -> Any:
        """The places in Lightning's training loop that its callbacks read."""
        return ForeignFitLoop(self._ours, self._engine)

    @property
    def predict_loop(self) -> Any:
        """Which samples a batch of prediction holds: not told."""
        return SimpleNamespace(current_batch_indices=None, epoch_batch_indices=None)

    @property
    def _logger_connector(self) -> Any:
        ours = self._ours
        due = (ours.global_step + 1) % ours.log_every_n_steps == 0 or ours.should_stop
        return SimpleNamespace(should_update_logs=due)


class ForeignFitLoop(FitLoop):
    """The places in Lightning's training loop that its callbacks read; limits can be set too.

    Args:
        trainer: Ours.
        engine: Its run.
    """

    __slots__ = ("_engine", "_ours")
    _engine: Engine
    _ours: Trainer

    def __init__(self, trainer: Trainer, engine: Engine) -> None:
        super().__init__(trainer)
        object.__setattr__(self, "_engine", engine)
        object.__setattr__(self, "_ours", trainer)

    @property
    def _batches_that_stepped(self) -> int:
        return self._ours.state.windows

    @property
    def batch_progress(self) -> Any:
        """Where the epoch stands."""
        return SimpleNamespace(is_last_batch=self._ours.is_last_batch)

    @property
    def val_loop(self) -> Any:
        """Whether validation has run behind the last batch."""
        return SimpleNamespace(_has_run=self._ours.state.validated)

    def _should_check_val_epoch(self) -> bool:
        return bool(self._engine.data.val)


class ForeignStrategy:
    """Our ranks as Lightning's callbacks address them. Methods that communicate say so.

    Args:
        engine: Whose.
    """

    def __init__(self, engine: Engine) -> None:
        self._ours = engine.strategy
        self.root_device = engine.place.device
        self.global_rank = engine.place.rank
        self.local_rank = engine.place.local_rank
        self.world_size = engine.place.world_size
        self.is_global_zero = engine.place.rank == 0
        self.lightning_module = self.model = engine.module

    def broadcast(self, value: Any, src: int = 0) -> Any:
        """Return rank `src`'s value. Communicates."""
        return self._ours.gather(value)[src] if src else self._ours.broadcast(value)

    def barrier(self, name: str | None = None) -> None:
        """Wait for all ranks. Communicates."""
        self._ours.barrier()

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        """Return whether all ranks, or any, say yes. Communicates."""
        votes = [bool(item) for item in self._ours.gather(bool(decision))]
        return min(votes) if all else max(votes)

    def reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        """Return the sum or mean over ranks. Communicates."""
        values = self._ours.gather(tensor.cpu() if isinstance(tensor, Tensor) else torch.tensor(tensor))
        total = torch.stack(values).sum(0)
        mean = str(reduce_op).lower() in ("mean", "avg")
        reduced = total / len(values) if mean else total
        return reduced.to(tensor.device) if isinstance(tensor, Tensor) else reduced

    def all_gather(self, tensor: Tensor, group: Any = None, sync_grads: bool = False) -> Tensor:
        """Return every rank's tensor, stacked; without gradients. Communicates."""
        if sync_grads:
            raise NotImplementedError("all_gather(sync_grads=True) of a Lightning callback is not supported.")
        return torch.stack(self._ours.gather(tensor.detach().cpu())).to(tensor.device)

    def remove_checkpoint(self, filepath: str | os.PathLike[str]) -> None:
        """Delete a checkpoint, on rank 0."""
        if self.is_global_zero:
            with contextlib.suppress(FileNotFoundError):
                os.remove(filepath)


def _device_stats(device: torch.device) -> dict[str, Any]:
    return dict(torch.cuda.memory_stats(device)) if device.type == "cuda" else {}
