"""Write predictions while they are made, or each rank's together at the end, instead of returning them.

The base class says what to write and which samples it belongs to; a subclass writes. Each rank writes its
own: names of files need the rank, ``trainer.global_rank``. A Trainer that has such a callback returns
predictions only on request, ``predict(return_predictions=True)``. Data whose samples have no index, such as a
stream, gives no indices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orchestrator.callbacks.callback import Callback
from orchestrator.errors import MisconfigurationError, suggest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modules.module import LightningModule
    from orchestrator.trainer import Trainer

INTERVALS = ("batch", "epoch", "batch_and_epoch")


class BasePredictionWriter(Callback):
    """Subclass it and override `write_on_batch_end`, `write_on_epoch_end`, or both.

    Args:
        write_interval: When to write: after each ``"batch"``, at the end (``"epoch"``, which keeps this
            rank's predictions in memory until then), or ``"batch_and_epoch"``.

    Raises:
        MisconfigurationError: There is no such interval.
    """

    def __init__(self, write_interval: str = "batch") -> None:
        if write_interval not in INTERVALS:
            raise MisconfigurationError(
                f"{type(self).__name__}(write_interval={write_interval!r}) is unknown."
                f"{suggest(str(write_interval), INTERVALS)} Use one of {', '.join(INTERVALS)}."
            )
        self.interval = write_interval

    @property
    def on_batch(self) -> bool:
        """Whether each batch is written."""
        return self.interval != "epoch"

    @property
    def on_epoch(self) -> bool:
        """Whether all is written at the end."""
        return self.interval != "batch"

    def unused_hooks(self) -> frozenset[str]:
        """Leave out what the interval has no use for."""
        unused = {"epoch": "on_predict_batch_end", "batch": "on_predict_epoch_end"}
        return frozenset({unused[self.interval]} if self.interval in unused else ())

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write the prediction of a batch.

        Args:
            trainer: The trainer.
            pl_module: The module.
            prediction: What ``predict_step`` returned.
            batch_indices: The samples' places in the data set; None where they have none.
            batch: The batch.
            batch_idx: Its number on this rank.
            dataloader_idx: The loader that it is from.
        """

    def write_on_epoch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        predictions: Sequence[Any],
        batch_indices: Sequence[Any],
    ) -> None:
        """Write all of this rank's predictions.

        Args:
            trainer: The trainer.
            pl_module: The module.
            predictions: By batch; by loader and batch where there are several loaders.
            batch_indices: The samples' places in the data set, by loader and batch; a loader whose samples
                have none has an empty list.
        """

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Have the batch written."""
        assert trainer.engine is not None
        noted = trainer.engine.predictions.indices[dataloader_idx]
        indices = noted[batch_idx] if noted else None
        self.write_on_batch_end(trainer, pl_module, outputs, indices, batch, batch_idx, dataloader_idx)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Have everything written."""
        assert trainer.engine is not None
        found = trainer.engine.predictions
        outputs = found.outputs[0] if len(found.outputs) == 1 else found.outputs
        indices = [noted[: len(kept)] for noted, kept in zip(found.indices, found.outputs, strict=True)]
        self.write_on_epoch_end(trainer, pl_module, outputs, indices)
