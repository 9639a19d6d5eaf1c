"""Progress on a terminal as ``tqdm`` draws it, from the driver's progress records.

The callback makes the bars, so that its subclasses can change them; here they are moved. What a program
prints meanwhile appears above the bars. No thread is started. Fails as the stream does.
"""

from __future__ import annotations

import atexit
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

from tqdm import tqdm
from tqdm.contrib import DummyTqdmFile

from orchestrator.progress import ProgressRecord, numbers, title

if TYPE_CHECKING:
    from orchestrator.callbacks.tqdm_progress_bar import TQDMProgressBar


class Bar(tqdm):  # type: ignore[misc]
    """A tqdm bar without the thread that watches over slow ones: records come often enough."""

    monitor_interval = 0


class TqdmBars:
    """Moves the bars that `owner` makes.

    Args:
        stream: A terminal.
        owner: The callback.
    """

    def __init__(self, stream: TextIO, owner: TQDMProgressBar) -> None:
        self._stream = stream
        self._owner = owner
        self._bars: dict[str, Any] = {}
        self._streams: tuple[Any, Any] | None = None

    def update(self, record: ProgressRecord) -> None:
        """Move the stage's bar to where `record` says."""
        self._redirect()
        bar = self._bars.get(record.stage)
        if bar is None:
            bar = self._bars[record.stage] = self._make(record.stage)
        if record.batch < bar.n:
            bar.reset(total=record.total_batches)
        if record.stage == "train":
            bar.set_description_str(title(record, self._owner.descriptions), refresh=False)
        bar.total = record.total_batches
        bar.n = record.batch
        bar.set_postfix_str(numbers(record.metrics), refresh=False)
        bar.refresh()
        if record.done and (record.stage != "train" or self._owner.leave):
            self._bars.pop(record.stage).close()

    def message(self, text: str) -> None:
        """Show a line of text above the bars."""
        tqdm.write(text, file=self._stream)

    def close(self) -> None:
        """Leave what is drawn on the screen, and the streams as they were."""
        for stage in sorted(self._bars, key=lambda stage: stage == "train"):
            self._bars[stage].close()
        self._bars.clear()
        if self._streams is not None:
            sys.stdout, sys.stderr = self._streams
            self._streams = None
            atexit.unregister(self.close)

    def _make(self, stage: str) -> Any:
        owner = self._owner
        owner.within_fit = "train" in self._bars
        makers: dict[str, Callable[[], Any]] = {
            "train": owner.init_train_tqdm,
            "validate": owner.init_validation_tqdm,
            "sanity": owner.init_sanity_tqdm,
            "test": owner.init_test_tqdm,
            "predict": owner.init_predict_tqdm,
        }
        guarded, sys.stderr = sys.stderr, self._stream  # a bar writes to the terminal itself
        try:
            return makers[stage]()
        finally:
            sys.stderr = guarded

    def _redirect(self) -> None:
        """Have what is printed to this terminal appear above the bars; what goes to a file stays there."""
        if self._streams is not None:
            return
        self._streams = sys.stdout, sys.stderr
        if sys.stdout.isatty():
            sys.stdout = DummyTqdmFile(self._stream)
        if sys.stderr.isatty():
            sys.stderr = DummyTqdmFile(self._stream)
        atexit.register(self.close)
