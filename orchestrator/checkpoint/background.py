"""Writes checkpoints behind training: the loop waits for one copy of the state, a thread writes it.

One save is on its way at a time, so a disk that is slower than the saves makes the next one wait; that is
said, and counted. What belongs behind a save (links, the removal of older files) happens in its thread, once
the file is complete. A full disk is told at once, and not again before there was room; every failure leaves
things as they were, and who asked for the save finds it in `Save.error`. The call that trains does not end
before the last save has.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from orchestrator.checkpoint.staging import Staging, size_of
from orchestrator.checkpoint.writer import CheckpointWriteError

Say = Callable[[str], None]
Write = Callable[[Any, Callable[[int], None]], None]
"""Writes the copied content; called with what counts the bytes."""

_PATIENCE_S = 1.0
"""After so long a wait says what it waits for, and again after as long."""
_TELLS_S = 0.5
"""Saves that kept training waiting for so long are mentioned."""
_GRACE_S = 10.0
"""After a failure another rank's part of a save is waited for so long."""


class Save:
    """A checkpoint on its way to where it is kept.

    Args:
        path: Where to.
        size_bytes: Of its tensors.
        work: Writes it.
        behind: In a thread; False writes it before the constructor returns.

    Attributes:
        error: Why it failed, once it has ended; None where it is complete.
        written_bytes: So far.
    """

    def __init__(
        self, path: str, size_bytes: int, work: Callable[[Save], None], *, behind: bool = True
    ) -> None:
        self.path = path
        self.size_bytes = size_bytes
        self.written_bytes = 0
        self.error: BaseException | None = None
        self._work = work
        self._thread = threading.Thread(target=self._run, name="orchestrator-save")
        if behind:
            self._thread.start()
        else:
            self._run()

    @property
    def has_ended(self) -> bool:
        """Whether nothing is left to be done, well or badly."""
        return not self._thread.is_alive()

    def count(self, size_bytes: int) -> None:
        """Note that so many more bytes are written."""
        self.written_bytes += size_bytes

    def wait(self, say: Say | None = None) -> None:
        """Wait for the end, which may be interrupted; tell `say` how far it is."""
        while self._thread.is_alive():
            self._thread.join(_PATIENCE_S)
            if say is not None and self._thread.is_alive():
                done = _gigabytes(self.written_bytes)
                say(f"Writing {self.path}: {done} of {_gigabytes(self.size_bytes)}.")

    def _run(self) -> None:
        try:
            self._work(self)
        except BaseException as error:
            self.error = error


class BackgroundSaves:
    """The saves of one run in one process.

    Args:
        say: Tells the user something; from any thread.

    Attributes:
        waited_s: Seconds for which training waited for the save before.
    """

    def __init__(self, say: Say) -> None:
        self._say = say
        self._staging = Staging()
        self._newest: Save | None = None
        self._told = False
        self._hurry_from: float | None = None
        self._in_vain = 0
        self.waited_s = 0.0

    @property
    def hurries(self) -> bool:
        """Whether the run has failed a while ago, so that what other ranks have not written does not come."""
        return self._hurry_from is not None and time.monotonic() > self._hurry_from

    def hurry(self) -> None:
        """Note that the run has failed."""
        self._hurry_from = time.monotonic() + _GRACE_S

    def begin(
        self, content: dict[str, Any], path: str, write: Write | None, then: Callable[[], None]
    ) -> Save:
        """Copy `content` and write the copy in a thread; wait for the save before first. Where there is no
        memory for a copy, `content` itself is written before this returns.

        Args:
            content: What to save.
            path: What to call it.
            write: Writes the content; None on a rank that writes nothing.
            then: What belongs behind it, in the same thread.
        """
        self.settle()
        self._mention_waiting()
        if write is None:
            return Save(path, 0, lambda save: None, behind=False)
        copied = self._staging.copy(content)
        source = content if copied is None else copied

        def work(save: Save) -> None:
            try:
                write(source, save.count)
                then()
            except CheckpointWriteError as error:
                if error.is_full:
                    self._mention_full(error)
                raise
            self._mention_room(path)

        self._newest = Save(path, size_of(source), work, behind=copied is not None)
        return self._newest

    def settle(self) -> None:
        """Wait for the save that is on its way, if there is one."""
        save, self._newest = self._newest, None
        if save is None:
            return
        began = time.monotonic()
        try:
            save.wait(self._say)
        finally:
            if not save.has_ended:  # an interrupt: there is still something to wait for
                self._newest = save
        self.waited_s += time.monotonic() - began

    def end(self) -> None:
        """Wait for the last save, and give the memory back."""
        self.settle()
        self._staging.release()

    def _mention_full(self, error: CheckpointWriteError) -> None:
        """Say that the disk is full, unless that was said and there was no room since."""
        self._in_vain += 1
        if self._in_vain == 1:
            self._say(
                f"{error} Training goes on, complete checkpoints stay, and the next saves are tried as "
                "usual. Make room on the disk."
            )

    def _mention_room(self, path: str) -> None:
        """Say, where the disk was full, that it is not any longer."""
        missed, self._in_vain = self._in_vain, 0
        if missed:
            self._say(f"The checkpoint {path} is written: there is room again, after {missed} failed saves.")

    def _mention_waiting(self) -> None:
        if self.waited_s >= _TELLS_S and not self._told:
            self._told = True
            self._say(
                f"Training has waited {self.waited_s:.1f} s for checkpoints to be written: saves come faster "
                "than the disk takes them. Save less often, or to a faster disk."
            )


def _gigabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.2f} GB"
