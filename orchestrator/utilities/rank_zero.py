"""Do something on rank 0 only.

The rank is asked for at each call: that of torch's process group, else of the ``RANK`` that a launcher has
set, else 0. So a decorated function works in a script, in a worker and in a test alike. Nothing communicates,
and nothing waits for rank 0.
"""

from __future__ import annotations

import functools
import logging
import os
import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch.distributed as dist

P = ParamSpec("P")
T = TypeVar("T")

_log = logging.getLogger("orchestrator")


class RankZeroOnly:
    """The decorator; `rank_zero_only` is its one instance."""

    @property
    def rank(self) -> int:
        """This process's rank."""
        if dist.is_available() and dist.is_initialized():
            return dist.get_rank()
        text = os.environ.get("RANK", "")
        return int(text) if text.isdecimal() else 0

    def __call__(self, function: Callable[P, T], default: T | None = None) -> Callable[P, T | None]:
        """Return `function`, which on other ranks than 0 is not called and gives `default`."""

        @functools.wraps(function)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> T | None:
            return function(*args, **kwargs) if self.rank == 0 else default

        return wrapped


rank_zero_only = RankZeroOnly()


def rank_zero_info(*args: object, **kwargs: object) -> None:
    """Log a line of level INFO to the logger ``orchestrator``, on rank 0; arguments as of `logging`."""
    if rank_zero_only.rank == 0:
        kwargs.pop("stacklevel", None)
        _log.info(*args, **kwargs)  # type: ignore[arg-type]


def rank_zero_debug(*args: object, **kwargs: object) -> None:
    """Log a line of level DEBUG to the logger ``orchestrator``, on rank 0; arguments as of `logging`."""
    if rank_zero_only.rank == 0:
        kwargs.pop("stacklevel", None)
        _log.debug(*args, **kwargs)  # type: ignore[arg-type]


def rank_zero_warn(
    message: str | Warning, category: type[Warning] = UserWarning, stacklevel: int = 1
) -> None:
    """Warn on rank 0, at the caller's line; with a higher `stacklevel` further up."""
    if rank_zero_only.rank == 0:
        warnings.warn(message, category, stacklevel=stacklevel + 1)
