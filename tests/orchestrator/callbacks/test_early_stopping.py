"""EarlyStopping: when training stops, and why."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.callbacks import EarlyStopping
from orchestrator.callbacks.early_stopping import EarlyStoppingReason
from orchestrator.errors import MisconfigurationError
from tests.orchestrator.callbacks.fake_trainer import FakeTrainer


def fit(stopping: EarlyStopping, values: list[float], **changes: Any) -> FakeTrainer:
    """Train an epoch for each value of ``v`` until training is stopped."""
    trainer = FakeTrainer(Path("."), stopping, **changes)
    trainer.start()
    for value in values:
        trainer.epoch(v=value)
        if trainer.should_stop:
            break
    trainer.end()
    return trainer


@pytest.mark.parametrize(
    ("arguments", "values", "epochs"),
    [
        ({"patience": 1}, [3, 2, 1, 1, 1], 4),
        ({"patience": 3}, [3, 4, 5, 6, 7], 4),
        ({"patience": 2}, [3, 4, 2, 4, 1, 4, 4, 4], 7),
        ({"patience": 1, "mode": "max"}, [1, 2, 3, 2, 9], 4),
        ({"patience": 1, "min_delta": 0.5}, [3, 2.6, 2.0], 2),
        ({"patience": 1, "min_delta": 0.5}, [3, 2.5, 2.0], 2),
        ({"patience": 1, "min_delta": 0.5}, [3, 2.4, 1.8], 3),
        ({"patience": 1, "min_delta": 0.5, "mode": "max"}, [1, 1.4, 9], 2),
        ({"patience": 0}, [3, 2, 2, 1], 3),
    ],
)
def test_patience(arguments: dict[str, Any], values: list[float], epochs: int) -> None:
    """Training stops after `patience` checks without an improvement of more than `min_delta`."""
    assert fit(EarlyStopping("v", **arguments), values).current_epoch == epochs


@given(st.lists(st.floats(-10, 10, width=32), min_size=1), st.integers(1, 4), st.sampled_from(["min", "max"]))
def test_the_best_score_and_the_wait_are_those_of_the_values(
    values: list[float], patience: int, mode: Any
) -> None:
    """The best score is the best value seen, and the wait counts the values since it first came."""
    stopping = EarlyStopping("v", patience=patience, mode=mode)
    seen = values[: fit(stopping, values).current_epoch]
    best = min(seen) if mode == "min" else max(seen)
    assert stopping.best_score.item() == best
    assert stopping.wait_count == len(seen) - 1 - seen.index(best)


@pytest.mark.parametrize(
    ("arguments", "values", "reason", "words"),
    [
        (
            {"patience": 1},
            [1, 2],
            EarlyStoppingReason.PATIENCE_EXHAUSTED,
            "did not improve in 1 checks from 1",
        ),
        ({}, [1, math.nan], EarlyStoppingReason.NON_FINITE_METRIC, "nan"),
        ({}, [1, -math.inf], EarlyStoppingReason.NON_FINITE_METRIC, "-inf"),
        ({"stopping_threshold": 0.5}, [1, 0.4], EarlyStoppingReason.STOPPING_THRESHOLD, "better than 0.5"),
        ({"divergence_threshold": 5}, [1, 6], EarlyStoppingReason.DIVERGENCE_THRESHOLD, "worse than 5"),
        (
            {"mode": "max", "stopping_threshold": 5},
            [1, 6],
            EarlyStoppingReason.STOPPING_THRESHOLD,
            "better than 5",
        ),
        (
            {"mode": "max", "divergence_threshold": 0},
            [1, -1],
            EarlyStoppingReason.DIVERGENCE_THRESHOLD,
            "worse than 0",
        ),
    ],
)
def test_the_reason_is_told(
    arguments: dict[str, Any], values: list[float], reason: EarlyStoppingReason, words: str
) -> None:
    """Each way to stop has its reason, its message and the epoch."""
    stopping = EarlyStopping("v", **arguments)
    trainer = fit(stopping, values)
    assert trainer.should_stop
    assert stopping.stopping_reason is reason
    assert words in str(stopping.stopping_reason_message)
    assert stopping.stopped_epoch == 1


def test_a_run_that_is_not_stopped_has_no_reason() -> None:
    """Improvement to the end leaves the attributes as they were."""
    stopping = EarlyStopping("v")
    assert not fit(stopping, [3, 2, 1]).should_stop
    assert (stopping.stopping_reason, stopping.stopping_reason_message, stopping.stopped_epoch) == (
        0,
        None,
        0,
    )


def test_a_threshold_that_is_only_reached_does_not_stop() -> None:
    """The metric must be better, or worse, than the threshold, not equal to it."""
    stopping = EarlyStopping("v", stopping_threshold=1, divergence_threshold=5)
    assert not fit(stopping, [5, 4, 1]).should_stop


def test_numbers_that_are_not_finite_can_be_tolerated() -> None:
    """With check_finite=False a NaN is no improvement, and no more."""
    stopping = EarlyStopping("v", patience=2, check_finite=False)
    assert fit(stopping, [1, math.nan, 0.5, math.nan, math.nan, 0]).current_epoch == 5


def test_scores_keep_their_precision() -> None:
    """A value equal to the best one is no improvement, also in double precision."""
    stopping = EarlyStopping("v", patience=1)
    trainer = FakeTrainer(Path("."), stopping)
    value = torch.tensor(0.1, dtype=torch.float64)
    judged = []
    for _ in range(2):
        stopping._judge(value)
        judged.append((stopping.best_score.item(), stopping.wait_count))
    assert judged == [(0.1, 0), (0.1, 1)]
    assert not trainer.should_stop


@pytest.mark.parametrize(
    ("changes", "arguments", "where"),
    [
        ({}, {}, "on_train_epoch_end"),
        ({"val_check_interval": 0.5}, {}, "on_validation_end"),
        ({"check_val_every_n_epoch": 2}, {}, "on_validation_end"),
        ({}, {"check_on_train_epoch_end": False}, "on_validation_end"),
        ({"val_check_interval": 0.5}, {"check_on_train_epoch_end": True}, "on_train_epoch_end"),
    ],
)
def test_where_it_checks(changes: dict[str, Any], arguments: dict[str, Any], where: str) -> None:
    """A check happens at the end of training epochs or of validations, never at both."""
    stopping = EarlyStopping("v", **arguments)
    trainer = FakeTrainer(Path("."), stopping, metrics={"v": 1.0}, **changes)
    trainer.start()
    counts = {}
    for hook in ("on_validation_end", "on_train_epoch_end"):
        stopping.best_score = torch.tensor(0.0)
        stopping.wait_count = 0
        trainer.call(hook)
        counts[hook] = stopping.wait_count
    assert counts == {"on_validation_end": 0, "on_train_epoch_end": 0} | {where: 1}


@pytest.mark.parametrize("changes", [{"fast_dev_run": True}, {"fn": "validate"}])
def test_it_checks_in_training_only(changes: dict[str, Any]) -> None:
    """Trial runs and stages other than fit are not checked; nor, as everywhere here, the sanity check."""
    stopping = EarlyStopping("v", patience=1)
    trainer = FakeTrainer(Path("."), stopping, **changes)
    trainer.state.fn = changes.get("fn", "fit")
    trainer.start()
    for value in (1, 2, 3):
        trainer.epoch(v=value)
    assert not trainer.should_stop
    assert stopping.wait_count == 0


def test_a_missing_metric_is_an_error() -> None:
    """The error names the metrics that are there and the one that was probably meant."""
    trainer = FakeTrainer(Path("."), EarlyStopping("val_los"))
    trainer.start()
    with pytest.raises(RuntimeError, match=r"'val_los'.*\['acc', 'val_loss'\].*'val_loss'\?"):
        trainer.epoch(val_loss=1.0, acc=0.5)


def test_a_missing_metric_can_be_waited_for() -> None:
    """With strict=False the check is skipped, with a warning if verbose."""
    assert not fit(EarlyStopping("other", strict=False), [1, 2]).should_stop
    with pytest.warns(RuntimeWarning, match="found no such metric"):
        fit(EarlyStopping("other", strict=False, verbose=True), [1])


def test_a_resumed_run_stops_where_the_other_would_have(tmp_path: Path) -> None:
    """State that went through a checkpoint file goes on counting, and tells why it stopped."""
    values = [3.0, 2, 4, 4, 4, 4]
    whole = EarlyStopping("v", patience=3)
    expected = fit(whole, values).current_epoch
    first = EarlyStopping("v", patience=3)
    fit(first, values[:3])
    torch.save(first.state_dict(), tmp_path / "state")
    second = EarlyStopping("v", patience=9)
    second.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert 3 + fit(second, values[3:]).current_epoch == expected
    assert second.stopping_reason is whole.stopping_reason
    third = EarlyStopping("v")
    third.load_state_dict(second.state_dict())
    assert third.stopping_reason_message == whole.stopping_reason_message


def test_the_key_has_what_is_watched() -> None:
    """Several callbacks that watch different metrics keep their own states."""
    keys = {
        EarlyStopping("a").state_key,
        EarlyStopping("b").state_key,
        EarlyStopping("a", mode="max").state_key,
    }
    assert keys == {
        "EarlyStopping{'monitor': 'a', 'mode': 'min'}",
        "EarlyStopping{'monitor': 'b', 'mode': 'min'}",
        "EarlyStopping{'monitor': 'a', 'mode': 'max'}",
    }


@pytest.mark.parametrize(
    ("changes", "only_first", "expected"),
    [
        ({}, False, ["v improved to 2.", "v improved by 1 to 1."]),
        (
            {"world_size": 2, "global_rank": 1},
            False,
            ["[rank 1] v improved to 2.", "[rank 1] v improved by 1 to 1."],
        ),
        ({"world_size": 2, "global_rank": 1}, True, []),
    ],
)
def test_verbose_tells_of_improvements(
    changes: dict[str, Any], only_first: bool, expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A line an improvement, on each rank with its number, or on rank 0 alone."""
    fit(EarlyStopping("v", verbose=True, log_rank_zero_only=only_first), [2, 1], **changes)
    assert capsys.readouterr().out.splitlines() == expected


@pytest.mark.parametrize(
    "wrong",
    [
        {"monitor": ""},
        {"monitor": 3},
        {"mode": "maximum"},
        {"patience": -1},
        {"patience": 1.5},
        {"patience": True},
        {"min_delta": -0.1},
        {"min_delta": math.nan},
        {"stopping_threshold": "1"},
        {"divergence_threshold": math.nan},
    ],
)
def test_wrong_arguments_are_refused(wrong: dict[str, Any]) -> None:
    """The error repeats the argument with its value."""
    ((name, value),) = wrong.items()
    with pytest.raises(MisconfigurationError) as caught:
        EarlyStopping(**{"monitor": "v", **wrong})
    assert str(caught.value).startswith(f"EarlyStopping({name}={value!r})")
