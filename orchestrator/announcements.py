"""What a call of the Trainer says to the user in words: where it runs, and what an evaluation has found.

Words about the run go to the logs named ``orchestrator`` and ``cluster``, which are shown on stderr unless
the program has set up logging itself; results are printed.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Mapping
from typing import Any

from modules.combined import CombinedLoader
from modules.keyed_loader import KeyedLoader
from orchestrator.plan import Plan

_log = logging.getLogger("orchestrator")
_logs = (_log, logging.getLogger("cluster"))


class _ToStderr(logging.Handler):
    """Writes to standard error as it is at the moment: progress bars replace it to stay undamaged."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record; a stream that is gone is not written to."""
        with contextlib.suppress(OSError, ValueError):
            print(self.format(record), file=sys.stderr, flush=True)


def announce(plan: Plan) -> None:
    """Say where a call runs, before it does."""
    if not _log.handlers and not logging.getLogger().handlers:
        handler = _ToStderr()
        for log in _logs:
            log.addHandler(handler)
            log.setLevel(logging.INFO)
    _log.info(plan.describe())


def tell(text: str) -> None:
    """Tell the user something about a run."""
    _log.info(text)


def announce_data(loaders: Mapping[str, Any]) -> None:
    """Say how data sets are read that choose this by themselves.

    Args:
        loaders: By kind, what was given.
    """
    for kind, source in loaders.items():
        tree = source.iterables if isinstance(source, CombinedLoader) else source
        members = (
            tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (list, tuple)) else [tree]
        )
        for member in members:
            if isinstance(member, KeyedLoader):
                _log.info("%s data: %s", kind, member.description)


def print_results(fn: str, results: list[dict[str, float]]) -> None:
    """Print what `fn`, validate or test, returns: one table a loader."""
    for index, metrics in enumerate(results):
        title = f"{fn} metrics" + (f" of loader {index}" if len(results) > 1 else "")
        width = max([len(name) for name in metrics] + [len(title)])
        lines = [f"{name:<{width}}  {value:.6g}" for name, value in sorted(metrics.items())]
        print("\n".join([title, "-" * width, *lines]))
