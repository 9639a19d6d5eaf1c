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
