"""Progress on a terminal: a bar for the epoch, and one below it for the evaluation that runs within.

What a program prints meanwhile appears above the bars, undamaged. It redraws when a record comes, at most
ten times a second, and starts no thread. The last state of each epoch stays on the screen. Fails as the
stream does.
"""

from __future__ import annotations

import atexit
import sys
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.callbacks.rich_progress_bar import RichProgressBarTheme
from orchestrator.progress import (
    Pace,
    Paces,
    ProgressRecord,
    count,
    duration,
    flow,
    numbers,
    speed,
    title,
    troubles,
)

_BAR_WIDTH = 24
_TROUBLE = "yellow"
_ROOM_FOR_BAR = 60  # columns; on a narrower terminal the numbers are worth more


class LiveBars:
    """Draws the running stages at the bottom of the terminal `stream`.

    Args:
        stream: A terminal.
        now_s: Reads the time, in seconds.
        leave: Keep the last state of each epoch on the screen; False keeps that of the last one.
        theme: Colours and forms; the terminal's own when None.
        titles: Words for the stages; ours when None.
        console_kwargs: Further arguments of `rich.console.Console`.
    """

    REDRAW_S = 0.1

    def __init__(
        self,
        stream: TextIO,
        now_s: Callable[[], float],
        *,
        leave: bool = True,
        theme: RichProgressBarTheme | None = None,
        titles: Mapping[str, str] | None = None,
        console_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        options = {"force_terminal": True, "highlight": False, "emoji": False, "markup": False}
        self._console = Console(file=stream, **{**options, **(console_kwargs or {})})
        self._leave = leave
        self._theme = RichProgressBarTheme() if theme is None else theme
        self._titles = titles
        self._now_s = now_s
        self._paces = Paces()
        self._rows: dict[str, tuple[ProgressRecord, Pace]] = {}
        self._live: Live | None = None
        self._drawn_at = -float("inf")

    def update(self, record: ProgressRecord) -> None:
        """Draw `record`, or keep it for the next time if the last one was drawn just now."""
        now = self._now_s()
        self._rows[record.stage] = (record, self._paces.observe(record, now))
        live = self._open()
        if record.done and (self._leave or record.stage != "train"):
            row = self._rows.pop(record.stage)
            if record.stage != "sanity" and "train" not in self._rows:
                self._console.print(self._table([row], now))
        elif not record.done and now - self._drawn_at < self.REDRAW_S:
            return
        self._drawn_at = now
        live.update(self._table(self._ordered(), now), refresh=True)

    def message(self, text: str) -> None:
        """Show a line of text above the bars."""
        self._console.print(Text(text))

    def close(self) -> None:
        """Leave what is drawn on the screen, and the cursor visible below it."""
        if self._live is None:
            return
        live, self._live = self._live, None
        atexit.unregister(self.close)
        live.update(self._table(self._ordered(), self._now_s()))
        live.stop()

    def _open(self) -> Live:
        if self._live is None:
            # What goes to a file stays with the file; what this terminal shows is drawn above the bars.
            self._live = Live(
                Group(),
                console=self._console,
                auto_refresh=False,
                redirect_stdout=sys.stdout.isatty(),
                redirect_stderr=sys.stderr.isatty(),
                vertical_overflow="visible",
            )
            self._live.start()
            atexit.register(self.close)
        return self._live

    def _ordered(self) -> list[tuple[ProgressRecord, Pace]]:
        return sorted(self._rows.values(), key=lambda row: row[0].stage != "train")

    def _table(self, rows: list[tuple[ProgressRecord, Pace]], now: float) -> Table | Group:
        if not rows:
            return Group()
        theme = self._theme
        wide = self._console.width >= _ROOM_FOR_BAR
        table = Table.grid(padding=(0, 2, 0, 0), expand=True)
        table.add_column(no_wrap=True)
        if wide:
            table.add_column(width=_BAR_WIDTH)
        table.add_column(no_wrap=True, justify="right")
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        for record, pace in rows:
            inner = record.stage != "train" and len(rows) > 1
            bar = ProgressBar(
                total=record.total_batches,
                completed=record.batch,
                width=_BAR_WIDTH,
                complete_style=theme.progress_bar,
                finished_style=theme.progress_bar_finished,
                pulse_style=theme.progress_bar_pulse,
                pulse=record.total_batches is None and not record.done,
                animation_time=now,
            )
            words = title(record, self._titles)
            shown = numbers(record.metrics, theme.metrics_format, theme.metrics_text_delimiter)
            pieces = [
                (speed(pace.rate), theme.processing_speed),
                (troubles(record), _TROUBLE),
                (shown, theme.metrics),
                (flow(record, pace.rate), theme.processing_speed),
            ]
            cells: list[RenderableType] = [
                Text(f"  {words}" if inner else words, theme.description),
                *([bar] if wide else []),
                Text(count(record), theme.batch_progress),
                Text(_times(record, pace, now), theme.time),
                Text(", ").join(Text(text, style) for text, style in pieces if text),
            ]
            table.add_row(*cells)
        return table


def _times(record: ProgressRecord, pace: Pace, now: float) -> str:
    """Return how long it has run and, if that can be told, how long it will."""
    left = None if record.done else pace.remaining_s(record)
    run = duration(now - pace.start_s)
    return run if left is None else f"{run} < {duration(left)}"
