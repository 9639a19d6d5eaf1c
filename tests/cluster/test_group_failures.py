"""A group that fails: one error of the right type, at once, and nothing left. Real Ray, two ranks."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import psutil
import pytest

from cluster import (
    GroupError,
    GroupSpec,
    PlacementError,
    StartError,
    WorkerContext,
    WorkerDied,
    WorkerGroup,
    placement,
)
from tests.cluster.conftest import small_spec

pytestmark = pytest.mark.ray


def wait_in_a_collective() -> None:
    """Wait for ranks that never come."""
    import torch
    import torch.distributed as dist

    dist.all_reduce(torch.ones(1))


def assert_ended(group: WorkerGroup) -> None:
    """The group is over and its processes are gone."""
    assert not group.alive
    assert [worker.pid for worker in group.workers if psutil.pid_exists(worker.pid)] == []
    with pytest.raises(GroupError, match="has ended"):
        group.run(os.getpid)


def test_the_users_exception_is_raised_with_its_type_while_peers_wait(pair: WorkerGroup) -> None:
    """Rank 1's exception is raised as itself, with its place, its step and its last output, long before any
    timeout. The same processes run the next callable.
    """

    def fail_on_one(context: WorkerContext) -> None:
        context.where = lambda: "epoch 3, step 41"
        if context.rank == 0:
            wait_in_a_collective()
        print("my last words")
        raise ZeroDivisionError("of my own")

    begun = time.monotonic()
    with pytest.raises(ZeroDivisionError, match="of my own") as caught:
        pair.run(fail_on_one)
    assert time.monotonic() - begun < pair.spec.collective_timeout_s
    notes = "\n".join(caught.value.__notes__)
    assert "Raised on rank 1 of 2" in notes
    assert "epoch 3, step 41" in notes
    assert "in fail_on_one" in notes
    assert "actors.py" not in notes
    assert "| my last words" in notes
    assert "1 other rank failed in consequence." in notes

    def add(context: WorkerContext) -> tuple[int, float]:
        import torch
        import torch.distributed as dist

        ones = torch.ones(1)
        dist.all_reduce(ones)
        return os.getpid(), ones.item()

    assert pair.run(add) == [(worker.pid, 2.0) for worker in pair.workers]


def test_a_rank_that_does_not_end_behind_anothers_exception_is_ended(pair: WorkerGroup) -> None:
    """It gets a moment, as no failing collective frees it; also where it talks on and on."""

    def fail_on_one(context: WorkerContext) -> None:
        while context.rank == 0:
            print("still here")
            time.sleep(0.001)
        raise ZeroDivisionError("of my own")

    with pytest.raises(ZeroDivisionError, match="of my own"):
        pair.run(fail_on_one, on_rank_output=lambda rank, stream, text: time.sleep(0.02))
    assert_ended(pair)


@pytest.mark.parametrize("what", ["a thread", "a process of the fork server"])
def test_who_keeps_something_of_a_failed_run_is_ended(pair: WorkerGroup, what: str) -> None:
    """Nothing of it goes on beside the next run."""

    def fail_and_leave(context: WorkerContext, what: str) -> None:
        import multiprocessing
        import threading

        if context.rank == 1:
            if what == "a thread":
                threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
            else:
                multiprocessing.get_context("forkserver").Process(target=time.sleep, args=(600,)).start()
        raise ZeroDivisionError("of my own")

    with pytest.raises(ZeroDivisionError, match="of my own"):
        pair.run(fail_and_leave, what)
    assert_ended(pair)


def test_what_is_no_error_ends_the_group(pair: WorkerGroup) -> None:
    """A callable that exits meant its process."""

    def leave(context: WorkerContext) -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        pair.run(leave)
    assert_ended(pair)


def test_a_killed_worker_is_named_and_not_its_peers_broken_connection(
    pair: WorkerGroup, capfd: pytest.CaptureFixture[str]
) -> None:
    """A SIGKILL of rank 1 is told as WorkerDied of rank 1, although rank 0 loses its connection at the same
    time.
    """

    def die_on_one(context: WorkerContext) -> None:
        if context.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        wait_in_a_collective()

    with pytest.raises(WorkerDied, match="rank 1 of 2") as caught:
        pair.run(die_on_one)
    assert (caught.value.rank, caught.value.pid) == (1, pair.workers[1].pid)
    assert_ended(pair)
    printed = capfd.readouterr()
    assert "A worker died" not in printed.out + printed.err


def test_children_of_workers_end_with_the_group(pair: WorkerGroup) -> None:
    """Processes that a callable started, such as loader workers, are gone when the error arrives."""
    children: list[Any] = []

    def start_child_and_fail(context: WorkerContext) -> None:
        import subprocess

        child = subprocess.Popen(["sleep", "600"])
        context.emit(child.pid)
        if context.rank == 0:
            context.ask("both?")
            raise RuntimeError("with a child")
        wait_in_a_collective()

    def wait_for_both(_: int, __: object) -> None:
        return None

    with pytest.raises(RuntimeError, match="with a child"):
        pair.run(start_child_and_fail, on_event=lambda _, pid: children.append(pid), on_ask=wait_for_both)
    assert children
    assert [pid for pid in children if psutil.pid_exists(pid)] == []
    assert_ended(pair)


def test_what_a_listener_raises_ends_the_group(pair: WorkerGroup) -> None:
    """An error in the driver's own callback is raised as it is, and the workers do not go on."""

    def wait_forever(context: WorkerContext) -> None:
        context.emit("begun")
        wait_in_a_collective() if context.rank == 0 else time.sleep(600)

    def refuse(_: int, __: object) -> None:
        raise LookupError("in the driver")

    with pytest.raises(LookupError, match="in the driver"):
        pair.run(wait_forever, on_event=refuse)
    assert_ended(pair)


def test_an_unanswerable_question_is_refused(pair: WorkerGroup) -> None:
    """Asking without on_ask is an error that names the question, not a hang."""
    with pytest.raises(GroupError, match=r"'may I'.*on_ask"):
        pair.run(lambda context: context.ask("may I"))
    assert_ended(pair)


def test_a_worker_that_dies_while_idle_is_noticed(pair: WorkerGroup) -> None:
    """`alive` turns False without a call to the workers, and a run says who died."""
    os.kill(pair.workers[0].pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while pair.alive and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not pair.alive
    with pytest.raises(WorkerDied, match="rank 0 of 2"):
        pair.run(lambda context: None)
    assert_ended(pair)


def test_an_impossible_request_is_refused_at_once_with_the_arithmetic(local_ray: None) -> None:
    """What no node of our own cluster can hold is refused without waiting."""
    begun = time.monotonic()
    with pytest.raises(
        PlacementError, match=r"asked 999 x \{CPU: 0\.5\} \(PACK\), there is\n  node 127\.0\.0\.1"
    ):
        WorkerGroup.start(small_spec(999))
    with pytest.raises(PlacementError, match=r"2 x \{CPU: 0\.5\} \(STRICT_SPREAD\)"):
        WorkerGroup.start(small_spec(2, num_nodes=2))
    assert time.monotonic() - begun < small_spec(2).start_timeout_s


def test_waiting_for_room_ends_with_the_reason(
    pair: WorkerGroup, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While others hold what is asked for, the wait is announced, and ends with what is free."""
    import ray

    monkeypatch.setattr("cluster.placement._SAY_AFTER_S", 0.1)
    cpus = ray.cluster_resources()["CPU"]
    spec = small_spec(int(cpus / 0.5), start_timeout_s=1.0)
    with pytest.raises(PlacementError, match=r"No room for this group after 1 s .*for others to free"):
        WorkerGroup.start(spec)
    assert "Waiting for others to free what they hold: asked" in caplog.text


def test_workers_that_are_late_are_named(local_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start that takes too long is one clear error, and nothing of it stays."""
    import ray

    def reserve_patiently(spec: GroupSpec, deadline: float, make_room: Any) -> placement.Reservation:
        return placement.reserve(spec, deadline + 30, make_room)  # only the workers are late, not their room

    monkeypatch.setattr("cluster.roster.reserve", reserve_patiently)
    with pytest.raises(StartError, match=r"workers did not start within .* raise start_timeout_s"):
        WorkerGroup.start(small_spec(2, start_timeout_s=0.3))
    deadline = time.monotonic() + 30
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_given_placement_group_is_used_at_its_end_and_not_removed(local_ray: None) -> None:
    """The last bundles are taken, as in a trial whose first is the trial itself; the owner removes it."""
    import ray

    owned = ray.util.placement_group([{"CPU": 0.25}, {"CPU": 0.5}])
    try:
        with pytest.raises(PlacementError, match=r"asked 2 bundles .* it has \[\{'CPU': 0\.25\}"):
            WorkerGroup.start(small_spec(2, placement_group=owned))
        group = WorkerGroup.start(small_spec(1, placement_group=owned))
        assert group.run(lambda context: context.rank) == [0]
        group.shutdown()
        assert ray.util.placement_group_table(owned)["state"] == "CREATED"
    finally:
        ray.util.remove_placement_group(owned)
