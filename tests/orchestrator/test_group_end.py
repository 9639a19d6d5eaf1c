"""Nothing is left of training on a group: after success, failure and Ctrl-C, in a driver of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.ray

PROGRAM = """
import os, sys, threading
import psutil
import orchestrator as pl
from tests.orchestrator.groups import Net, group_trainer, loader


class Fails(Net):
    def on_train_epoch_end(self):
        if self.global_rank == 1:
            raise ValueError("planned")


class Waits(Net):
    def on_train_epoch_end(self):
        print("waiting", flush=True)
        while True:
            pass


class Goes(Net):
    def on_train_batch_end(self, *arguments):
        if self.global_step == 2:
            print("going", flush=True)


def footprint():
    threads = {thread.name for thread in threading.enumerate()}
    children = {process.pid for process in psutil.Process().children(recursive=True)}
    folders = {name for name in os.listdir("/tmp") if str(os.getpid()) in name}
    by_libraries = {"RAY_CLIENT_MODE", "TORCHINDUCTOR_CACHE_DIR", "PYTORCH_NVML_BASED_CUDA_CHECK"}
    environment = {name: value for name, value in os.environ.items() if name not in by_libraries}
    return threads, children, folders, environment, os.getcwd()


if __name__ == "__main__":
    how = sys.argv[1]
    before = footprint()
    if how == "success":
        group_trainer("out").fit(Net(), loader(32))
    elif how == "failure":
        try:
            group_trainer("out").fit(Fails(), loader(32))
        except ValueError:
            print("failed as planned")
    elif how == "goes":
        group_trainer("out", max_epochs=-1).fit(Goes(), loader(32))
    else:
        group_trainer("out").fit(Waits(), loader(32))
    pl.shutdown()
    after = footprint()
    names = ("threads", "children", "folders", "environment", "cwd")
    for name, one, other in zip(names, before, after):
        if one != other:
            print("LEFT", name, one, other)
"""


def start(folder: Path, how: str) -> subprocess.Popen[str]:
    """Start the program as a driver with an empty HOME, in a process group of its own."""
    (folder / "home").mkdir()
    (folder / "driver.py").write_text(PROGRAM, encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.Popen(
        [sys.executable, "driver.py", how],
        cwd=folder,
        env={**kept, "HOME": str(folder / "home"), "PYTHONPATH": str(ROOT), "RAY_ADDRESS": "local"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize("how", [pytest.param("success", marks=pytest.mark.slow), "failure"])
def test_shutdown_leaves_nothing(tmp_path: Path, how: str) -> None:
    """After shutdown() threads, processes, folders, environment and HOME are as before."""
    driver = start(tmp_path, how)
    out, err = driver.communicate(timeout=120)
    assert driver.returncode == 0, err
    assert "LEFT" not in out
    assert list((tmp_path / "home").iterdir()) == []
    assert ("failed as planned" in out) == (how == "failure")


@pytest.mark.slow
def test_a_second_ctrl_c_ends_everything(tmp_path: Path) -> None:
    """Ctrl-C again, where a step never ends, ends driver and workers, with one traceback at most, and leaves
    nothing.
    """
    driver = start(tmp_path, "interrupt")
    try:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "waiting\n"
        family = psutil.Process(driver.pid).children(recursive=True)
        assert driver.stderr is not None
        os.killpg(driver.pid, signal.SIGINT)
        while "Press it again" not in driver.stderr.readline():
            assert driver.poll() is None
        os.killpg(driver.pid, signal.SIGINT)
        _, err = driver.communicate(timeout=60)
    finally:
        driver.kill()
    assert driver.returncode == -signal.SIGINT, err  # which a shell shows as 130
    assert err.count("Traceback") <= 1
    assert psutil.wait_procs(family, timeout=15)[1] == []
    assert [name for name in os.listdir("/tmp") if f"-{driver.pid}-" in name] == []
    assert list((tmp_path / "home").iterdir()) == []


@pytest.mark.parametrize(
    ("number", "status", "tracebacks"),
    [
        pytest.param(signal.SIGINT, 130, 1, id="Ctrl-C", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 143, 0, id="SIGTERM"),
    ],
)
def test_a_script_that_was_told_to_stop_ends_with_the_signals_status(
    tmp_path: Path, number: signal.Signals, status: int, tracebacks: int
) -> None:
    """The script stops in seconds, says so, leaves nothing, and its status is the signal's."""
    driver = start(tmp_path, "goes")
    try:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "going\n"
        family = psutil.Process(driver.pid).children(recursive=True)
        os.killpg(driver.pid, signal.SIGINT) if number == signal.SIGINT else os.kill(driver.pid, number)
        _, err = driver.communicate(timeout=60)
    finally:
        driver.kill()
    assert driver.returncode in (status, 128 - status), err
    assert "training stopped after step" in err
    assert "SIGTERM received" not in err
    assert err.count("Traceback") == tracebacks
    assert psutil.wait_procs(family, timeout=15)[1] == []
    assert [name for name in os.listdir("/tmp") if f"-{driver.pid}-" in name] == []
