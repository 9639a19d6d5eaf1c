"""Workers that must go: what Ray's drain means for a group, and what a SIGTERM to a worker does."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from cluster import WorkerContext, WorkerDied, WorkerGroup, WorkerInfo
from cluster.errors import GroupError
from cluster.preemption import GRACE_S, Notice, notices_of


def worker(rank: int, node: str) -> WorkerInfo:
    """A rank on a node."""
    return WorkerInfo(
        rank=rank,
        world_size=3,
        local_rank=0,
        local_world_size=1,
        node_rank=0,
        num_nodes=2,
        node_id=node,
        node_ip=f"ip-{node}",
        pid=1,
        device="cpu",
        visible_gpus=(),
    )


WORKERS = [worker(0, "a"), worker(1, "b"), worker(2, "b")]


def told(draining: dict[str, int]) -> dict[str, Notice]:
    """What these drains mean for ranks on nodes a and b, and a driver on node d, at second 1000."""
    return notices_of(draining, WORKERS, "d", unix_s=1000.0, monotonic_s=50.0)


def test_a_drained_node_names_its_ranks_and_deadline() -> None:
    """The ranks of the node must go by Ray's deadline, or within the usual grace where there is none."""
    assert told({"b": 1_012_000})["b"].ranks == (1, 2)
    assert told({"b": 1_012_000})["b"].deadline == 62.0
    assert told({"b": 0})["b"].deadline == 50.0 + GRACE_S


def test_a_drain_of_the_drivers_node_is_the_whole_runs() -> None:
    """Without its driver nothing goes on, so no ranks are named; nodes of others mean nothing."""
    assert told({"d": 0})["d"].ranks == ()
    assert told({"elsewhere": 0}) == {}


def heed(context: WorkerContext) -> str:
    context.heeds_notices = True
    context.position = lambda: (context.rank, dict(context.signals))
    context.emit("ready")
    while "go" not in context.signals:
        time.sleep(0.001)
    return str(context.signals["go"])


def wait(context: WorkerContext) -> None:
    context.emit("ready")
    time.sleep(600)


@pytest.mark.ray
def test_a_worker_that_heeds_a_sigterm_tells_the_driver_and_goes_on(pair: WorkerGroup) -> None:
    """The notice names the rank and reaches the driver at once; the worker lives."""
    notices: list[Notice] = []

    def on_event(rank: int, event: object) -> None:
        assert event == "ready"
        if rank == 1:
            os.kill(pair.workers[1].pid, signal.SIGTERM)

    def on_notice(notice: Notice) -> None:
        notices.append(notice)
        pair.signal("go", "on")

    assert pair.run(heed, on_event=on_event, on_notice=on_notice) == ["on", "on"]
    assert [notice.ranks for notice in notices] == [(1,)]
    assert f"SIGTERM to rank 1 (pid {pair.workers[1].pid}" in notices[0].reason
    assert 0 < notices[0].deadline - time.monotonic() <= GRACE_S


@pytest.mark.ray
def test_a_worker_that_heeds_nothing_ends_without_a_dump(
    pair: WorkerGroup, capfd: pytest.CaptureFixture[str]
) -> None:
    """SIGTERM ends it as it ends any process; the driver hears of a death, and nothing is printed."""

    def on_event(rank: int, event: object) -> None:
        if rank == 1:
            os.kill(pair.workers[1].pid, signal.SIGTERM)

    with pytest.raises(WorkerDied, match="process of rank 1 of 2"):
        pair.run(wait, on_event=on_event)
    assert "SIGTERM received" not in "".join(capfd.readouterr())


@pytest.mark.ray
def test_an_announcement_is_set_before_the_position_is_read(pair: WorkerGroup) -> None:
    """Each worker answers with where it was once it knew the value; without a run there is nobody to tell."""
    heard: list[object] = []
    ready: list[int] = []

    def announce() -> None:
        heard.extend(pair.announce("place", 7))
        pair.signal("go", "on")

    def on_event(rank: int, event: object) -> None:
        ready.append(rank)
        if len(ready) == 2:
            threading.Thread(target=announce).start()

    pair.run(heed, on_event=on_event)
    assert heard == [(0, {"place": 7}), (1, {"place": 7})]
    with pytest.raises(GroupError, match="without a run"):
        pair.announce("place", 8)
