"""The watch over a run, with real processes that hang in collectives of Gloo; no Ray."""

from __future__ import annotations

import os
import pickle
import queue
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from cluster.heartbeat import HeartbeatServer, ProcessState
from cluster.rank_state import RankState
from cluster.ranks import Place, WorkerInfo, assign_ranks
from cluster.standstill import StandstillPolicy, StandstillWatch

ROOT = Path(__file__).resolve().parents[2]
_RANK = """
import pickle, sys, threading
import torch
import torch.distributed as dist
from cluster.heartbeat import Beacon, HeartbeatAddress
from cluster.rank_state import observe

rank, store, host, port, token = sys.argv[1:]
rank, steps, gate = int(rank), [0], threading.Event()
beacon = Beacon(
    HeartbeatAddress(host=host, port=int(port), token=bytes.fromhex(token)), rank, lambda: None
)
beacon.read = lambda: steps[0]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
ids = threading.get_ident(), threading.get_native_id()


def answer():
    for line in sys.stdin:
        if line == "go\\n":
            gate.set()
        else:
            print(pickle.dumps(observe(*ids, hidden=())).hex(), flush=True)


def train():
    dist.all_reduce(torch.ones(1))
    steps[0] += 1
    if rank == 1:
        gate.wait()
    dist.all_reduce(torch.ones(1))
    steps[0] += 1
    if rank == 0:
        dist.barrier()
    else:
        dist.all_gather_object([None, None], rank)


threading.Thread(target=answer, daemon=True).start()
print("there", flush=True)
train()
"""


class _Ranks:
    """Two ranks in processes of their own, as a group is watched."""

    def __init__(self, folder: Path) -> None:
        self.server = HeartbeatServer("127.0.0.1", lambda node, pid: ProcessState.RUNNING, lambda *dead: None)
        script, address = folder / "train.py", self.server.address
        script.write_text(_RANK, encoding="utf-8")
        for rank in range(2):
            self.server.expect(rank, "here", rank)
        self.processes = [
            subprocess.Popen(
                [
                    *(sys.executable, str(script), str(rank), str(folder / "store")),
                    *(address.host, str(address.port), address.token.hex()),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            )
            for rank in range(2)
        ]
        places = [Place(node_id="here", node_ip="10.0.0.1", pid=item.pid) for item in self.processes]
        self._workers = tuple(info for _, info in assign_ranks(places))

    @property
    def workers(self) -> Sequence[WorkerInfo]:
        return self._workers

    def last_progress(self) -> float:
        return self.server.last_change()

    def observe(self, is_over: Callable[[], bool]) -> Mapping[int, RankState | None]:
        for rank in range(2):
            self.say(rank, "look")
        return {rank: pickle.loads(bytes.fromhex(self.hear(rank))) for rank in range(2)}

    def say(self, rank: int, text: str) -> None:
        stream = self.processes[rank].stdin
        assert stream is not None
        stream.write(text + "\n")
        stream.flush()

    def hear(self, rank: int) -> str:
        stream = self.processes[rank].stdout
        assert stream is not None
        return stream.readline().strip()

    def end(self) -> None:
        self.server.close()
        for process in self.processes:
            process.kill()
            process.communicate()


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[_Ranks]:
    started = _Ranks(tmp_path)
    yield started
    started.end()


def test_a_hang_is_told_with_rank_and_line_and_so_is_its_end(ranks: _Ranks, tmp_path: Path) -> None:
    """A rank that waits for something else than its peer is named with its line; that the run goes on is
    told; and then that its ranks are in different collectives.
    """
    assert [ranks.hear(rank) for rank in range(2)] == ["there", "there"]
    told: queue.Queue[str] = queue.Queue()
    watch = StandstillWatch(ranks, StandstillPolicy(patience_s=1.0, tell=told.put))
    try:
        absent = told.get(timeout=120)
        assert absent.startswith("Autopsy: no rank has got on for ")
        assert f"The others wait for rank 1 on node 10.0.0.1 (pid {ranks.processes[1].pid})." in absent
        assert f"{tmp_path}/train.py:{_line('gate.wait()')} in train: gate.wait()" in absent
        assert f"{tmp_path}/train.py:{_line('dist.all_reduce(torch.ones(1))', 1)} in train" in absent
        assert "waits in all_reduce, after 2 collective calls" in absent
        assert "does not compute (it waits for another thread), after 1 collective call, at" in absent
        ranks.say(1, "go")
        assert "The run goes on, after a standstill of " in told.get(timeout=120)
        apart = told.get(timeout=120)
    finally:
        watch.close()
    assert "The ranks wait in different collectives, each for the others" in apart
    assert f"train.py:{_line('dist.barrier()')} in train: dist.barrier()" in apart
    assert f"train.py:{_line('dist.all_gather_object')} in train" in apart
    assert told.empty()


def _line(text: str, skip: int = 0) -> int:
    """The number of the line of the script that has a text."""
    return [number for number, line in enumerate(_RANK.splitlines(), 1) if text in line][skip]


class _Still:
    """One rank that never gets on and has returned, of which it is noted that it is looked at."""

    workers = tuple(info for _, info in assign_ranks([Place(node_id="n", node_ip="10.0.0.1", pid=1)]))

    def __init__(self) -> None:
        self.looks: queue.Queue[float] = queue.Queue()

    def last_progress(self) -> float:
        return 0.0

    def observe(self, is_over: Callable[[], bool]) -> Mapping[int, RankState | None]:
        self.looks.put(time.monotonic())
        raise RuntimeError("the worker is gone")


def test_what_is_paused_is_not_watched_and_failures_stay_inside() -> None:
    """While workers are replaced nobody is looked at, and the time does not count; a look that fails ends
    neither the watch nor the run.
    """
    still = _Still()
    watch = StandstillWatch(still, StandstillPolicy(patience_s=0.4, tell=lambda text: None))
    try:
        with watch.paused():
            time.sleep(1.2)
            assert still.looks.empty()
            resumed = time.monotonic()
        first, second = still.looks.get(timeout=60), still.looks.get(timeout=60)
        assert first >= resumed + 0.4
        assert second >= resumed + 3 * 0.4
    finally:
        watch.close()
