"""Runs schedules of faults on nodes of their own, and compares each with the undisturbed run in one process.

    python -m tests.chaos.campaign                  # 100 schedules
    python -m tests.chaos.campaign --seeds 17       # one of them alone
    python -m tests.chaos.campaign --seeds 0 1 2 --cut-off-s 200
    python -m tests.chaos.campaign --here           # on this machine alone: what is cut off there is killed

Each schedule is printed before it runs, and what came of it behind: the hashes, the longest time between two
committed steps, the numbers of processes. The status is 1 where a hash differs, or a run did not end. Without
``--here`` it needs root and network namespaces, on Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests import netlab
from tests.chaos.schedules import Fault, Schedule, draw
from tests.chaos.training import train
from tests.netlab import NetLab

NODES = 4
PAUSE_S = 0.1


@cache
def expected(logical_ranks: int, optimizer: str, accumulate: int, logs: bool, here: bool) -> dict[str, Any]:
    """Return what a run gives in one process, this one or one of its own, where nothing happens."""
    given = {
        **{"logical_ranks": logical_ranks, "optimizer": optimizer, "accumulate": accumulate},
        **{"logs": logs, "workers": 1, "most": 1},
    }
    with tempfile.TemporaryDirectory() as folder:
        if here:
            return train(given, Path(folder), workers=1, pause_s=0.0)
        found = subprocess.run(
            [sys.executable, "-m", "tests.chaos.training", json.dumps(given), folder, "0"],
            capture_output=True,
            text=True,
            check=False,
        )
    assert found.returncode == 0, found.stderr
    return _last_json(found.stdout)


def disturbed(schedule: Schedule, lab: NetLab, folder: Path, cut_off_s: float) -> dict[str, Any]:
    """Run a schedule with its faults; return what it gave, with the times of its steps."""
    folder.mkdir()
    with open(folder / "output", "w", encoding="utf-8") as output:
        process = lab.popen(
            0,
            [
                sys.executable,
                "-m",
                "tests.chaos.training",
                json.dumps(asdict(schedule)),
                str(folder),
                str(PAUSE_S),
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={"PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])},
        )
    mends: list[int] = []
    try:
        deadline = time.monotonic() + cut_off_s
        for fault in schedule.faults:
            while len(_steps(folder)) < fault.step and process.poll() is None:
                if time.monotonic() > deadline:
                    raise AssertionError((folder / "output").read_text(encoding="utf-8"))
                time.sleep(0.01)
            mends += _strike(fault, lab, folder)
        process.wait(timeout=max(1.0, deadline - time.monotonic()))
    finally:
        process.kill()
        process.wait()
        for node in sorted(set(mends)):  # Ray has given it up by then, and does not take it back
            lab.link_up(node)
            lab.kill_node(node)
            lab.add_node()
    text = (folder / "output").read_text(encoding="utf-8")
    assert process.returncode == 0, text
    return {**_last_json(text), **_course(folder)}


def disturbed_here(schedule: Schedule, folder: Path) -> dict[str, Any]:
    """Run a schedule on this machine, in this process's Ray; nodes and links are not hit, but processes."""
    folder.mkdir()
    is_over = threading.Event()
    struck: list[Fault] = []

    def strike() -> None:
        for fault in schedule.faults:
            while len(_steps(folder)) < fault.step:
                if is_over.wait(0.01):
                    return
            alive = sorted(pid for pid in _told(folder) if pid != os.getpid() and _is_alive(pid))
            if alive:
                sign = signal.SIGSTOP if fault.kind == "freeze" else signal.SIGKILL
                os.kill(alive[fault.target % len(alive)], sign)
                struck.append(fault)

    striker = threading.Thread(target=strike)
    striker.start()
    try:
        found = train(asdict(schedule), folder, workers=schedule.workers, pause_s=PAUSE_S, cpus=0.1)
    finally:
        is_over.set()
        striker.join()
    assert struck or not schedule.faults, "no fault of the schedule has hit anybody"
    return {**found, **_course(folder)}


def _told(folder: Path) -> list[int]:
    return [int(path.name.partition(".")[2]) for path in folder.glob("pid.*")]


def _is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").split()[2] not in "ZXT"
    return False


def _course(folder: Path) -> dict[str, Any]:
    """Return the longest time between two committed steps, and the numbers of processes that there were."""
    steps = [line.split() for line in _steps(folder)]
    waits = [float(later[1]) - float(sooner[1]) for sooner, later in pairwise(steps)]
    return {"wait_s": max(waits, default=0.0), "processes": sorted({int(item[2]) for item in steps})}


def _strike(fault: Fault, lab: NetLab, folder: Path) -> list[int]:
    """Let a fault happen; return the nodes whose link is to be mended. The driver's node is never cut."""
    alive = [(node, pid) for node in range(lab.nodes) for pid in _workers(lab, folder, node)]
    apart = [item for item in alive if item[0] != 0]
    hit = alive if fault.kind in ("kill", "freeze") else apart
    if not hit:
        return []
    node, pid = hit[fault.target % len(hit)]
    if fault.kind == "kill":
        os.kill(pid, signal.SIGKILL)
    elif fault.kind == "freeze":
        lab.freeze(pid)
    elif fault.kind == "kill a node":
        for _, other in [item for item in alive if item[0] == node]:
            os.kill(other, signal.SIGKILL)
    else:
        lab.link_down(node)
        return [node]
    return []


def _workers(lab: NetLab, folder: Path, node: int) -> list[int]:
    """Return the processes of a node that have trained and are there, in order."""
    with contextlib.suppress(Exception):
        there = set(lab.pids(node))
        return sorted(pid for pid in there if (folder / f"pid.{pid}").exists())
    return []


def _steps(folder: Path) -> list[str]:
    path = folder / "steps"
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def _last_json(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(next(line for line in reversed(text.splitlines()) if line[:1] == "{"))
    return found


def run(seeds: Sequence[int], cut_off_s: float, lab: NetLab | None) -> int:
    """Run the schedules of these seeds on the lab's nodes, or on this machine; return how many failed."""
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        for seed in seeds:
            schedule = draw(seed, nodes=NODES)
            print(schedule.describe(), flush=True)
            folder = Path(name) / str(seed)
            try:
                alone = expected(
                    schedule.logical_ranks,
                    schedule.optimizer,
                    schedule.accumulate,
                    schedule.logs,
                    here=lab is None,
                )
                if lab is None:
                    found = disturbed_here(schedule, folder)
                else:
                    found = disturbed(schedule, lab, folder, cut_off_s)
                same = all(found[item] == alone[item] for item in ("hash", "steps", "metrics"))
                said = "the same" if same else f"ANOTHER: {alone}, {found}"
                print(
                    f"  {said}: {found['hash'][:16]}, longest wait {found['wait_s']:.2f} s, processes "
                    f"{found['processes']}",
                    flush=True,
                )
            except Exception as error:  # a run that fails is one of the outcomes
                same = False
                print(f"  FAILED: {error}", flush=True)
            failed += not same
    return failed


def main() -> None:
    """Run the campaign."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(100)))
    parser.add_argument("--cut-off-s", type=float, default=300.0, help="a run that takes longer has failed")
    parser.add_argument("--here", action="store_true", help="on this machine's own Ray, without nodes")
    arguments = parser.parse_args()
    reason = None if arguments.here else netlab.missing()
    if reason is not None:
        raise SystemExit(f"Chaos needs network namespaces: {reason}.")
    with contextlib.ExitStack() as stack:
        lab = None if arguments.here else stack.enter_context(NetLab(nodes=NODES, cpus=1))
        failed = run(arguments.seeds, arguments.cut_off_s, lab)
    print(f"{len(arguments.seeds) - failed} of {len(arguments.seeds)} schedules gave the same bits.")
    raise SystemExit(failed > 0)


if __name__ == "__main__":
    main()
