"""SpikeDetection: which losses are spikes, when they are found, and what is written down."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest

import orchestrator as pl
from orchestrator.callbacks import SpikeDetection, TrainingSpikeException
from orchestrator.errors import MisconfigurationError
from tests.orchestrator.groups import group_trainer
from tests.orchestrator.test_budget import HostReads
from tests.orchestrator.tiny import Tiny, loader, quiet_trainer

NAN = math.nan


class Told(Tiny):
    """Has the losses that it is told, one a step."""

    def __init__(self, losses: list[float]) -> None:
        super().__init__()
        self.losses = losses

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        value = self.losses[batch_idx] if self.trainer.global_rank == 0 else 1.0
        return super().training_step(batch, batch_idx) * 0 + value


def spike(root: Path, losses: list[float], **arguments: Any) -> int | None:
    """Return the batch at which training ended, or None."""
    every = arguments.pop("log_every_n_steps", 1)
    trainer = quiet_trainer(SpikeDetection(exclude_batches_path=root, **arguments), log_every_n_steps=every)
    try:
        trainer.fit(Told(losses), loader(4 * len(losses)))
    except TrainingSpikeException as error:
        assert f"batch {error.batch_idx}" in str(error)
        return error.batch_idx
    return None


@pytest.mark.parametrize(
    ("losses", "arguments", "found"),
    [
        ([1, 1, 1, 1, 1], {}, None),
        ([1, 1, 5, 1], {}, 2),
        ([1, 1, 2.9, 1], {}, None),
        ([1, 1, 3, 1], {}, 2),
        ([1, 5, 1], {}, 1),
        ([1, 50, 1, 1], {"warmup": 3}, None),
        ([1, 1, 5], {"atol": 10}, None),
        ([1, 1, 5], {"atol": 3}, 2),
        ([1, 1, 5], {"atol": 3, "rtol": None}, 2),
        ([1, 1, -50], {}, None),
        ([1, 1, -50], {"mode": "max"}, 2),
        ([1, 1, NAN, 1], {}, 2),
        ([1, 1, NAN, 1], {"finite_only": False}, None),
        ([10, 1, 1, 1, 4], {"window": 2}, 4),
        ([10, 1, 1, 1, 4], {"window": 10}, None),
        ([1, 1, 9, 1, 1], {"log_every_n_steps": 2}, 2),
        ([1, 1, 9, 1, 1], {"log_every_n_steps": 50}, 2),
    ],
)
def test_a_jump_ends_training(
    tmp_path: Path, losses: list[float], arguments: dict[str, Any], found: int | None
) -> None:
    """A loss that is worse than the last one and far from the mean is a spike, read late or not."""
    assert spike(tmp_path, losses, **arguments) == found
    path = tmp_path / "skip_batches.json"
    assert (json.loads(path.read_text()) if path.exists() else []) == (
        [] if found is None else [found - 1, found]
    )


def test_bad_batches_are_collected(tmp_path: Path) -> None:
    """A file that is there already gets the new numbers too."""
    for losses in ([1, 1, 9], [1, 9, 1]):
        spike(tmp_path, losses)
    assert json.loads((tmp_path / "skip_batches.json").read_text()) == [0, 1, 2]


def test_losses_are_read_at_log_points(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Twelve losses between log points are read with one copy each four."""
    reads = HostReads(monkeypatch)

    def count(*callbacks: pl.Callback) -> int:
        before = sum(reads.count.values())
        quiet_trainer(*callbacks, log_every_n_steps=4).fit(Told([1.0] * 12), loader(48))
        return sum(reads.count.values()) - before

    assert count(SpikeDetection(exclude_batches_path=tmp_path)) - count() == 3


def test_the_error_pickles() -> None:
    """It comes over from a worker with what it says."""
    error = pickle.loads(pickle.dumps(TrainingSpikeException(3, 5.0, 1.0)))
    assert (error.batch_idx, str(error)[:40]) == (3, "The loss jumped at batch 3: to 5, from a")


@pytest.mark.parametrize(
    "arguments", [{"mode": "best"}, {"window": 0}, {"warmup": -1}, {"atol": -1.0}, {"rtol": "2"}]
)
def test_bad_arguments_are_refused(arguments: dict[str, Any]) -> None:
    """Arguments that cannot work are an error that names them."""
    ((name, value),) = arguments.items()
    with pytest.raises(MisconfigurationError, match=rf"SpikeDetection\({name}={value!r}\)"):
        SpikeDetection(**arguments)


@pytest.mark.ray
@pytest.mark.timeout(60)
def test_one_ranks_jump_ends_all(tmp_path: Path) -> None:
    """On two ranks with unequal ends a spike of rank 0 alone ends training on both, with one error."""
    callback = SpikeDetection(exclude_batches_path=tmp_path)
    trainer = group_trainer(tmp_path, callbacks=[callback], log_every_n_steps=2)
    with pytest.raises(TrainingSpikeException, match="batch 3"):
        trainer.fit(Told([1, 1, 1, 9, 1]), loader(36))
    assert json.loads((tmp_path / "skip_batches.json").read_text()) == [2, 3]
