"""Signs of life, with real processes that are killed, frozen and kept busy; no Ray."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.heartbeat import (
    ENDED,
    GIVE_UP_S,
    SUSPECT_S,
    Beacon,
    HeartbeatServer,
    ProcessState,
    judge,
    process_state,
)

_WORKER = """
import sys, time
from cluster.heartbeat import ENDED, Beacon, HeartbeatAddress
host, port, token, member, busy_s = sys.argv[1:]
beacon = Beacon(
    HeartbeatAddress(host=host, port=int(port), token=bytes.fromhex(token)), int(member), lambda: None
)
print("there", flush=True)
sys.stdin.readline()
if float(busy_s):
    sys.setswitchinterval(1e9)  # nobody else gets the interpreter
    end = time.monotonic() + float(busy_s)
    while time.monotonic() < end:
        pass
    print("done", flush=True)
while True:
    time.sleep(1)
"""


class _Watch:
    """A server, the verdicts it gave, and the processes that it watches over."""

    def __init__(self, inquire: Callable[[str, int], ProcessState]) -> None:
        self.verdicts: queue.Queue[tuple[int, str]] = queue.Queue()
        self.server = HeartbeatServer("127.0.0.1", inquire, lambda *verdict: self.verdicts.put(verdict))
        self.processes: list[subprocess.Popen[str]] = []

    def start_worker(self, member: int, node: str = "here", busy_s: float = 0.0) -> subprocess.Popen[str]:
        address = self.server.address
        process = subprocess.Popen(
            [
                *(sys.executable, "-c", _WORKER, address.host, str(address.port), address.token.hex()),
                *(str(member), str(busy_s)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        self.server.expect(member, node, process.pid)
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        return process

    def end(self) -> None:
        self.server.close()
        for process in self.processes:
            process.kill()
            process.communicate()


@pytest.fixture
def watch() -> Iterator[_Watch]:
    found = _Watch(lambda node, pid: process_state(pid))
    yield found
    found.end()


def test_a_killed_process_is_dead_at_once(watch: _Watch) -> None:
    """The end of a process closes its connection, which needs no silence and no question."""
    watch.start_worker(0).kill()
    assert watch.verdicts.get(timeout=30) == (0, ENDED)


def test_a_frozen_process_is_dead(watch: _Watch) -> None:
    """A stopped process is silent, and its node says that it is stopped."""
    frozen = watch.start_worker(0)
    os.kill(frozen.pid, signal.SIGSTOP)
    member, why = watch.verdicts.get(timeout=30)
    assert member == 0
    assert "is stopped" in why


def test_a_neighbour_looks_first(watch: _Watch) -> None:
    """Where another worker of the node speaks, it looks, and nobody else is sent."""
    asked: list[int] = []
    watch.server._inquire = lambda node, pid: asked.append(pid) or ProcessState.UNKNOWN  # type: ignore[func-returns-value]
    watch.start_worker(1)
    frozen = watch.start_worker(0)
    os.kill(frozen.pid, signal.SIGSTOP)
    member, why = watch.verdicts.get(timeout=30)
    assert member == 0
    assert "is stopped" in why
    assert asked == []


def test_a_silent_process_that_runs_is_not_dead(watch: _Watch) -> None:
    """Holding the interpreter's lock for longer than a suspect may be silent is no fault."""
    busy = watch.start_worker(0, busy_s=2.5 * SUSPECT_S)
    assert busy.stdin is not None and busy.stdout is not None
    busy.stdin.write("\n")
    busy.stdin.flush()
    assert busy.stdout.readline() == "done\n"
    assert watch.verdicts.empty()


def test_a_node_that_cannot_be_reached_is_dead() -> None:
    """Silence and an unreachable node together make the verdict."""
    watch = _Watch(lambda node, pid: ProcessState.UNREACHABLE)
    try:
        frozen = watch.start_worker(0)
        os.kill(frozen.pid, signal.SIGSTOP)
        assert "cannot be reached" in watch.verdicts.get(timeout=30)[1]
    finally:
        watch.end()


def test_a_caller_without_the_token_is_refused(watch: _Watch) -> None:
    """A stranger cannot pass for a worker: it is hung up on, and the worker's own call still works."""
    address = watch.server.address
    watch.server.expect(7, "here", os.getpid())
    lost = threading.Event()
    stranger = Beacon(type(address)(host=address.host, port=address.port, token=bytes(32)), 7, lost.set)
    assert lost.wait(30)
    stranger.close()
    own = Beacon(address, 7, lambda: None)
    own.progress = 41
    deadline = time.monotonic() + 30
    while watch.server.progress()[7] != 41:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    watch.server.forget(7)
    own.close()


def test_a_worker_knows_that_it_is_heard_and_when_the_driver_is_gone() -> None:
    """Each sign is answered; the end of the driver's side is told to the worker once."""
    watch = _Watch(lambda node, pid: ProcessState.RUNNING)
    lost = threading.Event()
    watch.server.expect(0, "here", os.getpid())
    beacon = Beacon(watch.server.address, 0, lost.set)
    time.sleep(3 * SUSPECT_S)
    assert beacon.unheard_s < 3 * SUSPECT_S
    assert not lost.is_set()
    watch.end()
    assert lost.wait(30)
    beacon.close()


@given(
    silent_s=st.floats(0, 100),
    state=st.none() | st.sampled_from(ProcessState),
)
def test_only_evidence_makes_a_verdict(silent_s: float, state: ProcessState | None) -> None:
    """Who spoke lately, runs, or is not known about is not dead; whose connection ended is."""
    why = judge(closed=False, silent_s=silent_s, state=state)
    if silent_s < SUSPECT_S or state in (None, ProcessState.RUNNING):
        assert why is None
    elif state is ProcessState.UNKNOWN:
        assert (why is not None) == (silent_s >= GIVE_UP_S)
    else:
        assert why is not None
    assert judge(closed=True, silent_s=silent_s, state=state) is not None
