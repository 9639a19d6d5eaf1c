"""How a trial's training thread and the actor that Ray Tune calls take turns.

The training thread says something and waits for the decision; the actor waits for the next thing that is said
and decides when Tune has. Exactly one of them runs at any time, except while the trial trains. A trial that
has ended has said so: nobody waits for it.
"""

from __future__ import annotations

import queue
from dataclasses import dataclass
from typing import Any

GO_ON, STOP, SAVE = "go on", "stop", "save"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a trial tells the sweep.

    Attributes:
        metrics: By name; plain numbers.
        moment: Epoch, steps and batches at which it is made, which tell it from all others of its trial.
    """

    metrics: dict[str, float]
    moment: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """The answer to `SAVE`.

    Attributes:
        content: A whole checkpoint, as `Trainer.dump_checkpoint` returns it.
    """

    content: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The trial's thread has come to its end.

    Attributes:
        error: Why, when the user's code failed; None after a return and after a stop.
    """

    error: BaseException | None = None


Message = Report | Saved | Ended


class Dialogue:
    """One trial's two queues."""

    def __init__(self) -> None:
        self._said: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._decided: queue.SimpleQueue[str] = queue.SimpleQueue()

    def ask(self, message: Report | Saved) -> str:
        """Say something and wait for the decision: `GO_ON`, `STOP` or `SAVE`. For the trial's thread."""
        self._said.put(message)
        return self._decided.get()

    def end(self, error: BaseException | None = None) -> None:
        """Say that the trial is over. For the trial's thread, as the last thing."""
        self._said.put(Ended(error=error))

    def decide(self, decision: str) -> None:
        """Answer what was said last. For the actor."""
        self._decided.put(decision)

    def hear(self, timeout_s: float | None = None) -> Message:
        """Wait for what the trial says next. For the actor.

        Raises:
            TimeoutError: Nothing was said for `timeout_s` seconds.
        """
        try:
            return self._said.get(timeout=timeout_s)
        except queue.Empty:
            raise TimeoutError(f"The trial said nothing for {timeout_s:g} s.") from None
