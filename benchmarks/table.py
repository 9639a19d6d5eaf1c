"""Writes the tables of figures in README.md and docs/performance.md from what the benchmarks have measured.

    python benchmarks/table.py            # after `make bench`, from benchmarks/results/*.json

Each file of results becomes one table of the page on performance: a line for each contender and figure, with
its ratio to the peer of the same run; below those that were taken together the date, the versions and the
machine. The README has one table, of the figures that count (headlines.py). What stands between the two marks
in a page is replaced; a page without them is an error, and so is having no results.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from headlines import headlines

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
README, PERFORMANCE = ROOT / "README.md", ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- figures -->", "<!-- /figures -->"


def table(result: Mapping[str, Any]) -> str:
    """Return one benchmark's results as a table."""
    lines = [f"| {result['question']} | figure | median | x {result['against']} |", "|---|---|---|---|"]
    for row in result["rows"]:
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        lines.append(f"| {row['contender']} | {in_words(row['metric'])} | {row['median']:.4g} | {ratio} |")
    return "\n".join(lines)


def origin(result: Mapping[str, Any]) -> str:
    """Return when and on what the figures were taken, in a line."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    machine = result["machine"]
    where = f"{machine['system']} {machine['machine']}, {machine['cpus']} CPUs"
    if "device" in machine:
        where += f", {machine['device']}"
    return f"{result['date']}; {versions}; {where}."


def in_words(metric: str) -> str:
    """Return a figure's name as a reader would write it.

    >>> in_words("kill_to_commit_s"), in_words("cpu_us_a_step"), in_words("M_rows_a_s")
    ('kill to commit, s', 'cpu us a step', 'M rows a second')
    """
    name, _, unit = metric.rpartition("_")
    if name.endswith("_a"):
        return f"{name} {unit if unit != 's' else 'second'}".replace("_", " ")
    return f"{name.replace('_', ' ')}, {unit}" if name and unit in ("s", "ms") else metric.replace("_", " ")


def tables(results: Sequence[Mapping[str, Any]]) -> str:
    """Return all tables, with their origin below those that were taken together."""
    parts = []
    for result, following in zip(results, [*results[1:], None], strict=True):
        parts.append(table(result))
        if following is None or origin(following) != origin(result):
            parts.append(origin(result))
    return "\n\n".join(parts)


def with_figures(page: str, figures: str) -> str:
    """Return the page with these figures between its marks.

    Raises:
        ValueError: The marks are not there, once each and in order.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end) or BEGIN in after or END in after:
        raise ValueError(f"The page has not the marks {BEGIN} and {END}, once each and in this order.")
    return "\n\n".join([before + begin, figures, end + after])


def main() -> int:
    """Rewrite both pages."""
    paths = sorted(RESULTS.glob("*.json"))
    if not paths:
        print(f"There are no results in {RESULTS}. Run `make bench` first.", file=sys.stderr)
        return 1
    results = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}
    origins = dict.fromkeys(origin(result) for result in results.values())
    written = {
        README: "\n\n".join([headlines(results), *origins]),
        PERFORMANCE: tables([*results.values()]),
    }
    for page, figures in written.items():
        page.write_text(with_figures(page.read_text(encoding="utf-8"), figures), encoding="utf-8")
        print(f"Wrote the figures into {page}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
