"""Lost workers are replaced while the others stay: killed, frozen, several at once, again and again."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from cluster import GroupSpec, RunLost, WorkerDied, WorkerGroup
from cluster.context import WorkerContext
from cluster.recovery import Recovered, RecoveryPolicy
from cluster.session import connect

pytestmark = pytest.mark.ray
_STEPS = 60


def count_together(
    context: WorkerContext, fault: Callable[[WorkerContext, int], None]
) -> tuple[int, int, int]:
    """Add up all ranks' numbers, step by step; return the sum, the process and how often it rejoined.

    The sum is the same on all ranks, so a replacement takes it from those that have it.
    """
    import torch
    import torch.distributed as dist

    total, step, rejoined, known = 0, 0, 0, not context.joining
    while True:
        broken = context.joining and not known
        if not broken:
            try:
                fault(context, step)
                number = torch.tensor(step * 10 + context.rank)
                dist.all_reduce(number)
            except RuntimeError:
                broken = True
        if broken:
            context.rejoin()
            rejoined += 1
            state = torch.tensor([step, total] if known else [-1, -1])
            dist.all_reduce(state, op=dist.ReduceOp.MAX)
            step, total, known = int(state[0]), int(state[1]), True
            continue
        total, step = total + int(number), step + 1
        context.note_progress(step)
        if step == _STEPS:
            return total, os.getpid(), rejoined


def _expected(world_size: int) -> int:
    return sum(step * 10 * world_size + sum(range(world_size)) for step in range(_STEPS))


def _first_process(context: WorkerContext) -> bool:
    return not context.joining


def kill_rank_1_once(context: WorkerContext, step: int) -> None:
    if step == 20 and context.rank == 1 and _first_process(context):
        os.kill(os.getpid(), signal.SIGKILL)


def freeze_rank_1_once(context: WorkerContext, step: int) -> None:
    if step == 20 and context.rank == 1 and _first_process(context):
        os.kill(os.getpid(), signal.SIGSTOP)


def kill_ranks_0_and_1_together(context: WorkerContext, step: int) -> None:
    if step == 20 and context.rank < 2 and _first_process(context):
        os.kill(os.getpid(), signal.SIGKILL)


def kill_rank_1_whenever(context: WorkerContext, step: int) -> None:
    if step == 20 and context.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def group() -> Any:
    connect()
    group = WorkerGroup.start(GroupSpec.create(num_workers=3, resources_per_worker={"CPU": 0.1}, spares=1))
    yield group
    group.shutdown()


@pytest.mark.parametrize("fault", [kill_rank_1_once, freeze_rank_1_once, kill_ranks_0_and_1_together])
def test_a_run_survives_lost_workers(group: WorkerGroup, fault: Any) -> None:
    """The sums are those of an undisturbed run, and the processes that were not lost are the same ones."""
    before = [worker.pid for worker in group.workers]
    told: list[Recovered] = []
    results = group.run(count_together, fault, recovery=RecoveryPolicy(wait_s=120), on_recovered=told.append)
    assert [total for total, _, _ in results] == [_expected(3)] * 3
    lost = sorted({rank for each in told for rank in each.ranks})
    assert lost == ([0, 1] if fault is kill_ranks_0_and_1_together else [1])
    after = [pid for _, pid, _ in results]
    assert [rank for rank in range(3) if before[rank] != after[rank]] == lost
    assert [worker.pid for worker in group.workers] == after
    assert group.run(lambda context: context.rank) == [0, 1, 2]


def test_the_budget_of_failures_ends(group: WorkerGroup) -> None:
    """A worker that dies again and again ends the run once the budget is used up, as without recovery."""
    told: list[Recovered] = []
    with pytest.raises(WorkerDied, match="rank 1 of 3"):
        group.run(
            count_together,
            kill_rank_1_whenever,
            recovery=RecoveryPolicy(max_failures=2, wait_s=120),
            on_recovered=told.append,
        )
    assert len(told) == 2
    assert not group.alive


def test_an_exception_of_the_callable_is_no_loss(group: WorkerGroup) -> None:
    """What a callable raises ends the run at once, also in a run that recovers; peers do not wait."""

    def fail(context: WorkerContext, step: int) -> None:
        if step == 20 and context.rank == 1:
            raise ValueError("a fault of the callable's own")

    with pytest.raises(ValueError, match="fault of the callable"):
        group.run(count_together, fail, recovery=RecoveryPolicy(wait_s=120))
    assert group.run(lambda context: os.getpid()) == [worker.pid for worker in group.workers]


def give_up_when_broken(context: WorkerContext) -> list[int]:
    """Add up ranks' numbers; a rank that loses a peer cannot go on."""
    import torch
    import torch.distributed as dist

    if context.joining:
        context.rejoin()
    try:
        for step in range(_STEPS):
            if step == 20 and context.rank == 1 and not context.ask("was one killed?"):
                os.kill(os.getpid(), signal.SIGKILL)
            number = torch.tensor(step)
            dist.all_reduce(number)
    except RuntimeError as error:
        raise RunLost("it cannot go on") from error
    return [os.getpid(), int(number)]


def test_a_run_that_cannot_go_on_can_be_called_again(group: WorkerGroup) -> None:
    """Where the survivors end over a loss, the group is made whole with its other processes, and says so."""
    before = [worker.pid for worker in group.workers]
    told: list[Recovered] = []
    policy = RecoveryPolicy(max_failures=1, wait_s=120)
    for last in (False, True):
        arguments: dict[str, Any] = {
            "recovery": policy,
            "on_recovered": told.append,
            "on_ask": lambda rank, question: bool(told),
        }
        if last:
            results = group.run(give_up_when_broken, **arguments)
        else:
            with pytest.raises(RunLost):
                group.run(give_up_when_broken, **arguments)
    assert [each.ranks for each in told] == [(1,)]
    after = [pid for pid, _ in results]
    assert [rank for rank in range(3) if before[rank] != after[rank]] == [1]
    assert [total for _, total in results] == [3 * (_STEPS - 1)] * 3
