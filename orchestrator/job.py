"""One call of fit, validate, test or predict, as it travels to wherever it runs, and what comes back from
there.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from modules.datamodule import LightningDataModule
from modules.module import LightningModule


def new_attempt() -> str:
    """Return a name for a call of fit, of which later ones sort behind earlier ones."""
    return f"{time.strftime('%Y%m%dT%H%M%S')}-{uuid.uuid4().hex[:8]}"


@dataclass(slots=True, kw_only=True)
class Job:
    """What was asked for.

    Attributes:
        fn: fit, validate, test or predict.
        module: The module.
        datamodule: The data module, or None.
        loaders: Loaders that were given, by kind: train, val, test, predict.
        ckpt_path: A checkpoint to start from, or None.
        is_verified: Its checksums were compared with its content.
        attempt: Names the call in the ledger of samples; None where none is kept.
        return_predictions: Keep what predict_step returns.
        verbose: Print the metrics of validate and test.
        compile: Keyword arguments of ``torch.compile`` for the steps; None compiles nothing.
        only_tunes: The call is a search by a callback on copies: the module itself gets no optimizers.
    """

    fn: str
    module: LightningModule
    datamodule: LightningDataModule | None = None
    loaders: dict[str, Any] = field(default_factory=dict)
    ckpt_path: str | None = None
    is_verified: bool = False
    attempt: str | None = None
    return_predictions: bool = True
    verbose: bool = True
    compile: dict[str, Any] | None = None
    only_tunes: bool = False
