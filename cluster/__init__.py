"""Runs any callable on a gang of processes, and knows nothing of what the callable does.

`GroupSpec` says what to ask Ray for, `pool.lease` lends a `WorkerGroup` for it, `WorkerGroup.run` calls a
function on every worker, whose first argument is a `WorkerContext`. `import cluster` loads neither Ray nor
torch; the first use does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cluster import pool, session
    from cluster.context import WorkerContext
    from cluster.errors import (
        ClusterError,
        GroupError,
        PeerLost,
        PlacementError,
        RemoteError,
        RunLost,
        SerializationError,
        SessionError,
        SpecError,
        StartError,
        WorkerDied,
    )
    from cluster.group import WorkerGroup
    from cluster.ranks import WorkerInfo
    from cluster.recovery import RecoveryPolicy
    from cluster.spec import GroupSpec

__all__ = [
    "ClusterError",
    "GroupError",
    "GroupSpec",
    "PeerLost",
    "PlacementError",
    "RecoveryPolicy",
    "RemoteError",
    "RunLost",
    "SerializationError",
    "SessionError",
    "SpecError",
    "StartError",
    "WorkerContext",
    "WorkerDied",
    "WorkerGroup",
    "WorkerInfo",
    "pool",
    "session",
]

_HOME = {
    "GroupSpec": "spec",
    "RecoveryPolicy": "recovery",
    "WorkerContext": "context",
    "WorkerGroup": "group",
    "WorkerInfo": "ranks",
} | {name: "errors" for name in __all__ if name.endswith(("Error", "Died", "Lost"))}


def __getattr__(name: str) -> Any:
    if name in ("pool", "session"):
        return importlib.import_module(f"cluster.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(f"cluster.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
