"""Ctrl-C, as a terminal sends it and as a scheduler does: real signals to real drivers."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.cluster.conftest import driver_command, driver_environment

pytestmark = pytest.mark.ray

WAIT_IN_A_RUN = """
import time
from cluster import pool
from tests.cluster.conftest import small_spec


def wait(context):
    import torch
    import torch.distributed as dist

    context.emit("begun")
    if context.rank == 0:
        dist.all_reduce(torch.ones(1))
    time.sleep(600)


def announce(rank, event):
    begun.append(rank)
    if len(begun) == 2:
        print("begun", flush=True)


begun = []
if __name__ == "__main__":
    with pool.lease(small_spec(2)) as group:
        try:
            group.run(wait, on_event=announce)
        finally:
            print("alive", group.alive, flush=True)
"""


@pytest.mark.parametrize(
    ("whole_group", "number"),
    [
        pytest.param(False, signal.SIGINT, id="SIGINT to the driver", marks=pytest.mark.slow),
        pytest.param(True, signal.SIGINT, id="SIGINT to its process group"),
        pytest.param(False, signal.SIGTERM, id="SIGTERM to the driver", marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_driver_leaves_nothing(
    tmp_path: Path, whole_group: bool, number: signal.Signals
) -> None:
    """The group has ended when the interrupt leaves `run`; one traceback, no process, no folder stays."""
    driver = subprocess.Popen(
        driver_command(WAIT_IN_A_RUN, tmp_path),
        env=driver_environment(tmp_path),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert driver.stdout is not None
        if driver.stdout.readline() != "begun\n":
            pytest.fail(f"The driver ended early:\n{driver.communicate(timeout=60)[1]}")
        processes = psutil.Process(driver.pid).children(recursive=True)
        assert processes
        (os.killpg if whole_group else os.kill)(driver.pid, number)
        out, err = driver.communicate(timeout=60)
    finally:
        driver.kill()
        driver.wait()
    assert out == "alive False\n"
    assert driver.returncode != 0
    assert err.count("Traceback") <= 1
    assert psutil.wait_procs(processes, timeout=10)[1] == []
    assert list(Path("/tmp").glob(f"ray-{driver.pid}-*")) == []
    assert list((tmp_path / "home").iterdir()) == []
