"""Takes two costs off the start of Ray Tune, which are seconds each time, and gives its trials an argument.

Tune gives its actors a runtime environment, though it only sets a few variables: so Ray cannot use the
processes that it has started ahead, and starts new ones. And it counts the kinds of its callbacks for usage
statistics, for which it imports every logging package that is installed. Both are switched off for the length
of a sweep; the variables are not needed, as the sweep sets what its trials need itself. What all trials have
in common is put into Ray's object store once and passed to each trial's process as an argument, so that Ray
counts who refers to it and frees it after the sweep; Tune's own ways keep it until the driver ends.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any


class _PlainActors:
    """Stands in for Tune's cache of actor classes: the same, without a runtime environment."""

    def __init__(self) -> None:
        self._cache: dict[type, Any] = {}

    def get(self, trainable: type) -> Any:
        """Return the actor class of a trainable."""
        import ray

        if trainable not in self._cache:
            self._cache[trainable] = ray.remote(trainable)
        return self._cache[trainable]


@contextlib.contextmanager
def quick_start(job: object) -> Iterator[None]:
    """Start Tune's trials without detours in this block.

    Args:
        job: The argument ``job`` of each trainable.
    """
    import ray
    from ray.tune.execution import tune_controller

    stored = ray.put(job)
    arguments_of = tune_controller._get_trainable_kwargs  # type: ignore[attr-defined]

    def with_job(trial: Any) -> dict[str, Any]:
        return {**arguments_of(trial), "job": stored}

    with contextlib.ExitStack() as places:
        for module, name, replacement in (
            ("ray.tune.execution.tune_controller", "_get_trainable_kwargs", with_job),
            ("ray.tune.execution.tune_controller", "_ActorClassCache", _PlainActors),
            ("ray.air._internal.usage", "tag_callbacks", lambda callbacks: None),
        ):
            found = sys.modules.get(module)
            if hasattr(found, name):
                places.callback(setattr, found, name, getattr(found, name))
                setattr(found, name, replacement)
        yield
