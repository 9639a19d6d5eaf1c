"""What a prediction run keeps of itself: outputs by batch, and which samples each batch was made of.

Only what somebody asked for is kept: outputs, where they are returned or written at the end; indices, where a
`BasePredictionWriter` wants them. Everything is this rank's own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from orchestrator.callbacks.callback import Callback
from orchestrator.callbacks.prediction_writer import BasePredictionWriter


@dataclass(slots=True, kw_only=True)
class Predictions:
    """The outputs and indices of one run of `predict` on this rank.

    Attributes:
        keeps: Outputs are kept.
        notes: Indices are noted.
        outputs: What ``predict_step`` returned, by loader and batch.
        indices: The samples' places in the data set, by loader and batch, of all batches that were begun to
            be read; empty for a loader whose samples have none.
    """

    keeps: bool = False
    notes: bool = False
    outputs: list[list[Any]] = field(default_factory=list)
    indices: list[list[list[Any]]] = field(default_factory=list)


def predictions_for(callbacks: Iterable[Callback], *, returned: bool) -> Predictions:
    """Return an empty record for a run with `callbacks`, whose outputs are `returned` or not."""
    writers = [item for item in callbacks if isinstance(item, BasePredictionWriter)]
    return Predictions(keeps=returned or any(item.on_epoch for item in writers), notes=bool(writers))


def returns_predictions(asked: bool | None, callbacks: Iterable[Callback]) -> bool:
    """Whether `predict` returns what it predicts: as asked, else where no callback writes it."""
    if asked is not None:
        return asked
    return not any(isinstance(item, BasePredictionWriter) for item in callbacks)
