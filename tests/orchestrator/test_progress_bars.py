"""Bars on a terminal, judged by what is on the screen at the end."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """Return both ends of a pseudo-terminal of 100 columns."""
    import fcntl
    import struct
    import termios

    near, far = pty.openpty()
    fcntl.ioctl(far, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    yield near, far
    os.close(near)
    os.close(far)


def run_in_terminal(terminal: tuple[int, int], program: str, **streams: Any) -> list[str]:
    """Run `program` with the terminal as its streams, and return the lines that are on the screen at its
    end."""
    near, far = terminal
    setup = (
        "import sys, time\nfrom orchestrator.progress import Progress, ProgressRecord\n"
        "def at(stage, batch, total, **more):\n"
        "    time.sleep(0.11)\n"
        "    record = ProgressRecord(stage=stage, batch=batch, total_batches=total, max_epochs=2, **more)\n"
        "    progress.update(record)\n"
        "progress = Progress()\n"
    )
    environment = {**os.environ, "TERM": "xterm-256color"}
    for name in ("COLUMNS", "LINES", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        environment.pop(name, None)
    process = subprocess.Popen(
        [sys.executable, "-c", setup + program],
        env=environment,
        **{"stdin": far, "stdout": far, "stderr": far, **streams},
    )
    data = b""
    while True:
        ended = process.poll() is not None
        if select.select([near], [], [], 0 if ended else 0.05)[0]:
            data += os.read(near, 65536)
        elif ended:
            break
    assert process.returncode == 0, data.decode()
    return screen(data.decode())


def screen(text: str) -> list[str]:
    """Return the lines that a terminal shows after `text`: it knows new lines, returns, going up, and
    erasing."""
    import re

    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|[^\x1b]", text):
        if part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part == "\r":
            column = 0
        elif re.fullmatch(r"\x1b\[(\d*)A", part):
            row -= int(part[2:-1] or 1)
        elif part == "\x1b[2K":
            lines[row] = ""
        elif len(part) == 1:
            lines[row] = lines[row][:column].ljust(column) + part + lines[row][column + 1 :]
            column += 1
    return [line.rstrip() for line in lines if line.strip()]


def test_bars_show_the_epoch_and_its_validation(terminal: tuple[int, int]) -> None:
    """While validation runs its bar is below that of the epoch; what was printed stands above, undamaged."""
    shown = run_in_terminal(
        terminal,
        """
at("train", 1, 8, epoch=0)
at("train", 4, 8, epoch=0, metrics={"loss": 0.5})
print("from [red]stdout[/red]")
print("from stderr", file=sys.stderr)
at("validate", 2, 4, epoch=0)
progress.close()
""",
    )
    assert shown[:2] == ["from [red]stdout[/red]", "from stderr"]
    assert len(shown) == 4
    assert shown[2].startswith("Epoch 0/1 ")
    assert " 4/8 " in shown[2]
    assert shown[2].endswith("loss 0.5")
    assert shown[3].startswith("  Validating ")
    assert " 2/4 " in shown[3]


def test_the_last_state_of_each_epoch_stays(terminal: tuple[int, int]) -> None:
    """After two epochs there are two lines, with their last metrics, and what was printed in between."""
    shown = run_in_terminal(
        terminal,
        """
for epoch in range(2):
    at("train", 1, 2, epoch=epoch)
    at("validate", 4, 4, epoch=epoch, done=True)
    at("train", 2, 2, epoch=epoch, done=True, metrics={"val": epoch + 0.5})
    print("between")
progress.message("[bold]the end")
progress.close()
print("after")
""",
    )
    assert [line.split()[0] for line in shown] == [
        "Epoch",
        "between",
        "Epoch",
        "between",
        "[bold]the",
        "after",
    ]
    assert shown[0].startswith("Epoch 0/1 ")
    assert shown[0].endswith("val 0.5")
    assert shown[2].endswith("val 1.5")


def test_a_stage_of_its_own_stays_too(terminal: tuple[int, int]) -> None:
    """Testing leaves its line; a sanity check leaves none."""
    shown = run_in_terminal(
        terminal,
        """
at("sanity", 2, 2, epoch=0, done=True)
at("test", 1, 3, epoch=0)
at("test", 3, 3, epoch=0, done=True)
progress.close()
""",
    )
    assert len(shown) == 1
    assert shown[0].startswith("Testing ")


def test_output_to_a_file_stays_with_the_file(terminal: tuple[int, int], tmp_path: Any) -> None:
    """When standard output is not the terminal its lines go where they should, without control characters."""
    with open(tmp_path / "out.txt", "w") as file:
        shown = run_in_terminal(
            terminal,
            """
at("train", 1, 2, epoch=0)
print("to the file")
at("train", 2, 2, epoch=0, done=True)
progress.close()
""",
            stdout=file,
        )
    assert (tmp_path / "out.txt").read_text() == "to the file\n"
    assert len(shown) == 1
    assert shown[0].startswith("Epoch 0/1 ")


def test_only_the_last_epoch_stays_if_that_is_wanted(terminal: tuple[int, int]) -> None:
    """With leave=False an epoch's bar takes the place of the one before."""
    shown = run_in_terminal(
        terminal,
        """
from orchestrator.callbacks import RichProgressBar
progress = Progress(bar=RichProgressBar(leave=False))
for epoch in range(2):
    at("train", 1, 2, epoch=epoch)
    at("validate", 4, 4, epoch=epoch, done=True)
    at("train", 2, 2, epoch=epoch, done=True, metrics={"val": epoch + 0.5})
progress.close()
""",
    )
    assert len(shown) == 1
    assert shown[0].startswith("Epoch 1/1 ")
    assert shown[0].endswith("val 1.5")


def test_a_theme_says_how_metrics_are_written(terminal: tuple[int, int]) -> None:
    """Format and delimiter are the theme's."""
    shown = run_in_terminal(
        terminal,
        """
from orchestrator.callbacks import RichProgressBar, RichProgressBarTheme
theme = RichProgressBarTheme(metrics_format=".1e", metrics_text_delimiter=" | ", metrics="bold red")
progress = Progress(bar=RichProgressBar(theme=theme))
at("train", 2, 2, epoch=0, done=True, metrics={"loss": 0.5, "v_num": 3})
progress.close()
""",
    )
    assert shown[0].endswith("loss 5.0e-01 | v_num 3")


@pytest.mark.extras
@pytest.mark.parametrize("leave", [True, False])
def test_tqdm_draws_the_same_records(terminal: tuple[int, int], leave: bool) -> None:
    """TQDMProgressBar draws tqdm's bars: prints stand above, validation leaves no line, epochs as asked."""
    shown = run_in_terminal(
        terminal,
        f"""
import threading
from orchestrator.callbacks import TQDMProgressBar
progress = Progress(bar=TQDMProgressBar(leave={leave}))
for epoch in range(2):
    at("train", 1, 2, epoch=epoch)
    print("out", epoch)
    print("err", epoch, file=sys.stderr)
    at("validate", 2, 4, epoch=epoch)
    at("validate", 4, 4, epoch=epoch, done=True)
    at("train", 2, 2, epoch=epoch, done=True, metrics={{"val": epoch + 0.5}})
progress.message("the end")
progress.close()
assert threading.active_count() == 1
print("after")
""",
    )
    words = [line.split(":")[0] for line in shown]
    last = ["the end", "Epoch 1/1"]
    if leave:
        last.reverse()
        assert words == ["out 0", "err 0", "Epoch 0/1", "out 1", "err 1", *last, "after"]
    else:
        assert words == ["out 0", "err 0", "out 1", "err 1", *last, "after"]
    assert "100%" in next(line for line in shown if line.startswith("Epoch 1/1"))
    assert any("val 1.5" in line for line in shown)


@pytest.mark.extras
def test_tqdm_bars_can_be_changed_by_a_subclass(terminal: tuple[int, int]) -> None:
    """What an init_*_tqdm method returns is the bar that is drawn."""
    shown = run_in_terminal(
        terminal,
        """
from orchestrator.callbacks import TQDMProgressBar
class Own(TQDMProgressBar):
    def init_test_tqdm(self):
        bar = super().init_test_tqdm()
        bar.bar_format = "my own: {n_fmt}/{total_fmt}"
        return bar
progress = Progress(bar=Own())
at("test", 3, 3, epoch=0, done=True)
progress.close()
""",
    )
    assert shown == ["my own: 3/3"]
