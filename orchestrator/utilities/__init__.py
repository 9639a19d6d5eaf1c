"""Small things for users that are neither callbacks nor loggers, under the path where Lightning has them.

Public names are loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modules.combined import CombinedLoader as CombinedLoader
    from modules.hyperparameters import AttributeDict as AttributeDict
    from orchestrator.utilities.apply_func import move_data_to_device as move_data_to_device
    from orchestrator.utilities.grads import grad_norm as grad_norm
    from orchestrator.utilities.parameter_tying import find_shared_parameters as find_shared_parameters
    from orchestrator.utilities.rank_zero import rank_zero_debug as rank_zero_debug
    from orchestrator.utilities.rank_zero import rank_zero_info as rank_zero_info
    from orchestrator.utilities.rank_zero import rank_zero_only as rank_zero_only
    from orchestrator.utilities.rank_zero import rank_zero_warn as rank_zero_warn
    from orchestrator.utilities.seed import isolate_rng as isolate_rng

_HOMES = {
    "CombinedLoader": "modules.combined",
    "AttributeDict": "modules.hyperparameters",
    "find_shared_parameters": "orchestrator.utilities.parameter_tying",
    "grad_norm": "orchestrator.utilities.grads",
    "isolate_rng": "orchestrator.utilities.seed",
    "move_data_to_device": "orchestrator.utilities.apply_func",
    "rank_zero_debug": "orchestrator.utilities.rank_zero",
    "rank_zero_info": "orchestrator.utilities.rank_zero",
    "rank_zero_only": "orchestrator.utilities.rank_zero",
    "rank_zero_warn": "orchestrator.utilities.rank_zero",
}

__all__ = [
    "AttributeDict",
    "CombinedLoader",
    "find_shared_parameters",
    "grad_norm",
    "isolate_rng",
    "move_data_to_device",
    "rank_zero_debug",
    "rank_zero_info",
    "rank_zero_only",
    "rank_zero_warn",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(
            f"module 'orchestrator.utilities' has no attribute {name!r}. Public names: {', '.join(__all__)}."
        )
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value
