"""Saves behind training: one at a time, in order, never lost, and failures where they are looked for."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from orchestrator.checkpoint import background, staging
from orchestrator.checkpoint.background import BackgroundSaves
from orchestrator.checkpoint.writer import failure


def nothing() -> None:
    """What comes behind a save."""


class Slow:
    """Writes nothing, when it is told to, and keeps what it was given."""

    def __init__(self) -> None:
        self.may = threading.Event()
        self.written: list[Any] = []

    def __call__(self, content: Any, count: Callable[[int], None]) -> None:
        self.may.wait(20)
        count(8)
        self.written.append(content["a"].clone())


def test_what_is_written_is_what_was_there() -> None:
    """Training goes on at once, and what it changes is not in the file."""
    saves, write = BackgroundSaves(print), Slow()
    tensor = torch.ones(2)
    order: list[str] = []
    save = saves.begin({"a": tensor}, "x.ckpt", write, lambda: order.append("then"))
    tensor.zero_()
    assert not save.has_ended and write.written == []
    write.may.set()
    save.wait()
    assert save.has_ended and save.error is None
    assert torch.equal(write.written[0], torch.ones(2))
    assert (save.written_bytes, save.size_bytes, order) == (8, 8, ["then"])
    saves.end()


def test_one_save_is_on_its_way_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one waits for it, which is counted, and mentioned once; a wait says how far it is."""
    monkeypatch.setattr(background, "_PATIENCE_S", 0.05)
    monkeypatch.setattr(background, "_TELLS_S", 0.01)
    said: list[str] = []
    saves, write = BackgroundSaves(said.append), Slow()
    first = saves.begin({"a": torch.ones(1)}, "first.ckpt", write, nothing)
    timer = threading.Timer(0.3, write.may.set)
    timer.start()
    saves.begin({"a": torch.zeros(1)}, "second.ckpt", write, nothing)
    assert first.has_ended and saves.waited_s > 0
    saves.end()
    timer.join()
    assert [float(item) for item in write.written] == [1.0, 0.0]
    assert said[0].startswith("Writing first.ckpt: 0.00 GB of 0.00 GB")
    assert [text for text in said if "Save less often" in text] != []


def test_a_full_disk_is_told_at_once() -> None:
    """The reason is in the save, what comes behind it is left out, and the user is told that training goes
    on."""
    said: list[str] = []
    saves = BackgroundSaves(said.append)
    behind: list[str] = []

    def write(content: Any, count: Callable[[int], None]) -> None:
        raise failure("x.ckpt", OSError(errno.ENOSPC, "no space"))

    save = saves.begin({"a": torch.ones(1)}, "x.ckpt", write, lambda: behind.append("then"))
    saves.end()
    assert isinstance(save.error, OSError) and behind == []
    (text,) = said
    assert "x.ckpt could not be written: No space left on device. Training goes on" in text


def test_without_memory_for_a_copy_it_is_written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the save has ended when it has begun."""
    monkeypatch.setattr(staging, "_available_bytes", lambda: 0)
    saves, write = BackgroundSaves(print), Slow()
    write.may.set()
    save = saves.begin({"a": torch.ones(1)}, "x.ckpt", write, nothing)
    assert save.has_ended and len(write.written) == 1


def test_a_rank_that_writes_nothing_has_nothing_to_wait_for() -> None:
    """Its save has ended at once, without a copy."""
    save = BackgroundSaves(print).begin({"a": torch.ones(1)}, "x.ckpt", None, nothing)
    assert save.has_ended and save.error is None and save.size_bytes == 0
