"""Arguments of ModelCheckpoint that cannot work."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.callbacks import ModelCheckpoint
from orchestrator.errors import MisconfigurationError


@pytest.mark.parametrize(
    "wrong",
    [
        {"dirpath": 3},
        {"dirpath": "https://host/run"},
        {"filename": "{epoch"},
        {"filename": ""},
        {"monitor": 5},
        {"mode": "minimum"},
        {"save_last": "yes"},
        {"save_last": 1},
        {"save_top_k": -2},
        {"save_top_k": 2},
        {"save_top_k": True},
        {"save_top_k": 1.0},
        {"every_n_train_steps": -1},
        {"every_n_epochs": 2, "every_n_train_steps": 5},
        {"verbose": "no"},
        {"save_weights_only": None},
        {"save_on_train_epoch_end": "end"},
    ],
)
def test_wrong_arguments_are_refused(wrong: dict[str, Any]) -> None:
    """The error repeats the argument with its value and says what to write."""
    with pytest.raises(MisconfigurationError) as caught:
        ModelCheckpoint(**wrong)
    for name, value in wrong.items():
        assert f"{name}={value!r}" in str(caught.value)
