"""Reading the stack of a process whose native code holds the interpreter's lock."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.native_stack import find_thread, observe_process, read_stacks

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory files and /proc are Linux's")

ROOT = Path(__file__).resolve().parents[2]
_HOLDS = """
import ctypes, threading
from cluster import native_stack

native_stack.register()


def hold():
    print("there", flush=True)
    ctypes.PyDLL(None).sleep(600)  # PyDLL keeps the lock


def run():
    hold()


threading.Thread(target=run).start()
"""


def test_the_line_that_holds_the_lock_is_seen_from_outside(tmp_path: Path) -> None:
    """The stack is that of the thread which came through the function named, ends at the line that called the
    native code, and can be read again.
    """
    script = tmp_path / "train.py"
    script.write_text(_HOLDS, encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        for _ in range(100):
            state = observe_process(process.pid, ("train.py", "run"))
            if state is None or not state.moved:  # it was on its way into the call
                break
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()
    assert state is not None
    assert [(item.function, item.is_users) for item in state.frames] == [("run", True), ("hold", True)]
    assert state.frames[-1].text == "ctypes.PyDLL(None).sleep(600)  # PyDLL keeps the lock"
    assert (state.holds_lock, state.moved) == (True, False)


def test_a_process_without_a_file_is_not_signalled() -> None:
    """Who has not registered, or is gone, is left alone, and there is nothing to read."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert read_stacks(process.pid) is None
        assert process.poll() is None
    finally:
        process.communicate(b"\n")
    assert process.returncode == 0
    assert read_stacks(process.pid) is None


def test_the_thread_is_found_by_what_it_came_through() -> None:
    """Of several threads it is the one with the function on its stack; frames outside of it are left out, and
    files of this project are not the user's.
    """
    text = (
        "Thread 0x01 (most recent call first):\n"
        '  File "/usr/lib/python3.11/threading.py", line 320 in wait\n\n'
        "Current thread 0x02 (most recent call first):\n"
        '  File "/home/me/train.py", line 7 in training_step\n'
        f'  File "{ROOT}/orchestrator/step.py", line 3 in forward\n'
        f'  File "{ROOT}/cluster/worker.py", line 2 in run\n'
        '  File "/usr/lib/python3.11/threading.py", line 1 in _bootstrap\n'
    )
    frames = find_thread(text, ("cluster/worker.py", "run"))
    assert [(item.module, item.function, item.is_users) for item in frames] == [
        ("cluster.worker", "run", False),
        ("orchestrator.step", "forward", False),
        ("train", "training_step", True),
    ]
    assert find_thread(text, ("cluster/worker.py", "stop")) == ()
