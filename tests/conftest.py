"""What every test gets: a Ray of its own, a guard against what it leaves behind, hypothesis runs that repeat.

Where tests run on several processes, a file's tests stay together, and so do all that start nodes of their
own (tests/netlab.py): one cluster of nodes at a time is enough for a machine. They come first, as they take
longest.

The guard fails a test at its teardown, naming what is left (tests/leaks.py says what counts), and likewise a
test module whose own fixtures leave something.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.leaks import Footprint

ROOT = Path(__file__).resolve().parents[1]

# The same examples in every run, so that a failure repeats. No deadline: machines differ.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("repeatable")


@cache
def _starts_nodes(file: str) -> bool:
    """Whether a file's tests start nodes in network namespaces."""
    return "netlab" in (ROOT / file).read_text(encoding="utf-8")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let what takes longest come first."""
    items.sort(key=lambda item: not _starts_nodes(item.nodeid.split("::")[0]))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand tests out by file, and all that start nodes to one process."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            return "nodes" if _starts_nodes(file) else file

    return ByFile(config, log)


def _guard(culprit: str) -> Iterator[None]:
    before = Footprint.take()
    yield
    leaks = before.leaks()
    before.restore()
    if leaks:
        pytest.fail(f"{culprit} left behind:\n  " + "\n  ".join(leaks), pytrace=False)


@pytest.fixture(autouse=True, scope="session")
def _attach_to_no_cluster() -> Iterator[None]:
    """Keep tests, and the programs that they start, off a Ray cluster that happens to run on this machine.

    Ray would let its workers give way to everything else; on a busy machine they would starve.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", "local")
        patch.setenv("RAY_worker_niceness", "0")
        yield


@pytest.fixture(autouse=True, scope="session")
def _workers_stay_warm() -> Iterator[None]:
    """Keep the workers of one file's tests for those of the next, whatever comes between."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cluster.pool.IDLE_TIMEOUT_S", 1800.0)
        yield


@pytest.fixture(autouse=True, scope="module")
def _module_leaves_nothing_behind(_attach_to_no_cluster: None) -> Iterator[None]:
    yield from _guard("The fixtures of this module")


@pytest.fixture(autouse=True)
def _test_leaves_nothing_behind(_module_leaves_nothing_behind: None) -> Iterator[None]:
    yield from _guard("The test")


def pytest_sessionfinish() -> None:
    """End the pool of warm workers, and the Ray that we started, if a test has begun one."""
    lifetime = sys.modules.get("orchestrator.lifetime")
    if lifetime is not None:
        lifetime.shutdown()
