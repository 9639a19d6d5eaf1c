"""What a call of the Trainer says to the user in words: where it runs, and what an evaluation has found.

Words about the run go to the log named ``orchestrator``, which is shown on stderr unless the program has set
up logging itself; results are printed.
"""

from __future__ import annotations

import logging

from orchestrator.plan import Plan

_log = logging.getLogger("orchestrator")


def announce(plan: Plan) -> None:
    """Say where a call runs, before it does."""
    if not _log.handlers and not logging.getLogger().handlers:
        _log.addHandler(logging.StreamHandler())
        _log.setLevel(logging.INFO)
    _log.info(plan.describe())


def print_results(fn: str, results: list[dict[str, float]]) -> None:
    """Print what `fn`, validate or test, returns: one table a loader."""
    for index, metrics in enumerate(results):
        title = f"{fn} metrics" + (f" of loader {index}" if len(results) > 1 else "")
        width = max([len(name) for name in metrics] + [len(title)])
        lines = [f"{name:<{width}}  {value:.6g}" for name, value in sorted(metrics.items())]
        print("\n".join([title, "-" * width, *lines]))
