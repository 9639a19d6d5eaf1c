"""Torch's switches for a whole process, set for the length of a call and put back after it.

``deterministic``, ``benchmark`` and ``detect_anomaly`` are properties of the process in torch, so a Trainer
that changed them for good would change what the user's other code does. A failure inside puts them back too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from orchestrator.settings import Settings

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
_FIXED_WORKSPACES = (":4096:8", ":16:8")


@contextmanager
def torch_modes(settings: Settings, fn: str) -> Iterator[None]:
    """Set what `settings` ask for while `fn` (fit, validate, test or predict) runs."""
    benchmark = settings.benchmark
    with ExitStack() as modes:
        if settings.deterministic:
            modes.enter_context(_deterministic(warns=settings.deterministic == "warn"))
            benchmark = False
        if benchmark is not None:
            modes.callback(_set_benchmark, torch.backends.cudnn.benchmark)
            _set_benchmark(benchmark)
        if settings.detect_anomaly and fn == "fit":
            modes.enter_context(torch.autograd.set_detect_anomaly(True))
        yield


@contextmanager
def _deterministic(*, warns: bool) -> Iterator[None]:
    """Use only algorithms that give the same bits each time; those that have none raise, or warn."""
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    workspace = os.environ.get(_WORKSPACE)
    torch.use_deterministic_algorithms(True, warn_only=warns)
    if workspace not in _FIXED_WORKSPACES:
        os.environ[_WORKSPACE] = _FIXED_WORKSPACES[0]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        if workspace is None:
            os.environ.pop(_WORKSPACE, None)
        else:
            os.environ[_WORKSPACE] = workspace


def _set_benchmark(on: bool) -> None:
    torch.backends.cudnn.benchmark = on
