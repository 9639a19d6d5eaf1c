"""Small things for users that are neither callbacks nor loggers, under the path where Lightning has them.

Public names are loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modules.combined import CombinedLoader as CombinedLoader

_HOMES = {"CombinedLoader": "modules.combined"}

__all__ = ["CombinedLoader"]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(
            f"module 'orchestrator.utilities' has no attribute {name!r}. Public names: {', '.join(__all__)}."
        )
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value
