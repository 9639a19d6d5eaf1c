"""The guard that every test runs under: it names what a test leaves behind, and lets pass what ends or is
shared."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.leaks import Footprint


def test_a_clean_test_leaves_no_leak() -> None:
    """Threads and processes that have ended are no leak."""
    before = Footprint.take()
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()
    subprocess.run([sys.executable, "-c", ""], check=True)
    assert before.leaks() == []


def test_a_thread_that_stays_is_named() -> None:
    """A non-daemon thread that outlives the grace is reported by its name."""
    before = Footprint.take()
    release = threading.Event()
    thread = threading.Thread(target=release.wait, name="forgotten")
    thread.start()
    try:
        assert before.leaks(grace_s=0.01) == ["thread 'forgotten'"]
    finally:
        release.set()
        thread.join()


def test_daemon_threads_may_stay() -> None:
    """A daemon thread ends with the process and is no leak."""
    before = Footprint.take()
    release = threading.Event()
    thread = threading.Thread(target=release.wait, daemon=True)
    thread.start()
    try:
        assert before.leaks() == []
    finally:
        release.set()
        thread.join()


def test_a_process_that_stays_is_named() -> None:
    """A child process that outlives the grace is reported with its command."""
    before = Footprint.take()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        (leak,) = before.leaks(grace_s=0.01)
        assert leak.startswith(f"process {process.pid}: ")
        assert leak.endswith("input()")
        process.communicate(b"\n")


def test_a_variable_is_named_and_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """New, changed and removed environment variables are reported and put back."""
    monkeypatch.setenv("LEAK_CHANGED", "1")
    monkeypatch.setenv("LEAK_REMOVED", "2")
    before = Footprint.take()
    os.environ["LEAK_CHANGED"] = "3"
    os.environ["LEAK_NEW"] = "4"
    del os.environ["LEAK_REMOVED"]
    assert before.leaks() == [
        "variable LEAK_CHANGED: was '1', is '3'",
        "variable LEAK_NEW: was None, is '4'",
        "variable LEAK_REMOVED: was '2', is None",
    ]
    before.restore()
    assert before.leaks() == []


def test_a_changed_directory_is_named_and_restored(tmp_path: Path) -> None:
    """A working directory that a test moved to is reported and left again."""
    before = Footprint.take()
    os.chdir(tmp_path)
    assert before.leaks() == [f"directory: was {before.directory}, is {tmp_path}"]
    before.restore()
    assert os.getcwd() == before.directory


def test_seeds_are_put_back_without_complaint(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `seed_everything` sets by contract is no leak, and does not reach the next test."""
    monkeypatch.delenv("ORCHESTRATOR_GLOBAL_SEED", raising=False)
    before = Footprint.take()
    os.environ["ORCHESTRATOR_GLOBAL_SEED"] = "7"
    assert before.leaks() == []
    before.restore()
    assert "ORCHESTRATOR_GLOBAL_SEED" not in os.environ
