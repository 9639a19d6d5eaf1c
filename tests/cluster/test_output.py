"""Where prints go while a callable runs: `output`."""

from __future__ import annotations

import os
import sys

import pytest

from cluster.output import TAIL_LINES, Tail, captured


def test_text_is_forwarded_as_it_is_written() -> None:
    """Both streams go to the forwarder by name, unchanged, and are put back afterwards."""
    seen: list[tuple[str, str]] = []
    before = sys.stdout, sys.stderr
    with captured(Tail(), lambda name, text: seen.append((name, text))):
        sys.stdout.write("one\r")
        sys.stderr.write("two")
        assert not sys.stdout.isatty()
    assert seen == [("stdout", "one\r"), ("stderr", "two")]
    assert (sys.stdout, sys.stderr) == before


def test_without_a_forwarder_the_originals_are_written(capsys: pytest.CaptureFixture[str]) -> None:
    """Other ranks' prints stay with their process, and their last lines are kept."""
    tail = Tail()
    with captured(tail, None):
        print("hello")
    assert capsys.readouterr().out == "hello\n"
    assert tail.lines() == ("hello",)


def test_a_forked_child_writes_to_the_original(capfd: pytest.CaptureFixture[str]) -> None:
    """What a fork inherits would forward into a queue that nobody reads."""
    seen: list[str] = []
    with captured(Tail(), lambda _, text: seen.append(text)):
        stream = sys.stdout
        stream._pid = os.getpid() + 1  # type: ignore[attr-defined]  # as a forked child finds it
        stream.write("from the child\n")
        stream.flush()
    assert seen == []
    assert capfd.readouterr().out == "from the child\n"


def test_the_tail_keeps_the_last_lines_as_a_terminal_shows_them() -> None:
    """Only so many lines are kept, an unfinished one too, and a carriage return starts its line anew."""
    tail = Tail()
    for number in range(100):
        tail.add(f"line {number}\n")
    tail.add("10%\r20%\r")
    tail.add("30%")
    assert len(tail.lines()) == TAIL_LINES
    assert tail.lines()[-2:] == ("line 99", "30%")
