"""Schedules of faults: drawn from a seed alone, varied, and such that a run can go through them."""

from __future__ import annotations

from tests.chaos.schedules import KINDS, draw


def test_a_seed_says_everything() -> None:
    """The same seed gives the same schedule, so that any can be run alone; its line names the seed."""
    assert [draw(seed) for seed in range(50)] == [draw(seed) for seed in range(50)]
    assert draw(17).describe().startswith("seed 17: ")


def test_the_first_hundred_vary() -> None:
    """Among the first hundred are all worlds, numbers of logical ranks, optimizers, faults, and arrivals."""
    found = [draw(seed) for seed in range(100)]
    assert {item.workers for item in found} == {1, 2, 3, 4}
    assert {(item.logical_ranks, item.optimizer) for item in found} == {
        (ranks, name) for ranks in (6, 8) for name in ("sgd", "adamw")
    }
    assert {fault.kind for item in found for fault in item.faults} == set(KINDS)
    assert any(item.most > item.workers for item in found)
    assert all(item.faults or item.most > item.workers for item in found)


def test_faults_come_while_the_run_lasts() -> None:
    """Faults are in order, behind the first steps, and before the last ones."""
    for seed in range(100):
        steps = [fault.step for fault in draw(seed, steps=24).faults]
        assert steps == sorted(set(steps)) and all(3 <= step < 20 for step in steps)
