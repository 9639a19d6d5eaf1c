"""Elastic trials take what nobody waits for, and give it back when somebody does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster.fitting import Node
from cluster.recovery import RecoveryPolicy
from cluster.spec import GroupSpec
from orchestrator.sweep import spare_room
from orchestrator.sweep.dialogue import GO_ON, SAVE, STOP, Report, Saved
from orchestrator.sweep.spare_room import FILE, Sign, SpareRoom
from orchestrator.sweep.trial import Trial


@dataclass
class Status:
    """What a sign looks at of a trial."""

    status: str


class Clock:
    """Goes on when told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def free(monkeypatch: pytest.MonkeyPatch, *cpus: float) -> None:
    """Let the cluster have nodes with so many free CPUs."""
    nodes = [
        Node(address=str(index), total={"CPU": 2.0}, free={"CPU": amount}, labels={})
        for index, amount in enumerate(cpus)
    ]
    monkeypatch.setattr(spare_room, "list_nodes", lambda: nodes)


def test_the_sign_is_up_while_no_trial_waits(tmp_path: Path) -> None:
    """A trial that takes an ended one's place at once takes nothing down; a short pause puts nothing up."""
    clock = Clock()
    sign = Sign(str(tmp_path), clock)
    seen = []
    for now, status in (
        (0.0, "PENDING"), (1.0, "RUNNING"), (1.2, "PENDING"), (1.3, "RUNNING"), (2.0, "RUNNING"),
        (3.0, "PENDING"), (3.1, "RUNNING"), (4.0, "PENDING"), (4.6, "PENDING"),
    ):  # fmt: skip
        clock.now = now
        sign.update([Status("TERMINATED"), Status(status)])
        seen.append((tmp_path / FILE).exists())
    assert seen == [False, False, False, False, True, True, True, True, False]


def test_a_new_sweep_takes_an_old_sign_down(tmp_path: Path) -> None:
    """The driver that put it up was killed."""
    (tmp_path / FILE).touch()
    Sign(str(tmp_path))
    assert not (tmp_path / FILE).exists()


def test_a_trial_grows_by_one_where_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not often, not above what it can use, and what it has reserved it keeps."""
    clock = Clock()
    room = SpareRoom(str(tmp_path), GroupSpec.create(2), 4, clock)
    free(monkeypatch, 0.0, 1.0)
    assert room(3) == 2
    (tmp_path / FILE).touch()
    assert room(2) == 3
    assert room(3) == 3
    clock.now = 1.0
    assert room(3) == 4
    clock.now = 2.0
    assert room(4) == 4
    free(monkeypatch, 0.5, 0.5)
    clock.now = 3.0
    assert room(2) == 2
    (tmp_path / FILE).unlink()
    assert (room(1), room(4)) == (1, 2)


def trial(folder: Path, told: list[object], answers: list[str]) -> Trial:
    """A trial whose sweep answers as given."""

    def talk(question: object) -> str:
        told.append(question)
        return answers.pop(0)

    return Trial(
        name="trial_00000", number=0, config={}, metric="loss", mode="min", directory=str(folder / "trial_0"),
        num_workers=1, resources_per_worker={"CPU": 1.0}, placement_group=None, talk=talk,
    )  # fmt: skip


def test_only_a_group_that_can_use_more_asks(tmp_path: Path) -> None:
    """Up to the logical ranks, or to max_workers; where neither is above the start, nothing is looked at."""
    given, spec = trial(tmp_path, [], []), GroupSpec.create(2)
    policy = RecoveryPolicy(min_workers=1)
    given.let_grow(policy, spec, 2)
    assert (policy.max_workers, policy.room) == (2, None)
    for policy, most in (
        (RecoveryPolicy(min_workers=1), 6),
        (RecoveryPolicy(min_workers=1, max_workers=3), 3),
    ):
        given.let_grow(policy, spec, 6)
        assert policy.max_workers == most
        assert isinstance(policy.room, SpareRoom)


def test_a_report_that_is_made_again_is_answered_as_before(tmp_path: Path) -> None:
    """Workers that come to it again after a loss do not count it twice; the next fit of the trial does."""
    told: list[object] = []
    given = trial(tmp_path, told, [GO_ON, SAVE, GO_ON, STOP, GO_ON])
    first, second, third = (Report(metrics={}, moment=(at, 4 * at, 8 * at)) for at in (1, 2, 3))
    assert given.answer(first) == GO_ON
    assert given.answer(second) == SAVE
    assert given.answer(second) == SAVE
    assert given.answer(Saved(content={})) == GO_ON
    assert given.answer(second) == GO_ON
    assert given.answer(first) == GO_ON
    assert given.answer(third) == given.answer(third) == STOP
    assert len(told) == 4
    given.take_start(None)
    assert given.answer(first) == GO_ON
    assert len(told) == 5
