"""What all benchmarks share: contenders run in turn, in one call, and one JSON file says what came of it.

Machines differ and are shared, so a figure stands beside its peers' of the same run, and ratios are what
counts. Each file holds the figures, their spread, the versions and the machine.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "ray", "lightning", "ray-training-orchestrator")


def versions() -> dict[str, str]:
    """Return the versions of what takes part; packages that are not installed are left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Return what the figures were taken on."""
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
    }


def measure(
    contenders: Mapping[str, Callable[[], Mapping[str, float]]], rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Run the contenders in turn, `rounds` times, in an order that rotates, and return all figures by
    contender and metric.
    """
    names = list(contenders)
    figures: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    for index in range(rounds):
        shift = index % len(names)
        for name in names[shift:] + names[:shift]:
            for metric, value in contenders[name]().items():
                figures[name].setdefault(metric, []).append(value)
    return figures


def summarize(figures: Mapping[str, Mapping[str, list[float]]], against: str) -> list[dict[str, Any]]:
    """Return a row for each contender and metric: median, least, most, and the median's ratio to that of
    `against`.
    """
    rows = []
    for name, metrics in figures.items():
        for metric, values in metrics.items():
            median = statistics.median(values)
            peer = figures[against].get(metric)
            rows.append(
                {
                    "contender": name,
                    "metric": metric,
                    "median": median,
                    "min": min(values),
                    "max": max(values),
                    "runs": len(values),
                    "ratio": median / statistics.median(peer) if peer else None,
                }
            )
    return rows


def parse_arguments(question: str, *switches: str) -> argparse.Namespace:
    """Read the command line, before anything is measured: ``--json FILE`` and the switches named here."""
    parser = argparse.ArgumentParser(description=question)
    parser.add_argument("--json", type=Path, default=None, help="write the figures to this file")
    for switch in switches:
        parser.add_argument(switch, action="store_true")
    return parser.parse_args()


def report(name: str, question: str, rows: list[dict[str, Any]], against: str, target: Path | None) -> None:
    """Print the rows, and write them to the file `target` with date, versions and machine."""
    print(f"{name}: {question}")
    for row in rows:
        ratio = "" if row["ratio"] is None else f"  {row['ratio']:.2f} x {against}"
        spread = f"({row['min']:.4g} to {row['max']:.4g})"
        print(f"  {row['contender']:<28} {row['metric']:<24} {row['median']:.4g} {spread}{ratio}")
    if target is None:
        return
    content = {"name": name, "question": question, "against": against, "rows": rows}
    made = {"date": datetime.date.today().isoformat(), "versions": versions(), "machine": machine()}
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps({**content, **made}, indent=2) + "\n")
