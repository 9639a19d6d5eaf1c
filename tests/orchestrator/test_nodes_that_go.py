"""On nodes of their own: Ray drains one while training runs on it, and the driver is killed."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests import netlab
from tests.netlab import NetLab

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(400),
    pytest.mark.skipif(netlab.missing() is not None, reason=str(netlab.missing())),
]

PROGRAM = """
import os, subprocess, sys, threading, time
from pathlib import Path
import torch
import orchestrator as pl
from tests.orchestrator.groups import Net, loader

folder, what = Path(sys.argv[1]), sys.argv[2]


class Tells(pl.Callback):
    def on_train_batch_end(self, trainer, *rest):
        time.sleep(0.01)
        if trainer.is_global_zero and trainer.global_step == 3:
            (folder / "runs").touch()
        if trainer.is_global_zero:
            (folder / "step").write_text(str(trainer.global_step))


def fit(epochs, *callbacks, **arguments):
    pl.seed_everything(5)
    module = Net()
    keeps = pl.callbacks.ModelCheckpoint(dirpath=folder / "kept", every_n_epochs=1000)
    trainer = pl.Trainer(
        accelerator="cpu", num_nodes=3, devices=1, max_epochs=epochs, logger=False,
        callbacks=[*callbacks, keeps], enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(module, loader(240, shuffle=True), **arguments)
    return module, trainer


def drain_last_node():
    while not (folder / "runs").exists():
        time.sleep(0.05)
    import ray
    node = max(ray.nodes(), key=lambda node: node["NodeManagerAddress"])
    subprocess.run(
        [os.path.join(os.path.dirname(sys.executable), "ray"), "drain-node",
         "--node-id", node["NodeID"], "--reason", "DRAIN_NODE_REASON_PREEMPTION",
         "--reason-message", "planned", "--deadline-remaining-seconds", "60"], check=True)
    (folder / "drained").write_text(str(time.time()))


if __name__ == "__main__":
    if what == "drained":
        threading.Thread(target=drain_last_node, daemon=True).start()
        try:
            fit(40, Tells())
        except pl.Preempted as told:
            print(told)
            print("after", time.time() - float((folder / "drained").read_text()))
    elif what == "resumed":
        resumed, trainer = fit(40, ckpt_path="last")
        whole, _ = fit(40)
        same = all(torch.equal(one, other) for one, other in zip(resumed.parameters(), whole.parameters()))
        print("same", same, "steps", trainer.global_step)
    else:
        fit(-1, Tells())
"""


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Iterator[NetLab]:
    """Three nodes, and a fourth that can join."""
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "120")  # on a busy machine
    with NetLab(3, cpus=1) as nodes:
        yield nodes


def start(lab: NetLab, node: int, what: str) -> subprocess.Popen[str]:
    """Run the program on a node."""
    script = lab.home / "program.py"
    script.write_text(PROGRAM, encoding="utf-8")
    root = str(Path(__file__).resolve().parents[2])
    return lab.popen(
        node,
        [sys.executable, str(script), str(lab.home), what],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"PYTHONPATH": root},
    )


def wait_for(path: Path, driver: subprocess.Popen[str]) -> None:
    """Wait until the run has begun."""
    until = time.monotonic() + 200
    while not path.exists() and time.monotonic() < until and driver.poll() is None:
        time.sleep(0.05)
    if not path.exists():
        driver.kill()
        pytest.fail(f"Training has not begun:\n{driver.communicate()}")


def workers_of(lab: NetLab, nodes: range) -> list[psutil.Process]:
    """The processes of workers of our groups on these nodes."""
    found = []
    for node in nodes:
        for pid in lab.pids(node):
            try:
                process = psutil.Process(pid)
                if any("ray::Worker" in part for part in process.cmdline()):
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
    return found


@pytest.mark.slow
def test_a_node_that_ray_drains_is_left_with_nothing_lost(lab: NetLab) -> None:
    """The run saves and stops seconds after Ray's notice; on a new node it ends as if nothing had been."""
    out, err = start(lab, 0, "drained").communicate(timeout=200)
    assert f"Ray drains node {lab.ip(2)}, which will be gone in" in out, err
    assert "kept/interrupted.ckpt" in out
    assert float(out.split("after")[-1]) < 20
    lab.add_node()
    out, err = start(lab, 0, "resumed").communicate(timeout=200)
    assert out.split() == ["same", "True", "steps", "400"], err


LEFT = """
import ray
ray.init(address="auto", log_to_driver=False)
table = ray.util.placement_group_table()
print("left", [item["state"] for item in table.values() if item["state"] != "REMOVED"])
"""


def test_a_killed_driver_leaves_neither_workers_nor_placement(lab: NetLab) -> None:
    """Seconds after SIGKILL no worker of any node is left, and Ray has all that was reserved back."""
    driver = start(lab, 0, "endless")
    wait_for(lab.home / "runs", driver)
    workers = workers_of(lab, range(3))
    assert len(workers) == 3
    driver.kill()
    driver.communicate()
    assert psutil.wait_procs(workers, timeout=10)[1] == []
    assert lab.python(1, LEFT).split("\n")[-2] == "left []"
