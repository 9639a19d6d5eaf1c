"""A sweep as tables: ``results.parquet`` and ``results.csv`` with a row for each trial, ``reports.parquet``
with a row for each report.

Columns of configurations are called ``config/NAME``. A value that is no number, string or boolean is written
as text, so that any reader can open the files.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.sweep.records import TrialRecord


def write_tables(folder: str, records: Sequence[TrialRecord], metric: str, mode: str) -> None:
    """Write the three files into a sweep's directory; each is replaced as a whole.

    Args:
        folder: The directory.
        records: Of all trials.
        metric: What trials are compared by.
        mode: ``"min"`` or ``"max"``.
    """
    results = [result_row(record, metric, mode) for record in records]
    _write_parquet(os.path.join(folder, "results.parquet"), results)
    _write_csv(os.path.join(folder, "results.csv"), results)
    reports = [
        {"trial": record.number, "report": number, **record.reports[number]}
        for record in records
        for number in sorted(record.reports)
    ]
    _write_parquet(os.path.join(folder, "reports.parquet"), reports)


def result_row(record: TrialRecord, metric: str, mode: str) -> dict[str, Any]:
    """Return one trial's row."""
    best, values = record.best(metric, mode), record.values(metric)
    return {
        "trial": record.number,
        "status": record.status,
        "reports": len(record.reports),
        f"best_{metric}": None if best is None else best[1],
        "best_report": None if best is None else best[0],
        f"last_{metric}": values[-1][1] if values else None,
        "seconds": record.seconds,
        **{f"config/{path}": value for path, value in flat(record.config).items()},
        "error": record.error or None,
    }


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a configuration with one key for each value.

    >>> flat({"optimizer": {"lr": 0.1}, "layers": [64, 64]})
    {'optimizer/lr': 0.1, 'layers': '[64, 64]'}
    """
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            found.update(flat(value, f"{prefix}{name}/"))
        else:
            plain = isinstance(value, (bool, int, float, str)) or value is None
            found[f"{prefix}{name}"] = value if plain else str(value)
    return found


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _write_csv(path: str, rows: Sequence[Mapping[str, Any]]) -> None:
    with open(f"{path}.tmp", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, _columns(rows))
        writer.writeheader()
        writer.writerows(rows)
    os.replace(f"{path}.tmp", path)


def _write_parquet(path: str, rows: Sequence[Mapping[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {name: _uniform([row.get(name) for row in rows]) for name in _columns(rows)}
    pq.write_table(pa.table(columns), f"{path}.tmp")
    os.replace(f"{path}.tmp", path)


def _uniform(values: list[Any]) -> list[Any]:
    """Return a column's values as one kind: numbers as they are, anything mixed as text."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float}:
        return [None if value is None else float(value) for value in values] if float in kinds else values
    return values if len(kinds) <= 1 else [None if value is None else str(value) for value in values]
