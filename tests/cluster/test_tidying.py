"""The small parts that keep a driver clean: `environment`, `noise`, `reaping`."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from cluster import noise
from cluster.environment import changes_since, defaulted, undo
from cluster.reaping import wait_gone


def test_changed_variables_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was set is unset, what was changed or removed has its value again."""
    monkeypatch.setenv("CHANGED", "before")
    monkeypatch.setenv("REMOVED", "before")
    before = dict(os.environ)
    os.environ["CHANGED"] = "after"
    os.environ["ADDED"] = "after"
    del os.environ["REMOVED"]
    undo(changes_since(before))
    assert dict(os.environ) == before


def test_what_others_set_meanwhile_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that no longer has the value it was changed to belongs to someone else."""
    monkeypatch.setenv("MINE", "before")
    before = dict(os.environ)
    os.environ["MINE"] = "after"
    changes = changes_since(before)
    os.environ["MINE"] = "theirs"
    undo(changes)
    assert os.environ["MINE"] == "theirs"


def test_a_default_holds_for_its_block_and_only_where_nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that the user has set is not touched."""
    monkeypatch.setenv("THEIRS", "set")
    monkeypatch.delenv("OURS", raising=False)
    with defaulted(THEIRS="default", OURS="default"):
        assert (os.environ["THEIRS"], os.environ["OURS"]) == ("set", "default")
    assert os.environ["THEIRS"] == "set"
    assert "OURS" not in os.environ


def test_only_notices_about_our_workers_are_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's notice of the death of any other process is still printed, and all are after `unmute`."""
    from ray._private import worker

    printed: list[str] = []
    noise.unmute()  # groups of other tests may have muted theirs
    monkeypatch.setattr(worker, "print_to_stdstream", lambda data, **_: printed.extend(data["lines"]))
    lines = ["A worker died. Worker PID: 41 Worker exit type: X", "A worker died. Worker PID: 42"]
    noise.mute_deaths([41])
    worker.print_to_stdstream({"lines": lines, "pid": "raylet"}, ignore_prefix=False)
    noise.unmute()
    assert printed == lines[1:]
    worker.print_to_stdstream({"lines": lines, "pid": "raylet"}, ignore_prefix=False)
    assert printed == [*lines[1:], *lines]


def test_waiting_for_a_process_ends_with_it() -> None:
    """A process that is gone is not waited for, and one that stays is returned when the time is over."""
    with subprocess.Popen([sys.executable, "-c", "pass"]) as short:
        pass
    with subprocess.Popen(["sleep", "600"]) as long:
        begun = time.monotonic()
        assert wait_gone([short.pid, long.pid], timeout_s=0.1) == [long.pid]
        assert time.monotonic() - begun >= 0.1
        long.kill()
    assert wait_gone([long.pid], timeout_s=60) == []
