"""One local Ray for all cluster tests of this process, and a warm group of three ranks on two cores."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster import GroupSpec, WorkerGroup, pool, session

ROOT = Path(__file__).resolve().parents[2]
HALF_A_CPU = {"CPU": 0.5}


def small_spec(num_workers: int, **options: object) -> GroupSpec:
    """Workers of half a CPU, with a collective timeout that a hanging test survives."""
    options.setdefault("collective_timeout_s", 30.0)
    options.setdefault("start_timeout_s", 200.0)  # a busy machine is no fault
    return GroupSpec.create(num_workers, resources_per_worker=HALF_A_CPU, **options)


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """Ray as `connect` starts it on this machine, whatever else runs here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", "local")
        session.connect()
    yield
    pool.end()
    session.shutdown()


@pytest.fixture(autouse=True, scope="module")
def _the_cores_are_free() -> None:
    """End the groups that other tests left warm: a group that is started without the pool cannot."""
    pool.end()


@pytest.fixture(scope="module")
def group(local_ray: None) -> Iterator[WorkerGroup]:
    """Three ranks that live as long as the test module."""
    started = WorkerGroup.start(small_spec(3))
    yield started
    started.shutdown()


@pytest.fixture
def pair(local_ray: None) -> Iterator[WorkerGroup]:
    """Two ranks for a test that may end them."""
    started = WorkerGroup.start(small_spec(2))
    yield started
    started.shutdown()


@pytest.fixture
def run_driver(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a program as a driver of its own, without this process's Ray variables, with an empty HOME."""

    def run(program: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            driver_command(program, tmp_path),
            env=driver_environment(tmp_path, **variables),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


def driver_command(program: str, folder: Path) -> list[str]:
    """The command that runs a program text from a file, so that what it defines can be looked up."""
    script = folder / "driver.py"
    script.write_text(program, encoding="utf-8")
    return [sys.executable, "-W", "error", str(script)]


def driver_environment(folder: Path, **variables: str) -> dict[str, str]:
    """This environment without Ray's variables, and with a Ray of its own; HOME is an empty folder."""
    home = folder / "home"
    home.mkdir(exist_ok=True)
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHONBREAKPOINT"))
    }
    return {**kept, "RAY_ADDRESS": "local", "HOME": str(home), "PYTHONPATH": str(ROOT), **variables}
