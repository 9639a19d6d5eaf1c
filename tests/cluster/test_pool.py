"""Warm groups: what is reused, what is ended, and when. Real Ray, two ranks."""

from __future__ import annotations

import importlib
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cluster import WorkerContext, WorkerGroup, pool
from tests.cluster.conftest import small_spec

pytestmark = pytest.mark.ray


@pytest.fixture(autouse=True)
def empty_pool(local_ray: None) -> Iterator[None]:
    """Each test ends the groups that it leaves idle."""
    yield
    pool.end()


def pids(group: WorkerGroup) -> list[int]:
    """The group's processes."""
    return [worker.pid for worker in group.workers]


def gone(group: WorkerGroup) -> bool:
    """Whether none of the group's processes exists."""
    return not any(psutil.pid_exists(pid) for pid in pids(group))


def wait_until_gone(group: WorkerGroup) -> None:
    """Wait for an end that another thread brings about."""
    deadline = time.monotonic() + 30
    while not gone(group):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_equal_spec_gets_the_same_warm_processes_in_a_new_generation() -> None:
    """The second lease reuses processes, also after a block that raised, and its process group is fresh."""
    with pytest.raises(KeyError), pool.lease(small_spec(2)) as first:
        raise KeyError("of the borrower's own")
    with pool.lease(small_spec(2)) as second:
        assert pids(second) == pids(first)
        assert second.run(lambda context: context.generation) == [1, 1]


def test_a_group_that_died_is_not_lent_again() -> None:
    """A failed run leaves it as it was; after a death while idle, the next lease starts new processes."""
    with pytest.raises(ValueError, match="boom"), pool.lease(small_spec(1)) as failed:
        failed.run(lambda context: (_ for _ in ()).throw(ValueError("boom")))
    with pool.lease(small_spec(1)) as second:
        assert pids(second) == pids(failed)
        assert second.run(lambda context: context.rank) == [0]
    psutil.Process(second.workers[0].pid).kill()
    wait_until_gone(second)
    with pool.lease(small_spec(1)) as third:
        assert pids(third) != pids(second)
        assert third.run(lambda context: context.rank) == [0]


def test_workers_with_an_old_module_are_not_lent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever edits a module and runs again gets what it says now."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    folder, path = str(tmp_path), tmp_path / "edited_between.py"

    def read(context: WorkerContext) -> str:
        if folder not in sys.path:
            sys.path.insert(0, folder)
        return str(importlib.import_module("edited_between").VALUE)

    path.write_text("VALUE = 'old'\n")
    edited = importlib.import_module("edited_between")
    try:
        found = []
        for _ in range(2):
            with pool.lease(small_spec(1)) as group:
                found.append((group.run(read), pids(group)))
        assert found[0] == found[1] and found[0][0] == ["old"]
        path.write_text("VALUE = 'new, and longer'\n")
        importlib.reload(edited)
        with pool.lease(small_spec(1)) as group:
            assert group.run(read) == ["new, and longer"]
            assert pids(group) != found[0][1]
    finally:
        del sys.modules["edited_between"]


def test_idle_groups_end_when_their_room_is_needed() -> None:
    """A spec that does not fit beside the idle group gets its room, without waiting for the idle time."""
    import ray

    most = int(ray.cluster_resources()["CPU"] / 0.5)
    with pool.lease(small_spec(1)) as idle:
        pass
    with pool.lease(small_spec(most)) as large:
        assert gone(idle)
        assert large.run(lambda context: context.world_size) == [most] * most


def test_idle_groups_end_after_the_idle_time_and_the_thread_with_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A group that nobody leases again ends by itself; no thread of the pool stays."""
    monkeypatch.setattr(pool, "IDLE_TIMEOUT_S", 0.1)
    with pool.lease(small_spec(1)) as idle:
        pass
    wait_until_gone(idle)
    for thread in threading.enumerate():
        if thread.name.startswith("cluster-"):
            thread.join(10)
            assert not thread.is_alive()


def test_end_ends_all_idle_groups_and_the_thread() -> None:
    """After `end`, processes and thread are gone; a second call does nothing."""
    with pool.lease(small_spec(1)) as one:
        pass
    assert not gone(one)
    pool.end()
    pool.end()
    assert gone(one)
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("cluster-")] == []


def test_a_lent_group_is_not_lent_twice() -> None:
    """Two leases of equal specs at once get two groups."""
    with pool.lease(small_spec(1)) as one, pool.lease(small_spec(1)) as two:
        assert one is not two
        assert set(pids(one)).isdisjoint(pids(two))
