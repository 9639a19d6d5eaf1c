"""A fit over nodes of their own goes through a killed, frozen, unreachable or drained one, bit for bit.

With ``pytest -s`` each fault prints how long it took until it was found, and the longest time between two
commits, the 0.1 s that a step is made to take included (0.5 s around the drain).
``STEP_S=1`` gives the spare time to come up before the fault, as it has in a longer run.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests import netlab
from tests.netlab import NetLab

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(600),
    pytest.mark.skipif(netlab.missing() is not None, reason=str(netlab.missing())),
]

PROGRAM = """
import hashlib, json, logging, os, re, sys, time
from pathlib import Path
import torch
import orchestrator as pl
from tests.orchestrator.test_recovery import Net, Points

folder = Path(sys.argv[1])


class Tells(pl.Callback):
    def __init__(self):
        self.before, self.after = float(os.environ["BEFORE_S"]), float(os.environ["AFTER_S"])

    def on_train_batch_end(self, trainer, *rest):
        time.sleep(self.before if trainer.global_step < 20 else self.after)
        rank = trainer.global_rank
        (folder / f"pid.{rank}.{os.getpid()}").touch()
        if rank == 0:
            with open(folder / "steps", "a") as file:
                file.write(f"{trainer.global_step} {time.monotonic()}\\n")


class Verdicts(logging.Handler):
    def emit(self, record):
        told = re.search(r"Replaced in ([0-9.]+) s", record.getMessage())
        if told:
            (folder / "verdict").write_text(str(time.monotonic() - float(told[1])))


logging.getLogger("orchestrator").addHandler(Verdicts())
logging.getLogger("orchestrator").setLevel(logging.INFO)
pl.seed_everything(5, verbose=False)
module = Net()
trainer = pl.Trainer(
    accelerator="cpu", num_nodes=3, devices=1, spares=1, max_epochs=12, logger=False,
    callbacks=[Tells()], enable_progress_bar=False, enable_model_summary=False,
    enable_checkpointing=False, default_root_dir=folder, start_timeout_s=240,
)
points = torch.utils.data.DataLoader(Points(), batch_size=4, shuffle=True)
trainer.fit(module, points, torch.utils.data.DataLoader(Points(), batch_size=16))
digest = hashlib.sha256()
for tensor in module.state_dict().values():
    digest.update(tensor.numpy().tobytes())
print(json.dumps({
    "weights": digest.hexdigest(), "steps": trainer.global_step, "samples": trainer.samples_seen,
    "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
}))
"""
AT_STEP = 20


class Run:
    """One fit on the lab's nodes, with a fault when it has come to a step."""

    def __init__(self, lab: NetLab, folder: Path) -> None:
        folder.mkdir()
        self.lab, self.folder = lab, folder

    def go(self, fault: Callable[[Run], None] | None) -> dict[str, Any]:
        """Train, and return what came out, with each rank's processes and the longest wait for a commit."""
        with open(self.folder / "output", "w", encoding="utf-8") as output:
            process = self.lab.popen(
                0,
                [sys.executable, "-c", PROGRAM, str(self.folder)],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={
                    "PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")]),
                    "BEFORE_S": "1" if fault is drain else os.environ.get("STEP_S", "0.01"),
                    "AFTER_S": "0.5" if fault is drain else "0.1",  # for the run to last until it is found
                },
            )
        try:
            if fault is not None:
                self.wait_for_step(AT_STEP, process)
                began = time.monotonic()
                fault(self)
            status = process.wait(timeout=240)
        finally:
            process.kill()
        text = (self.folder / "output").read_text(encoding="utf-8")
        assert status == 0, text
        found: dict[str, Any] = json.loads(
            next(line for line in reversed(text.splitlines()) if line.startswith("{"))
        )
        times = [float(line.split()[1]) for line in self.lines()]
        if fault is not None:
            verdict = float((self.folder / "verdict").read_text(encoding="utf-8"))
            found["found_s"] = verdict - began
            found["pause_s"] = max(later - sooner for sooner, later in pairwise(times) if later > began)
        found["ranks"] = sorted(int(path.name.split(".")[1]) for path in self.folder.glob("pid.*"))
        return found

    def lines(self) -> list[str]:
        """What rank 0 has written of its steps."""
        steps = self.folder / "steps"
        return steps.read_text(encoding="utf-8").splitlines() if steps.exists() else []

    def wait_for_step(self, step: int, process: subprocess.Popen[str]) -> None:
        """Return once rank 0 has made so many steps."""
        deadline = time.monotonic() + 200
        while len(self.lines()) < step:
            assert process.poll() is None and time.monotonic() < deadline, (
                self.folder / "output"
            ).read_text()
            time.sleep(0.01)

    def victim(self) -> tuple[int, int]:
        """Return the node and the process of a rank that is not where the driver is."""
        for path in self.folder.glob("pid.*"):
            _, rank, pid = path.name.split(".")
            for node in range(1, self.lab.nodes):
                if rank != "0" and int(pid) in self.lab.pids(node):
                    return node, int(pid)
        raise AssertionError("no rank is on another node")


def kill_worker(run: Run) -> None:
    os.kill(run.victim()[1], signal.SIGKILL)


def freeze_worker(run: Run) -> None:
    run.lab.freeze(run.victim()[1])


def kill_node(run: Run) -> None:
    run.lab.kill_node(run.victim()[0])


def power_off(run: Run) -> None:
    run.lab.power_off(run.victim()[0])


def cut_off(run: Run) -> None:
    """Cut a node off, and let it come back once the run has gone on without it."""
    node, _ = run.victim()
    before = len(run.lines())
    run.lab.link_down(node)
    deadline = time.monotonic() + 120
    while len(run.lines()) < before + 5 and time.monotonic() < deadline:
        time.sleep(0.05)
    run.lab.link_up(node)


def deafen(run: Run) -> None:
    """Let nothing from the driver's node reach another, while that one's packets arrive."""
    run.lab.block_one_way(0, run.victim()[0])


def mute(run: Run) -> None:
    """Let nothing from a node reach the driver's, while it hears everything."""
    run.lab.block_one_way(run.victim()[0], 0)


def drain(run: Run) -> None:
    """Let Ray say that a node will go, and take it away soon after."""
    node, _ = run.victim()
    before = len(run.lines())
    run.lab.python(0, DRAIN, run.lab.ip(node))
    deadline = time.monotonic() + 120
    while len(run.lines()) < before + 5 and time.monotonic() < deadline:
        time.sleep(0.05)
    run.lab.kill_node(node)


DRAIN = """
import os, subprocess, sys
import ray
ray.init(address="auto", log_to_driver=False)
node = next(node for node in ray.nodes() if node["NodeManagerAddress"] == sys.argv[1])
command = os.path.join(os.path.dirname(sys.executable), "ray")
subprocess.run([
    command, "drain-node", "--node-id", node["NodeID"], "--reason", "DRAIN_NODE_REASON_PREEMPTION",
    "--reason-message", "planned", "--deadline-remaining-seconds", "60",
], check=True)
"""

FAULTS = [
    cut_off,
    *(
        pytest.param(fault, marks=pytest.mark.slow)
        for fault in (kill_worker, freeze_worker, kill_node, power_off, deafen, mute, drain)
    ),
]


@pytest.fixture(scope="module")
def lab() -> Iterator[NetLab]:
    with NetLab(nodes=4, cpus=1) as started:
        yield started


@pytest.fixture(scope="module")
def undisturbed(lab: NetLab, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The run without a fault."""
    return Run(lab, tmp_path_factory.mktemp("undisturbed") / "run").go(None)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_a_node_leaves_no_trace(
    lab: NetLab, undisturbed: dict[str, Any], fault: Callable[[Run], None], tmp_path: Path
) -> None:
    """All numbers are those of the undisturbed run, and every survivor has kept its process."""
    try:
        found = Run(lab, tmp_path / "run").go(fault)
    finally:
        if fault not in (kill_worker, freeze_worker):
            lab.add_node()
    times = f"found in {found['found_s']:.2f} s, no commit for {found['pause_s']:.2f} s"
    print(f"{fault.__name__}: {times}")
    assert {name: found[name] for name in ("weights", "steps", "samples", "metrics")} == {
        name: undisturbed[name] for name in ("weights", "steps", "samples", "metrics")
    }
    assert len(found["ranks"]) == 4
    assert set(found["ranks"]) == {0, 1, 2}
