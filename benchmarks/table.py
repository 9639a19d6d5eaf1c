"""Writes the tables of figures in README.md and docs/performance.md from what the benchmarks have measured.

    python benchmarks/table.py            # after `make bench`, from benchmarks/results/*.json

Each file of results becomes one table: a line for each contender and figure, with its ratio to the peer of
the same run, and below it the date, the versions and the machine. What stands between the two marks in a page
is replaced; a page without them is an error, and so is having no results.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (ROOT / "README.md", ROOT / "docs" / "performance.md")
BEGIN, END = "<!-- figures -->", "<!-- /figures -->"


def table(result: Mapping[str, Any]) -> str:
    """Return one benchmark's results as a table and a line about where they were taken."""
    lines = [f"| {result['question']} | figure | median | x {result['against']} |", "|---|---|---|---|"]
    for row in result["rows"]:
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        lines.append(f"| {row['contender']} | {row['metric']} | {row['median']:.4g} | {ratio} |")
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    machine = result["machine"]
    taken = f"{result['date']}; {versions}; {machine['system']} {machine['machine']}, {machine['cpus']} CPUs."
    return "\n".join([*lines, "", taken])


def with_figures(page: str, results: Sequence[Mapping[str, Any]]) -> str:
    """Return the page with these results between its marks.

    Raises:
        ValueError: The marks are not there, once each and in order.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end) or BEGIN in after or END in after:
        raise ValueError(f"The page has not the marks {BEGIN} and {END}, once each and in this order.")
    return "\n\n".join([before + begin, *(table(result) for result in results), end + after])


def main() -> int:
    """Rewrite both pages."""
    paths = sorted(RESULTS.glob("*.json"))
    if not paths:
        print(f"There are no results in {RESULTS}. Run `make bench` first.", file=sys.stderr)
        return 1
    results = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    for page in PAGES:
        page.write_text(with_figures(page.read_text(encoding="utf-8"), results), encoding="utf-8")
        print(f"Wrote {len(results)} tables into {page}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
