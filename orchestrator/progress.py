"""How far a run has come, drawn by the driver: live bars on a terminal, plain lines anywhere else.

Whoever trains sends `ProgressRecord`s, at most about ten a second; `Progress` draws what it gets and starts
no thread. Plain lines hold no control characters: one for each epoch, and within a long one another every
ten seconds at most. Both go to standard error. Display never ends training: a stream that is gone is not
written to again.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, TextIO

Stage = Literal["train", "validate", "test", "predict", "sanity"]

_TITLES = {
    "train": "Epoch",
    "validate": "Validating",
    "test": "Testing",
    "predict": "Predicting",
    "sanity": "Sanity check",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressRecord:
    """Where a run is.

    Attributes:
        stage: What is running.
        epoch: The training epoch, from 0.
        max_epochs: How many there will be; None or -1 for no limit.
        batch: Batches of this stage that are done.
        total_batches: How many there are, or None where nobody knows.
        metrics: What to show beside it: numbers, or words.
        step: Optimizer steps so far.
        done: Whether the stage has ended; for training, the epoch with its validation.
        samples: Samples in these batches, over all ranks; None where nobody knows.
        waits: The share of training time in which rank 0 waits for data; None where it is not known.
        mfu_a_sample: Of what all devices can do in a second, the share that one sample takes; None where it
            is not known.
        slow: The slowest rank, and how many times longer its own part of a step takes than the others'; None
            where there is none that stands out.
        recovered: Lost workers without which, or with whose replacements, the run has gone on.
    """

    stage: str
    epoch: int
    max_epochs: int | None = None
    batch: int
    total_batches: int | None = None
    metrics: dict[str, float | str] = field(default_factory=dict)
    step: int = 0
    done: bool = False
    samples: int | None = None
    waits: float | None = None
    mfu_a_sample: float | None = None
    slow: tuple[int, float] | None = None
    recovered: int = 0


class Display(Protocol):
    """One way to show progress."""

    def update(self, record: ProgressRecord) -> None:
        """Show `record`."""
        ...

    def message(self, text: str) -> None:
        """Show a line of text that stays."""
        ...

    def close(self) -> None:
        """Leave the last state on the screen and the screen in order."""
        ...


class Chooses(Protocol):
    """What decides how a terminal is drawn on: a progress bar of the user's choice."""

    refresh_rate: int

    @property
    def descriptions(self) -> dict[str, str]:
        """The titles by stage."""
        ...

    def display(self, stream: TextIO, now_s: Callable[[], float]) -> Display | None:
        """Return what draws on the terminal `stream`; None to draw nothing."""
        ...


class Progress:
    """Shows progress records on `stream`, by default standard error, in the way that suits it.

    Args:
        stream: Where to draw.
        now_s: Reads the time, in seconds.
        bar: What to draw on a terminal, and how often; live bars when None.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        now_s: Callable[[], float] = time.monotonic,
        bar: Chooses | None = None,
    ) -> None:
        stream = sys.stderr if stream is None else stream
        self._display: Display | None
        self._every = 1 if bar is None else bar.refresh_rate
        self._shown: dict[str, int] = {}
        if not is_terminal(stream):
            self._display = PlainLines(stream, now_s, None if bar is None else bar.descriptions)
        elif bar is not None:
            self._display = bar.display(stream, now_s)
        else:
            from orchestrator.progress_bars import LiveBars

            self._display = LiveBars(stream, now_s)

    def update(self, record: ProgressRecord) -> None:
        """Show `record`, unless fewer batches than the bar asks for have run since the last one."""
        shown = self._shown.get(record.stage, -self._every)
        if not record.done and 0 <= record.batch - shown < self._every:
            return
        if record.done:
            self._shown.pop(record.stage, None)
        else:
            self._shown[record.stage] = record.batch
        self._draw(lambda display: display.update(record))

    def message(self, text: str) -> None:
        """Show a line of text that stays."""
        self._draw(lambda display: display.message(text))

    def close(self) -> None:
        """Stop drawing, leaving the last state on the screen. May be called again."""
        self._draw(lambda display: display.close())
        self._display = None

    def _draw(self, action: Callable[[Display], None]) -> None:
        if self._display is None:
            return
        try:
            action(self._display)
        except (OSError, ValueError):  # the stream is closed, or nobody reads the pipe any more
            self._display = None


def is_terminal(stream: TextIO) -> bool:
    """Whether `stream` is a terminal that can redraw lines."""
    try:
        return stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown", "")
    except ValueError:  # closed
        return False


# ---------------------------------------------------------------- numbers and words


class Pace:
    """Batches per second of one stage, from its records of the last ten seconds; a moment tells nothing."""

    WINDOW_S = 10.0
    LEAST_S = 0.05

    def __init__(self, start_s: float) -> None:
        self.start_s = start_s
        self.rate = 0.0
        """Batches per second; 0.0 while it is not known."""
        self._seen: deque[tuple[float, int]] = deque()

    def observe(self, now_s: float, batch: int) -> None:
        """Take note that `batch` batches are done."""
        if self._seen and batch < self._seen[-1][1]:  # steps were taken back
            self._seen.clear()
        self._seen.append((now_s, batch))
        while len(self._seen) > 2 and now_s - self._seen[1][0] > self.WINDOW_S:
            self._seen.popleft()
        (first_s, first), (last_s, last) = self._seen[0], self._seen[-1]
        if last > first and last_s - first_s >= self.LEAST_S:
            self.rate = (last - first) / (last_s - first_s)

    def interrupt(self) -> None:
        """Leave out the time from the last record to the next one."""
        self._seen.clear()

    def remaining_s(self, record: ProgressRecord) -> float | None:
        """Seconds until the stage ends at this rate, or None where that cannot be told."""
        if record.total_batches is None or self.rate <= 0:
            return None
        return max(0, record.total_batches - record.batch) / self.rate


class Paces:
    """The pace of each stage that is running. Validation within an epoch does not count against training."""

    def __init__(self) -> None:
        self._paces: dict[str, Pace] = {}
        self._interrupted = False

    def observe(self, record: ProgressRecord, now_s: float) -> Pace:
        """Take note of `record`, and return its stage's pace. After the last record of a stage it begins
        anew."""
        pace = self._paces.setdefault(record.stage, Pace(now_s))
        if record.stage != "train":
            self._interrupted = True
            pace.observe(now_s, record.batch)
        elif not self._interrupted:
            pace.observe(now_s, record.batch)
        elif not (record.done and pace.rate):
            pace.interrupt()
            pace.observe(now_s, record.batch)
        if record.stage == "train":
            self._interrupted = False
        if record.done:
            del self._paces[record.stage]
        return pace


def title(record: ProgressRecord, titles: Mapping[str, str] | None = None) -> str:
    """Return what is running, in a few words.

    Args:
        record: Where the run is.
        titles: Words for the stages; ours when None.

    >>> title(ProgressRecord(stage="train", epoch=2, max_epochs=10, batch=0))
    'Epoch 2/9'
    """
    word = (_TITLES if titles is None else titles).get(record.stage, record.stage)
    if record.stage != "train":
        return word
    last = "" if record.max_epochs is None or record.max_epochs < 1 else f"/{record.max_epochs - 1}"
    return f"{word} {record.epoch}{last}"


def count(record: ProgressRecord) -> str:
    """Return how many batches are done, of how many.

    >>> count(ProgressRecord(stage="train", epoch=0, batch=3, total_batches=8))
    '3/8'
    """
    return f"{record.batch}" if record.total_batches is None else f"{record.batch}/{record.total_batches}"


def duration(seconds: float) -> str:
    """Return a length of time.

    >>> duration(75.4), duration(3725)
    ('1:15', '1:02:05')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def speed(rate: float) -> str:
    """Return batches per second, or seconds per batch when that reads better; "" for an unknown rate.

    >>> speed(35.21), speed(0.25), speed(0.0)
    ('35.2 it/s', '4.0 s/it', '')
    """
    if rate <= 0:
        return ""
    return f"{rate:.1f} it/s" if rate >= 1 else f"{1 / rate:.1f} s/it"


def samples_a_second(record: ProgressRecord, rate: float) -> float | None:
    """Return the samples of all ranks in a second at `rate` batches a second, or None where nobody knows.

    >>> samples_a_second(ProgressRecord(stage="train", epoch=0, batch=4, samples=256), 2.5)
    160.0
    """
    if not (record.samples and record.batch and rate > 0):
        return None
    return rate * record.samples / record.batch


def flow(record: ProgressRecord, rate: float) -> str:
    """Return samples a second, and of what the devices can do the share that is used, where known.

    >>> flow(ProgressRecord(stage="train", epoch=0, batch=4, samples=256, mfu_a_sample=0.0025), 2.5)
    '160 samples/s, MFU 40%'
    """
    samples = samples_a_second(record, rate)
    if samples is None:
        return ""
    told = f"{samples:,.0f} samples/s" if samples >= 10 else f"{samples:.2g} samples/s"
    return told if record.mfu_a_sample is None else f"{told}, MFU {samples * record.mfu_a_sample:.0%}"


def troubles(record: ProgressRecord) -> str:
    """Return what keeps the run from being quicker, and what has befallen it; "" where nothing has.

    >>> troubles(ProgressRecord(stage="train", epoch=0, batch=4, waits=0.31, slow=(1, 1.84), recovered=1))
    'waits for data 31%, rank 1 takes 1.8 x as long, 1 worker lost and made good'
    """
    parts = []
    if record.waits is not None and record.waits >= 0.05:
        parts.append(f"waits for data {record.waits:.0%}")
    if record.slow is not None:
        parts.append(f"rank {record.slow[0]} takes {record.slow[1]:.1f} x as long")
    if record.recovered:
        parts.append(f"{record.recovered} worker{'s' if record.recovered > 1 else ''} lost and made good")
    return ", ".join(parts)


def as_shown(value: object) -> float | str:
    """Return a metric as a plain value: a number stays one, of a tensor its number is taken, else its text.

    >>> as_shown(3), as_shown("warm"), as_shown(None)
    (3, 'warm', 'None')
    """
    if isinstance(value, (int, float, str)):
        return value
    value = value.detach() if hasattr(value, "detach") else value
    return float(value) if hasattr(value, "__float__") else str(value)


def numbers(metrics: Mapping[str, float | str], form: str = ".4g", between: str = ", ") -> str:
    """Return metrics, numbers with four digits and whole ones with all.

    Args:
        metrics: Numbers or words by name.
        form: How numbers are written.
        between: What stands between two metrics.

    >>> numbers({"loss": 0.123456, "correct": 1203.0, "v_num": 12345, "phase": "warm"})
    'loss 0.1235, correct 1203, v_num 12345, phase warm'
    """
    return between.join(
        f"{name} {value if isinstance(value, (int, str)) else format(value, form)}"
        for name, value in metrics.items()
    )


# ---------------------------------------------------------------- plain lines


class PlainLines:
    """Writes a line when an epoch, or a stage outside of training, ends, and every ten seconds in between."""

    EVERY_S = 10.0

    def __init__(
        self, stream: TextIO, now_s: Callable[[], float], titles: Mapping[str, str] | None = None
    ) -> None:
        self._stream = stream
        self._now_s = now_s
        self._titles = titles
        self._paces = Paces()
        self._trains = False
        self._written_at: float | None = None

    def update(self, record: ProgressRecord) -> None:
        """Write a line if it is time for one."""
        now = self._now_s()
        pace = self._paces.observe(record, now)
        if record.stage == "train":
            self._trains = not record.done
        if self._written_at is None:
            self._written_at = now
        if record.done:
            due = record.stage == "train" or not (self._trains or record.stage == "sanity")
        else:
            due = now - self._written_at >= self.EVERY_S
        if due:
            self._written_at = now
            self._write(_line(record, pace, now, self._titles))

    def message(self, text: str) -> None:
        """Write the text."""
        self._write(text)

    def close(self) -> None:
        """Nothing is left to do."""

    def _write(self, text: str) -> None:
        lines = ("".join(c if c.isprintable() else "?" for c in line) for line in text.splitlines() or [""])
        self._stream.write("".join(f"{line}\n" for line in lines))
        self._stream.flush()


def _line(record: ProgressRecord, pace: Pace, now_s: float, titles: Mapping[str, str] | None) -> str:
    left = None if record.done else pace.remaining_s(record)
    taken = f" in {duration(now_s - pace.start_s)}" if record.done else ""
    parts = [
        f"{count(record)} batches{taken}",
        speed(pace.rate),
        flow(record, pace.rate),
        f"{duration(left)} left" if left is not None else "",
        numbers(record.metrics),
        troubles(record),
    ]
    return f"{title(record, titles)}: {', '.join(part for part in parts if part)}"
