"""Record a run's numbers in a table: `metrics.csv` in the version directory, one row per step, one column
per metric.

Rows are held in memory and written in blocks. A metric that comes late gets its column by rewriting the
file, which is replaced in one step, so a reader never sees half a table. A file that is there already is
continued. Fails with `TypeError` naming the metric for a value that is not a number, and with
`MisconfigurationError` where the file is not such a table.
"""

from __future__ import annotations

import csv
import io
import os
from argparse import Namespace
from collections.abc import Mapping
from typing import Any, BinaryIO

from orchestrator.errors import MisconfigurationError
from orchestrator.loggers.hyperparameters import as_mapping, write_yaml
from orchestrator.loggers.logger import as_number
from orchestrator.loggers.version_directory import VersionDirectoryLogger


class MetricsTable:
    """The file `metrics.csv` in `directory`: its columns, and the rows that are not written yet.

    Values of one step share a row, also when part of it is written already; a second value of a
    name at a step starts another row.
    """

    FILE_NAME = "metrics.csv"

    def __init__(self, directory: str) -> None:
        self.path = os.path.join(directory, self.FILE_NAME)
        self._columns: list[str] | None = None  # None: the file has not been looked at
        self._rows: list[dict[str, Any]] = []
        self._last: dict[str, Any] | None = None  # the newest row, in memory or written
        self._last_offset: int | None = None  # where in the file the newest row begins, once it is written
        self._rewrites_last = False  # the first row in memory replaces the last one in the file

    @property
    def pending(self) -> int:
        """How many steps the rows in memory span, at least one a row."""
        if not self._rows:
            return 0
        return max(len(self._rows), int(self._rows[-1]["step"]) - int(self._rows[0]["step"]) + 1)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add `metrics` to the row of `step`, by default the step after the last one."""
        if step is None:
            step = 0 if self._last is None else int(self._last["step"]) + 1
        values = {name: value for name, value in metrics.items() if name != "step"}
        if self._last is None or self._last["step"] != step or _contradict(self._last, values):
            self._last = {"step": step}
            self._rows.append(self._last)
        elif not self._rows:
            self._rewrites_last = self._last_offset is not None
            self._rows.append(self._last)
        self._last.update(values)

    def save(self) -> None:
        """Write the rows in memory to the file."""
        if not self._rows:
            return
        known = self._known_columns()
        new = [
            name for name in dict.fromkeys(name for row in self._rows for name in row) if name not in known
        ]
        if new:
            written = self._read()
            if self._rewrites_last:
                del written[-1]
            self._replace(_in_order([*known, *new]), [*written, *self._rows])
        else:
            self._append()
        self._last_offset = os.path.getsize(self.path) - len(self._encode(self._rows[-1:]))
        self._rows = []
        self._rewrites_last = False

    def drop_from(self, step: int) -> None:
        """Remove the rows of `step` and of all later steps."""
        self.save()
        written = self._read()
        kept = [row for row in written if int(row["step"]) < step]
        if len(kept) < len(written):
            self._replace(self._known_columns(), kept)
            self._last = None

    def _known_columns(self) -> list[str]:
        if self._columns is None:
            self._columns = self._read_header()
        return self._columns

    def _read_header(self) -> list[str]:
        if not os.path.exists(self.path) or os.path.getsize(self.path) == 0:
            return []
        with open(self.path, newline="", encoding="utf-8") as file:
            header = next(csv.reader(file), [])
        if "step" not in header:
            raise MisconfigurationError(
                f"CSVLogger found a file that it did not write: {self.path}, with the columns {header}. "
                "Move it away, or choose another version."
            )
        return header

    def _read(self) -> list[dict[str, Any]]:
        if not self._known_columns():
            return []
        with open(self.path, newline="", encoding="utf-8") as file:
            # Of a row that a crash cut short, what is there counts if its step is.
            return [row for row in csv.DictReader(file, restval="") if row["step"].isdigit()]

    def _append(self) -> None:
        text = self._encode(self._rows)
        with open(self.path, "r+b") as file:
            end = file.seek(0, os.SEEK_END)
            if self._rewrites_last and self._last_offset is not None:
                end = file.seek(self._last_offset)
            elif not _ends_with_newline(file):  # a row that a crash cut short
                text = b"\n" + text
            file.seek(end)
            file.write(text)  # one call: who reads meanwhile sees whole rows
            file.truncate()

    def _encode(self, rows: list[dict[str, Any]]) -> bytes:
        return _as_csv(self._known_columns(), rows, header=False).encode()

    def _replace(self, columns: list[str], rows: list[dict[str, Any]]) -> None:
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        unfinished = f"{self.path}.{os.getpid()}.tmp"
        try:
            with open(unfinished, "w", newline="", encoding="utf-8") as file:
                file.write(_as_csv(columns, rows, header=True))
            os.replace(unfinished, self.path)
        except BaseException:
            if os.path.exists(unfinished):
                os.unlink(unfinished)
            raise
        self._columns = columns


class CSVLogger(VersionDirectoryLogger):
    """Record metrics in ``save_dir/name/version_N/metrics.csv`` and hyperparameters in hparams.yaml beside
    it.

    Args:
        save_dir: A local directory.
        name: The experiment, a directory in `save_dir`; None or "" for no such level.
        version: None takes the next number; an int N means ``version_N``; a str is the directory's name.
        prefix: Put before every metric's name, with a dash.
        flush_logs_every_n_steps: Rows are written once they span so many steps, and at the end of each
            epoch; 1 writes each at once.

    Raises:
        MisconfigurationError: for an argument that cannot work.
    """

    def __init__(
        self,
        save_dir: str | os.PathLike[str],
        name: str | None = "lightning_logs",
        version: int | str | None = None,
        prefix: str = "",
        flush_logs_every_n_steps: int = 100,
    ) -> None:
        super().__init__(save_dir, name, version, prefix)
        steps: Any = flush_logs_every_n_steps
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise MisconfigurationError(
                f"CSVLogger(flush_logs_every_n_steps={steps!r}) is not a number of steps. Write 1 or more."
            )
        self._flush_steps = steps
        self.hparams: dict[str, Any] = {}
        self._table: MetricsTable | None = None

    def __getstate__(self) -> dict[str, Any]:
        self.save()
        return {**self.__dict__, "_table": None}

    @property
    def experiment(self) -> MetricsTable:
        """The table, for rows of one's own."""
        if self._table is None:
            self._table = MetricsTable(self.log_dir)
        return self._table

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Record each number in the row of `step`.

        Raises:
            TypeError: for a value that is not a number.
        """
        table = self.experiment
        numbers = {name: as_number(name, value) for name, value in metrics.items()}
        table.log_metrics(self._prefixed(numbers), step)
        if table.pending >= self._flush_steps:
            table.save()

    def log_hyperparams(
        self, params: Mapping[str, Any] | Namespace | None, metrics: Mapping[str, float] | float | None = None
    ) -> None:
        """Write `params` to hparams.yaml, together with those given before; `metrics` become a row of step
        0."""
        self.hparams |= as_mapping(params)
        if self.hparams:
            write_yaml(os.path.join(self.log_dir, "hparams.yaml"), self.hparams)
        if metrics is not None:
            self.log_metrics(metrics if isinstance(metrics, Mapping) else {"hp_metric": metrics}, 0)

    def rewind(self, step: int) -> None:
        """Remove the rows of `step` and of all later steps."""
        self.experiment.drop_from(step)

    def save(self) -> None:
        """Write the rows that are held in memory."""
        if self._table is not None:
            self._table.save()


def _contradict(row: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
    return any(name in row and row[name] != value for name, value in values.items())


def _in_order(names: list[str]) -> list[str]:
    first = [name for name in ("epoch", "step") if name in names]
    return first + [name for name in names if name not in first]


def _as_csv(columns: list[str], rows: list[dict[str, Any]], *, header: bool) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _ends_with_newline(file: BinaryIO) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"
