"""Bars drawn by ``tqdm``, for those who know them, and for subclasses that make their own.

The driver draws them, on a terminal, at most a few times a second; anywhere else there are plain lines.
``tqdm`` comes with the extra of that name. Without it the Trainer's own bars are drawn instead, and the log
says so once: a display is no reason not to train.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

from orchestrator.callbacks.progress_bar import ProgressBar, check_refresh_rate
from orchestrator.errors import MisconfigurationError

if TYPE_CHECKING:
    from orchestrator.progress import Display

_log = logging.getLogger("orchestrator")


class TQDMProgressBar(ProgressBar):
    """A bar for the epoch, and one below it for the evaluation that runs within.

    A subclass may override an ``init_*_tqdm`` method and change the bar that it returns.

    Args:
        refresh_rate: Batches between two drawings, at least; 0 draws nothing.
        process_position: Lines to leave free above, for bars of other programs on the same terminal.
        leave: Keep the last state of each epoch on the screen; False keeps that of the last one only.

    Attributes:
        within_fit: Whether the validation for which a bar is made runs below training's bar.

    Raises:
        MisconfigurationError: An argument cannot work.
    """

    within_fit: bool = False

    def __init__(self, refresh_rate: int = 1, process_position: int = 0, leave: bool = True) -> None:
        self.refresh_rate = check_refresh_rate(self, refresh_rate)
        if (
            isinstance(process_position, bool)
            or not isinstance(process_position, int)
            or process_position < 0
        ):
            raise MisconfigurationError(
                f"{type(self).__name__}(process_position={process_position!r}). "
                "Use a number of lines, from 0."
            )
        self.process_position = process_position
        self.leave = leave

    def display(self, stream: TextIO, now_s: Callable[[], float]) -> Display | None:
        """Return the tqdm bars, or the Trainer's own where tqdm is missing."""
        if importlib.util.find_spec("tqdm") is None:
            from orchestrator.progress_bars import LiveBars

            _log.info(
                "TQDMProgressBar: tqdm is not installed, so the bars are drawn by rich. "
                "pip install 'ray-training-orchestrator[tqdm]' brings it."
            )
            return LiveBars(stream, now_s, leave=self.leave, titles=self.descriptions)
        from orchestrator.tqdm_bars import TqdmBars

        return TqdmBars(stream, self)

    def print(self, *args: Any, sep: str = " ", end: str = "\n", file: Any = None, **kwargs: Any) -> None:
        """Print above the bars."""
        if "tqdm" in sys.modules:
            from tqdm import tqdm

            tqdm.write(sep.join(map(str, args)), end=end, file=file)
        else:
            print(*args, sep=sep, end=end, file=file, **kwargs)

    # ---------------------------------------------------------------- the bars

    def init_sanity_tqdm(self) -> Any:
        """Return the bar of the sanity check."""
        return self._bar(self.sanity_check_description, leave=False)

    def init_train_tqdm(self) -> Any:
        """Return the bar of training."""
        return self._bar(self.train_description, leave=True)

    def init_validation_tqdm(self) -> Any:
        """Return the bar of validation; within fit it stands below that of training."""
        return self._bar(self.validation_description, below=int(self.within_fit), leave=not self.within_fit)

    def init_test_tqdm(self) -> Any:
        """Return the bar of testing."""
        return self._bar(self.test_description, leave=True)

    def init_predict_tqdm(self) -> Any:
        """Return the bar of prediction."""
        return self._bar(self.predict_description, leave=True)

    def _bar(self, description: str, *, leave: bool, below: int = 0) -> Any:
        from orchestrator.tqdm_bars import Bar

        return Bar(
            desc=description,
            position=self.process_position + below,
            disable=self.is_disabled,
            leave=leave,
            dynamic_ncols=True,
            file=sys.stderr,
            smoothing=0,
        )
