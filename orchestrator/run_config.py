"""What a `ray.train.RunConfig` says, as the Trainer's own arguments.

Its name and storage path say where logs and checkpoints go, its failure configuration how many lost workers
a run survives. A value that it was not given, which Ray fills in, counts for nothing. What has no counterpart
here is refused rather than ignored.
"""

from __future__ import annotations

import os
from typing import Any

from orchestrator.errors import MisconfigurationError

_MADE_UP = "ray_train_run-"  # how the names begin that Ray makes up


def apply_run_config(config: Any, given: dict[str, Any]) -> None:
    """Put what `config` says into the Trainer's arguments `given`.

    Raises:
        MisconfigurationError: It is no RunConfig, says what cannot be done here, or contradicts an argument.
    """
    if config is None:
        return
    if not hasattr(config, "storage_path") or not hasattr(config, "failure_config"):
        raise MisconfigurationError(
            f"Trainer(run_config={config!r}). Give a ray.train.RunConfig, or leave it out."
        )
    for name in ("storage_filesystem", "worker_runtime_env", "callbacks"):
        if getattr(config, name, None):
            raise MisconfigurationError(
                f"Trainer(run_config=RunConfig({name}=...)) has no counterpart here. "
                + ("Use Trainer(callbacks=...)." if name == "callbacks" else "Leave it out.")
            )
    _apply_storage(config, given)
    failures = getattr(config.failure_config, "max_failures", 0)
    if failures:
        if given["max_failures"] is not None and given["max_failures"] != failures:
            raise MisconfigurationError(
                f"Trainer(max_failures={given['max_failures']!r}) contradicts run_config's "
                f"FailureConfig(max_failures={failures!r}). Leave one of them out."
            )
        given["max_failures"] = failures


def _apply_storage(config: Any, given: dict[str, Any]) -> None:
    storage, name = config.storage_path, config.name or ""
    if storage == _rays_own_storage():
        storage = None
    if name.startswith(_MADE_UP):
        name = ""
    if storage is None and not name:
        return
    if storage is not None and "://" in str(storage):
        raise MisconfigurationError(
            f"Trainer(run_config=RunConfig(storage_path={str(storage)!r})): logs and checkpoints are written "
            "to paths that every node sees. Give such a path."
        )
    root = storage if storage is not None else given["default_root_dir"] or "."
    given["default_root_dir"] = os.path.join(os.fspath(root), name) if name else os.fspath(root)


def _rays_own_storage() -> str:
    """Return where Ray stores what it was not told where to."""
    return os.environ.get("RAY_STORAGE_PATH") or os.path.expanduser("~/ray_results")
