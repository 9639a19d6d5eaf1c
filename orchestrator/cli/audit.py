"""``orchestrator audit``: proves from a run's ledger that each sample was used exactly once an epoch.

The ledger is written by ``Trainer(ledger=True)``. The command only reads, and loads no torch. It returns 0
where every epoch is right, 1 where a sample was used twice or is missing, 2 where there is no ledger.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.ledger_audit import Audit

SUMMARY = "prove that each sample was used exactly once an epoch"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the folder and ``--json``."""
    parser.add_argument("run", type=Path, help="the run's directory: the Trainer's default_root_dir")
    parser.add_argument("--json", action="store_true", help="print a JSON object instead of text")


def run(arguments: argparse.Namespace) -> int:
    """Print what came of the newest run there, and return 0, 1 or 2."""
    from orchestrator.ledger_audit import audit

    try:
        found = audit(arguments.run)
    except FileNotFoundError as error:
        print(f"orchestrator audit: {error}", file=sys.stderr)
        return 2
    print(json.dumps(asdict(found), indent=2) if arguments.json else format_text(found))
    return 0 if found.is_right else 1


def format_text(found: Audit) -> str:
    """Return one line an epoch, and what it comes to."""
    lines = []
    for epoch in found.epochs:
        state = "complete" if epoch.is_complete else "not complete"
        text = f"Epoch {epoch.epoch}: {epoch.used} samples, {epoch.missing} missing, {epoch.doubled} doubled"
        few = f"; such as {', '.join(map(str, epoch.examples))}" if epoch.examples else ""
        lines.append(f"{text} ({state}{few}).")
    count = len(found.attempts)
    lost = f", {found.discarded} batches discarded with lost processes" if found.discarded else ""
    verdict = "Each sample was used exactly once." if found.is_right else "Samples are missing or doubled."
    return "\n".join([*lines, f"{count} attempt{'s' if count > 1 else ''}{lost}. {verdict}"])
