"""What a test can leave behind in its process, and what of it is a leak.

A test must end with the threads, child processes, environment variables and working directory that it began
with. What fixtures of a wider scope start is there before the test, so it is no leak of the test's. Ray's own
processes and variables may stay while Ray runs: the pool of warm workers belongs to the session, which ends
it. Looking costs about 1 ms; only something left behind costs time: the grace in which it may still end by
itself.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass

import psutil

_SET_ON_IMPORT = frozenset(
    {
        "CRC32C_SW_MODE",  # tensorboardX
        "KMP_DUPLICATE_LIB_OK",  # scikit-learn
        "KMP_INIT_AT_FORK",  # scikit-learn
        "PYTEST_CURRENT_TEST",  # pytest, before each phase of a test
        "PYTORCH_NVML_BASED_CUDA_CHECK",  # lightning
        "RAY_CLIENT_MODE",  # ray
        "TORCHINDUCTOR_CACHE_DIR",  # torch._dynamo
    }
)
# Set by `seed_everything`, as its contract says: put back after each test, but no leak.
_SEEDS = frozenset({"ORCHESTRATOR_GLOBAL_SEED", "ORCHESTRATOR_SEED_WORKERS"})
# Python starts one of each on first use and keeps them until it ends.
_PYTHONS_OWN = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """The state of this process that outlives a test; daemon threads end with the process, so not them."""

    threads: frozenset[threading.Thread]
    children: frozenset[psutil.Process]
    environment: Mapping[str, str]
    directory: str
    ray_runs: bool

    @classmethod
    def take(cls) -> Footprint:
        """Look at this process now. Direct children do: a grandchild that stays has a parent that stays."""
        return cls(
            threads=frozenset(thread for thread in threading.enumerate() if not thread.daemon),
            children=frozenset(psutil.Process().children()),
            environment=dict(os.environ),
            directory=os.getcwd(),
            ray_runs=_ray_runs(),
        )

    def leaks(self, grace_s: float = 2.0) -> list[str]:
        """Return one line for each thing that is new and does not end within `grace_s` seconds."""
        now = Footprint.take()
        return [
            *(f"thread {thread.name!r}" for thread in now.threads - self.threads if _stays(thread, grace_s)),
            *(
                line
                for process in now.children - self.children
                if (line := _describe_if_it_stays(process, grace_s))
            ),
            *(
                f"variable {name}: was {self.environment.get(name)!r}, is {now.environment.get(name)!r}"
                for name in self._changed_variables()
                if name not in _SEEDS
            ),
            *(
                [f"directory: was {self.directory}, is {now.directory}"]
                if now.directory != self.directory
                else []
            ),
        ]

    def restore(self) -> None:
        """Put the environment and the directory back, so that one leak does not fail the tests after it."""
        for name in self._changed_variables():
            if name in self.environment:
                os.environ[name] = self.environment[name]
            else:
                del os.environ[name]
        os.chdir(self.directory)

    def _changed_variables(self) -> list[str]:
        now = dict(os.environ)
        rays = ("RAY_",) if self.ray_runs or _ray_runs() else ()
        return sorted(
            name
            for name in self.environment.keys() | now.keys()
            if self.environment.get(name) != now.get(name)
            and name not in _SET_ON_IMPORT
            and not name.startswith(rays)
        )


def _stays(thread: threading.Thread, grace_s: float) -> bool:
    thread.join(grace_s)
    return thread.is_alive()


def _describe_if_it_stays(process: psutil.Process, grace_s: float) -> str:
    try:
        if process.status() == psutil.STATUS_ZOMBIE:  # has ended; its parent has not asked how
            return ""
        command = " ".join(process.cmdline())
        if any(name in command for name in _PYTHONS_OWN) or (_ray_runs() and _ray_folder() in command):
            return ""
        process.wait(grace_s)
    except psutil.NoSuchProcess:
        return ""
    except psutil.TimeoutExpired:
        return f"process {process.pid}: {command[:200]}"
    return ""


def _ray_runs() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def _ray_folder() -> str:
    return os.path.dirname(str(sys.modules["ray"].__file__))
