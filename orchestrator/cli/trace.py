"""``orchestrator trace RUN``: puts the traces that all ranks have written into one file for Perfetto.

It reads the run's folder only, without torch or Ray. What is no trace, or cannot be written, is one line and
status 2.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

SUMMARY = "merge the traces of all ranks of a run into one file for Perfetto"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the run and ``--output``."""
    parser.add_argument("run", type=Path, help="a version directory, like lightning_logs/version_0")
    parser.add_argument("--output", type=Path, help="the file (RUN/trace.json)")


def run(arguments: argparse.Namespace) -> int:
    """Write the file, say where it is, and return 0; 2 where that cannot be."""
    from orchestrator.errors import MisconfigurationError
    from orchestrator.trace import merge_run

    target = arguments.output or arguments.run / "trace.json"
    try:
        found = merge_run(arguments.run, target)
    except (MisconfigurationError, OSError) as error:
        print(f"orchestrator trace: {error}", file=sys.stderr)
        return 2
    print(f"Wrote {found} trace{'s' if found > 1 else ''} into {target}. Open it at ui.perfetto.dev.")
    return 0
