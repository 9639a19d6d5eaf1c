"""``orchestrator report RUN [OTHER]``: writes one page that tells a run, two beside each other, or a sweep.

It reads the run's folder only; torch and Ray are not loaded, and a run that is still going on can be looked
at; so can a sweep, whose directory is told by its ``sweep.json``. The page goes beside the other files unless
another place is named. What is no run, or cannot be written, is one line and status 2.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

SUMMARY = "write one HTML page about a run or a sweep, or about two runs beside each other"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the runs and ``--output``."""
    parser.add_argument(
        "run", type=Path, help="a version directory, like lightning_logs/version_0, or a sweep's"
    )
    parser.add_argument("other", type=Path, nargs="?", help="another run, to compare with")
    parser.add_argument("--output", type=Path, help="the page (RUN/report.html)")


def run(arguments: argparse.Namespace) -> int:
    """Write the page, say where it is, and return 0; 2 where that cannot be."""
    from orchestrator.errors import MisconfigurationError
    from orchestrator.report.page import Told, make_page

    target = arguments.output or arguments.run / "report.html"
    try:
        if (arguments.run / "sweep.json").exists():
            from orchestrator.sweep.report import write_report

            if arguments.other is not None:
                raise MisconfigurationError(
                    f"{arguments.run} is a sweep, and only runs are told beside each other. Leave "
                    f"{arguments.other} out."
                )
            print(f"Wrote {write_report(arguments.run, target)}.")
            return 0
        told = Told.read(arguments.run)
        other = None if arguments.other is None else Told.read(arguments.other)
        target.write_text(make_page(told, other), encoding="utf-8")
    except (MisconfigurationError, OSError) as error:
        print(f"orchestrator report: {error}", file=sys.stderr)
        return 2
    print(f"Wrote {target}.")
    return 0
