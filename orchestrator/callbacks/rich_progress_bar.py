"""Bars drawn by ``rich``: the Trainer's own, with a choice of colours.

`orchestrator.progress_bars` draws them, in the driver, on a terminal; anywhere else there are plain lines.
Styles are rich's; a word that is none is refused when the bar is made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TextIO

from orchestrator.callbacks.progress_bar import ProgressBar, check_refresh_rate
from orchestrator.errors import MisconfigurationError

if TYPE_CHECKING:
    from rich.style import Style

    from orchestrator.progress import Display

_WORDS = ("metrics_text_delimiter", "metrics_format")


@dataclass(frozen=True, kw_only=True)
class RichProgressBarTheme:
    """Colours and forms; each style is a name such as ``"green1"``, ``"#6206E0"``, ``"bold red"``, or "" for
    the terminal's own.

    Attributes:
        description: The title.
        progress_bar: The part that is done.
        progress_bar_finished: A bar that is full.
        progress_bar_pulse: A bar without a known end.
        batch_progress: The count of batches.
        time: Time taken and left.
        processing_speed: Batches a second.
        metrics: The metrics.
        metrics_text_delimiter: What stands between two metrics.
        metrics_format: How numbers are written: a format specification as of Python's `format`.
    """

    description: str | Style = ""
    progress_bar: str | Style = "bar.complete"
    progress_bar_finished: str | Style = "bar.finished"
    progress_bar_pulse: str | Style = "bar.pulse"
    batch_progress: str | Style = ""
    time: str | Style = ""
    processing_speed: str | Style = ""
    metrics: str | Style = ""
    metrics_text_delimiter: str = ", "
    metrics_format: str = ".4g"


class RichProgressBar(ProgressBar):
    """A bar for the epoch, and one below it for the evaluation that runs within.

    Args:
        refresh_rate: Batches between two drawings, at least; 0 draws nothing. Drawings are never more than a
            few a second, so 1 costs nothing.
        leave: Keep the last state of each epoch on the screen; False keeps that of the last one only.
        theme: Colours and forms.
        console_kwargs: Further arguments of `rich.console.Console`.

    Raises:
        MisconfigurationError: An argument cannot work.
    """

    def __init__(
        self,
        refresh_rate: int = 1,
        leave: bool = True,
        theme: RichProgressBarTheme | None = None,
        console_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.refresh_rate = check_refresh_rate(self, refresh_rate)
        self.leave = leave
        self.theme = RichProgressBarTheme() if theme is None else _checked(theme)
        self.console_kwargs = dict(console_kwargs or {})

    def display(self, stream: TextIO, now_s: Callable[[], float]) -> Display | None:
        """Return the live bars."""
        from orchestrator.progress_bars import LiveBars

        return LiveBars(
            stream,
            now_s,
            leave=self.leave,
            theme=self.theme,
            titles=self.descriptions,
            console_kwargs=self.console_kwargs,
        )


def _checked(theme: object) -> RichProgressBarTheme:
    from rich.errors import StyleSyntaxError
    from rich.style import Style

    if not isinstance(theme, RichProgressBarTheme):
        raise MisconfigurationError(
            f"RichProgressBar(theme={theme!r}) is a {type(theme).__name__}. Use a RichProgressBarTheme."
        )
    for name in [field.name for field in fields(theme)]:
        value = getattr(theme, name)
        try:
            if name == "metrics_format":
                format(0.5, value)
            elif name not in _WORDS and isinstance(value, str) and "." not in value:
                Style.parse(value)
        except (StyleSyntaxError, ValueError) as error:
            raise MisconfigurationError(
                f"RichProgressBarTheme({name}={value!r}) cannot be used: {error}. "
                f"{'Use a format such as .3f.' if name == 'metrics_format' else 'Use a style of rich.'}"
            ) from error
    return theme
