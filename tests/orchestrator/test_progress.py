"""What progress looks like, on a terminal and elsewhere."""

from __future__ import annotations

import io
import os
import pickle
import pty
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.progress import Pace, Paces, PlainLines, Progress, ProgressRecord, is_terminal


class FakeTime:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Plain:
    """Plain lines with a clock to move and the text to look at."""

    def __init__(self) -> None:
        self.time = FakeTime()
        self.stream = io.StringIO()
        self.progress = Progress(self.stream, self.time)

    def record(self, stage: str, batch: int, after_s: float = 0.0, **more: Any) -> None:
        """Send a record `after_s` seconds after the last one."""
        self.time.now_s += after_s
        given = {"stage": stage, "epoch": 0, "batch": batch, "max_epochs": 3, "total_batches": 10, **more}
        self.progress.update(ProgressRecord(**given))

    @property
    def lines(self) -> list[str]:
        """The lines so far."""
        return self.stream.getvalue().splitlines()


def test_an_epoch_gets_one_line() -> None:
    """A short epoch with its validation is one line: title, batches, time, rate and metrics."""
    plain = Plain()
    for batch in range(1, 11):
        plain.record("train", batch, 0.5)
    plain.record("validate", 5, 0.2)
    plain.record("validate", 5, 0.1, done=True)
    plain.record("train", 10, 0.1, done=True, metrics={"loss": 0.123456, "n": 3.0})
    assert plain.lines == ["Epoch 0/2: 10/10 batches in 0:04, 2.0 it/s, loss 0.1235, n 3"]


def test_a_long_epoch_gets_a_line_every_ten_seconds() -> None:
    """Within an epoch lines are at least ten seconds apart, and tell how long it will take."""
    plain = Plain()
    for batch in range(1, 10):
        plain.record("train", batch, 4.0)
    assert plain.lines == [
        "Epoch 0/2: 4/10 batches, 4.0 s/it, 0:24 left",
        "Epoch 0/2: 7/10 batches, 4.0 s/it, 0:12 left",
    ]


def test_a_long_validation_is_told_of() -> None:
    """Validation inside an epoch has no line at its end, but one every ten seconds while it runs."""
    plain = Plain()
    plain.record("train", 1)
    for batch in range(1, 5):
        plain.record("validate", batch, 6.0)
    plain.record("validate", 5, 1.0, done=True)
    assert plain.lines == [
        "Validating: 2/10 batches, 6.0 s/it, 0:48 left",
        "Validating: 4/10 batches, 6.0 s/it, 0:36 left",
    ]


@pytest.mark.parametrize(
    ("stage", "title"), [("validate", "Validating"), ("test", "Testing"), ("predict", "Predicting")]
)
def test_a_stage_of_its_own_gets_a_line(stage: str, title: str) -> None:
    """Outside of training each stage is told of when it ends."""
    plain = Plain()
    plain.record(stage, 1)
    plain.record(stage, 10, 3.0, done=True, metrics={"acc": 0.5})
    assert plain.lines == [f"{title}: 10/10 batches in 0:03, 3.0 it/s, acc 0.5"]


def test_a_sanity_check_is_silent() -> None:
    """The validation batches before training are not worth a line."""
    plain = Plain()
    plain.record("sanity", 2, done=True)
    assert plain.lines == []


def test_unknown_totals_and_endless_epochs() -> None:
    """Where a total is not known only the count is shown, and nothing is foretold."""
    plain = Plain()
    plain.record("train", 1, total_batches=None, max_epochs=-1, epoch=4)
    plain.record("train", 21, 10.0, total_batches=None, max_epochs=-1, epoch=4)
    assert plain.lines == ["Epoch 4: 21 batches, 2.0 it/s"]


def test_messages_are_lines() -> None:
    """A message stands as it is."""
    plain = Plain()
    plain.progress.message("two\nlines [bold]")
    assert plain.lines == ["two", "lines [bold]"]


@given(st.text(), st.dictionaries(st.text(), st.floats(), max_size=3))
def test_plain_lines_hold_no_control_characters(text: str, metrics: dict[str, float]) -> None:
    """Whatever metrics are called and messages hold, all that is written is printable, line by line."""
    plain = Plain()
    plain.progress.message(text)
    plain.record("train", 10, done=True, metrics=metrics)
    assert all(character.isprintable() for line in plain.stream.getvalue().split("\n") for character in line)


@given(st.lists(st.tuples(st.sampled_from(["train", "validate", "test"]), st.booleans(), st.floats(0, 30))))
def test_lines_are_rare(records: list[tuple[str, bool, float]]) -> None:
    """Apart from ends, no two lines come within ten seconds."""
    time, stream = FakeTime(), io.StringIO()
    lines = PlainLines(stream, time)
    written_at: float | None = None
    for batch, (stage, done, after_s) in enumerate(records):
        time.now_s += after_s
        size = len(stream.getvalue())
        lines.update(ProgressRecord(stage=stage, epoch=0, batch=batch, done=done))
        if len(stream.getvalue()) > size:
            assert done or written_at is None or time.now_s - written_at >= PlainLines.EVERY_S
            written_at = time.now_s


@pytest.mark.parametrize("error", [BrokenPipeError(), ValueError("I/O operation on closed file")])
def test_a_stream_that_is_gone_does_not_end_training(error: Exception) -> None:
    """After the first failed write nothing more is written, and nobody is bothered."""

    class Gone(io.StringIO):
        calls = 0

        def write(self, text: str) -> int:
            self.calls += 1
            raise error

    stream = Gone()
    progress = Progress(stream)
    for _ in range(3):
        progress.message("hello")
    progress.close()
    assert stream.calls == 1


def test_nothing_is_drawn_after_close() -> None:
    """Closing twice is fine, and later records are ignored."""
    plain = Plain()
    plain.progress.close()
    plain.progress.close()
    plain.record("train", 10, done=True)
    assert plain.lines == []


def test_records_travel() -> None:
    """A record pickles, and is small: workers send them."""
    record = ProgressRecord(stage="train", epoch=1, batch=2, metrics={"loss": 0.5})
    data = pickle.dumps(record)
    assert pickle.loads(data) == record
    assert len(data) < 400


# ---------------------------------------------------------------- pace


@given(st.floats(0.06, 100), st.integers(2, 60))
def test_a_steady_pace_is_found(seconds: float, batches: int) -> None:
    """With equal times between batches the rate is their inverse."""
    pace = Pace(0.0)
    for batch in range(batches):
        pace.observe(batch * seconds, batch)
    assert pace.rate == pytest.approx(1 / seconds, rel=1e-6)


def test_the_pace_follows_the_last_seconds() -> None:
    """After the window has passed at a new pace the old one is forgotten."""
    pace = Pace(0.0)
    for batch in range(100):
        pace.observe(batch * 0.1, batch)
    for batch in range(1, 20):
        pace.observe(9.9 + batch, 99 + batch)
    assert pace.rate == pytest.approx(1.0, rel=0.05)


def test_two_batches_within_a_moment_are_no_pace() -> None:
    """A stage of a few quick batches is not said to run at thousands a second."""
    pace = Pace(0.0)
    pace.observe(0.0, 1)
    pace.observe(0.00003, 2)
    assert pace.rate == 0.0


def test_batches_that_are_taken_back_start_the_count_anew() -> None:
    """When steps are repeated after a loss the rate stays positive."""
    pace = Pace(0.0)
    for now_s, batch in ((0.0, 10), (1.0, 20), (2.0, 5), (3.0, 15)):
        pace.observe(now_s, batch)
        assert pace.rate >= 0
    assert pace.rate == pytest.approx(10.0)


def test_validation_does_not_slow_training_down() -> None:
    """The time of a validation in the middle is not part of the training's pace."""
    paces = Paces()

    def see(stage: str, batch: int, now_s: float, done: bool = False) -> Pace:
        return paces.observe(ProgressRecord(stage=stage, epoch=0, batch=batch, done=done), now_s)

    see("train", 1, 0.0)
    see("train", 11, 1.0)
    see("validate", 1, 2.0)
    see("validate", 5, 50.0, done=True)
    see("train", 12, 50.1)
    assert see("train", 22, 51.1).rate == pytest.approx(10.0)
    see("validate", 5, 99.0, done=True)
    assert see("train", 22, 99.1, done=True).rate == pytest.approx(10.0)


def test_only_a_real_terminal_loads_rich() -> None:
    """Plain lines need no rich, and a dumb terminal gets plain lines."""
    program = (
        "import io, sys\nfrom orchestrator.progress import Progress\nProgress(io.StringIO()).message('x')\n"
    )
    check = "assert 'rich' not in sys.modules and 'torch' not in sys.modules\n"
    subprocess.run([sys.executable, "-c", program + check], check=True)


def test_a_dumb_terminal_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot redraw, or is closed, is not taken for a terminal."""
    near, far = pty.openpty()
    with open(far, "w") as stream:
        monkeypatch.setenv("TERM", "xterm")
        assert is_terminal(stream)
        monkeypatch.setenv("TERM", "dumb")
        assert not is_terminal(stream)
        monkeypatch.setenv("TERM", "xterm")
    assert not is_terminal(stream)
    os.close(near)
