"""Stop points and winner of a sweep on synchronous rungs do not depend on the cluster."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from orchestrator.errors import MisconfigurationError
from orchestrator.sweep.rungs import SynchronousRungs, rungs_of, survivors

PENDING, RUNNING, PAUSED, TERMINATED = "PENDING", "RUNNING", "PAUSED", "TERMINATED"


class FakeTrial:
    """As much of Ray Tune's trial as the rule looks at."""

    def __init__(self, number: int) -> None:
        self.number, self.status, self.reports = number, PENDING, 0

    def __str__(self) -> str:
        return f"trial_{self.number:05d}"

    def should_recover(self) -> bool:
        return False


class FakeTune:
    """Runs trials as Ray Tune would with `places` for them, in an order that `choose` picks."""

    def __init__(
        self, rule: SynchronousRungs, places: int, value: Callable[[int, int], float], choose: random.Random
    ) -> None:
        self.rule, self.places, self.value, self.choose = rule, places, value, choose
        self.trials: list[FakeTrial] = []

    def get_trials(self) -> list[FakeTrial]:
        return self.trials

    def stop_trial(self, trial: FakeTrial) -> None:
        assert trial.status == PAUSED
        trial.status = TERMINATED
        self.rule.on_trial_remove(self, trial)  # type: ignore[arg-type]

    def run(self, total: int) -> dict[int, int]:
        """Return how many reports each trial has made."""
        rule: Any = self.rule
        rule.set_search_properties("loss", "min")
        rule.plan(total, self.places)
        while True:
            while len(self.trials) < total and rule.may_add():
                self.trials.append(FakeTrial(len(self.trials)))
                rule.on_trial_add(self, self.trials[-1])
            chosen = rule.choose_trial_to_run(self)
            running = [trial for trial in self.trials if trial.status == RUNNING]
            if chosen is not None and len(running) < self.places:
                chosen.status = RUNNING
                continue
            if not running:
                assert len(self.trials) == total
                assert all(trial.status == TERMINATED for trial in self.trials)
                return {trial.number: trial.reports for trial in self.trials}
            self.report(self.choose.choice(running))

    def report(self, trial: FakeTrial) -> None:
        """Let a running trial make its next report."""
        rule: Any = self.rule
        trial.reports += 1
        loss = self.value(trial.number, trial.reports)
        result = {"training_iteration": trial.reports, "loss": loss}
        decision = rule.on_trial_result(self, trial, result)
        if decision == rule.STOP:
            rule.on_trial_complete(self, trial, result)
            trial.status = TERMINATED
        elif decision == rule.PAUSE:
            trial.status = PAUSED


def losses(seed: int) -> Callable[[int, int], float]:
    """Curves that fall, each in its own way."""

    def value(number: int, reports: int) -> float:
        rng = random.Random(f"{seed} {number}")
        return rng.random() + rng.random() / reports

    return value


@given(
    st.integers(1, 14),
    st.integers(1, 5),
    st.integers(2, 4),
    st.integers(1, 6),
    st.integers(0, 1000),
    st.randoms(),
)
def test_the_same_trials_are_stopped_at_the_same_reports_on_any_cluster(
    total: int, concurrency: int, factor: int, places: int, seed: int, order: random.Random
) -> None:
    """However many run at once and in whatever order they report."""

    def run(at_once: int, choose: random.Random) -> dict[int, int]:
        rule = SynchronousRungs(max_t=9, reduction_factor=factor, concurrency=concurrency)
        return FakeTune(rule, at_once, losses(seed), choose).run(total)

    assert run(places, order) == run(1, random.Random(0))


def test_the_best_trial_goes_all_the_way() -> None:
    """Of one wave, one in three goes past each rung, and the best of all is never stopped."""
    rule = SynchronousRungs(max_t=9, reduction_factor=3, concurrency=9)
    reports = FakeTune(rule, 2, lambda number, reports: float(number), random.Random(1)).run(9)
    assert reports == {0: 9, 1: 3, 2: 3, 3: 1, 4: 1, 5: 1, 6: 1, 7: 1, 8: 1}


def test_a_sweep_made_longer_judges_its_new_trials_alone() -> None:
    """A wave that had been decided stays decided; what it had decided is kept with the sweep."""
    first = SynchronousRungs(max_t=3, reduction_factor=3, concurrency=4)
    FakeTune(first, 1, lambda number, reports: float(number), random.Random(0)).run(2)
    second = SynchronousRungs(max_t=3, reduction_factor=3, concurrency=4)
    second.load_state(first.save_state())
    tune = FakeTune(second, 1, lambda number, reports: -float(number), random.Random(0))
    tune.trials = [FakeTrial(0), FakeTrial(1)]
    for trial in tune.trials:
        trial.status = TERMINATED
    assert tune.run(4) == {0: 0, 1: 0, 2: 3, 3: 3}


def test_equal_and_missing_values_have_an_order() -> None:
    """The lower number wins among equals, and NaN is worst."""
    assert survivors({0: 1.0, 1: 1.0, 2: 1.0}, [0, 1, 2], 3, "min") == {0}
    assert survivors({0: float("nan"), 1: 5.0}, [0, 1], 2, "min") == {1}
    assert survivors({0: 1.0, 1: 5.0}, [0, 1], 2, "max") == {1}
    assert rungs_of(2, 2, 9) == [2, 4, 8]


@pytest.mark.parametrize(
    "arguments", [{"max_t": 0}, {"grace_period": 0}, {"concurrency": True}, {"reduction_factor": 1}]
)
def test_impossible_numbers_are_refused(arguments: dict[str, Any]) -> None:
    """The message names the argument."""
    with pytest.raises(MisconfigurationError, match=next(iter(arguments))):
        SynchronousRungs(**arguments)
