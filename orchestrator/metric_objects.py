"""Metric objects of a module: torchmetrics' metrics, and anything else with update, compute and reset.

A metric object holds what it has seen; `self.log` notes that its value is wanted, and the end of the epoch
computes it once and resets it. An object is known by where it is in the module, which is the same on all
ranks and after a restart: one that is no attribute of the module is refused. torchmetrics is never imported
here; its metrics are recognised by what they can do.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from orchestrator.errors import MisconfigurationError


class Metric(Protocol):
    """What `self.log` accepts as a metric object."""

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Take a batch."""

    def compute(self) -> Any:
        """Return the value of all batches since `reset`: one number, or a tensor of one element."""

    def reset(self) -> None:
        """Forget everything."""


class MergeableMetric(Metric, Protocol):
    """A metric object whose value over several ranks, and after a restart, is exact."""

    @property
    def metric_state(self) -> dict[str, Any]:
        """All that was seen since `reset`, as tensors by name."""

    def merge_state(self, incoming_state: dict[str, Any]) -> None:
        """Add what another object of this class has seen."""


def is_metric(value: object) -> bool:
    """Whether `value` is a metric object, rather than a number, a class or a collection of metrics."""
    methods = (getattr(type(value), name, None) for name in ("update", "compute", "reset"))
    return all(map(callable, methods)) and not is_collection(value)


def is_collection(value: object) -> bool:
    """Whether `value` is one of torchmetrics' collections, whose members may share their states."""
    return isinstance(value, nn.ModuleDict) and hasattr(value, "compute_groups")


def is_mergeable(metric: object) -> bool:
    """Whether what `metric` has seen can be read, and added to another."""
    return hasattr(type(metric), "metric_state") and callable(getattr(type(metric), "merge_state", None))


def is_synced(metric: object) -> bool:
    """Whether `metric` is one of torchmetrics', which reduce their own states over ranks."""
    return isinstance(metric, nn.Module) and all(
        hasattr(metric, name) for name in ("sync", "unsync", "dist_sync_fn", "metric_state")
    )


class MetricObjects:
    """The metric objects of one module.

    Args:
        module: Where they are.
        world_size: Ranks that will combine them.
    """

    def __init__(self, module: nn.Module, world_size: int = 1) -> None:
        self._module = module
        self._world_size = world_size

    def attribute_of(self, name: str, metric: Any, given: str | None) -> str:
        """Return where in the module `metric` is.

        Args:
            name: Under which it is logged.
            metric: The object.
            given: Where the user says that it is (``metric_attribute``), or None.

        Raises:
            MisconfigurationError: It is not there, or cannot be combined over ranks.
        """
        kind = type(metric).__name__
        found: dict[str, Any] = dict(self._all())
        if given is not None and found.get(given) is not metric:
            raise MisconfigurationError(
                f"self.log({name!r}, {kind}, metric_attribute={given!r}): there it is not. "
                + _where(metric, found)
            )
        paths = [path for path, item in found.items() if item is metric] if given is None else [given]
        if not paths:
            raise MisconfigurationError(
                f"self.log({name!r}, {kind}) got a metric that is no attribute of "
                f"{type(self._module).__qualname__}, so other ranks and a resumed run could not find it. "
                f"Keep it as one: self.{name.rpartition('/')[2]} = {kind}(...) in __init__."
            )
        if self._world_size > 1 and not is_synced(metric) and not is_mergeable(metric):
            raise MisconfigurationError(
                f"self.log({name!r}, {kind}) on {self._world_size} ranks: the metric cannot be combined over "
                "ranks. Give it metric_state and merge_state, as torchmetrics' metrics have, or log a number."
            )
        return paths[0]

    def at(self, path: str) -> Any:
        """Return the metric object at `path`.

        Raises:
            MisconfigurationError: There is none.
        """
        try:
            found = functools.reduce(getattr, path.split("."), self._module)
        except AttributeError:
            found = None
        if is_metric(found):
            return found
        raise MisconfigurationError(
            f"{type(self._module).__qualname__} has no metric {path!r}, which another rank or the run before "
            "has logged. Make the same metrics on every rank and in every run."
        )

    def reset(self, paths: Iterable[str]) -> None:
        """Reset the objects at `paths`, so that they can be used in training too."""
        with torch.inference_mode(False):
            for path in dict.fromkeys(paths):
                self.at(path).reset()

    def share_states(self) -> None:
        """Let the members of collections refer to the newest state that they share."""
        for item in self._module.modules():
            if is_collection(item):
                item.items(copy_state=False)  # type: ignore[operator]

    def updated(self) -> frozenset[str]:
        """Return where the metrics are that have seen something since they were reset."""
        self.share_states()
        return frozenset(path for path, item in self._all() if _was_updated(item))

    def states(self, paths: frozenset[str]) -> dict[str, dict[str, Any]]:
        """Return what the metrics at `paths` have seen, as plain values and tensors."""
        return {
            path: {
                "state": {
                    key: [part.detach().clone() for part in value]
                    if isinstance(value, list)
                    else value.detach().clone()
                    for key, value in item.metric_state.items()
                },
                "updates": int(getattr(item, "update_count", 0)),
            }
            for path, item in self._all()
            if path in paths
        }

    def restore(self, states: dict[str, dict[str, Any]]) -> None:
        """Take back what `states` returned."""
        for path, saved in states.items():
            metric = self.at(path)
            if not is_synced(metric):
                metric.reset()
                metric.merge_state(saved["state"])
                continue
            for key, value in saved["state"].items():
                here = (
                    [_on(part, metric) for part in value] if isinstance(value, list) else _on(value, metric)
                )
                setattr(metric, key, here)
            metric._update_count = saved["updates"]
            metric._computed = None

    def _all(self) -> Iterator[tuple[str, Any]]:
        """Yield every metric object in the module with where it is."""
        for prefix, module in self._module.named_modules():
            if prefix and is_metric(module):
                yield prefix, module
            for key, item in vars(module).items():
                if not key.startswith("_") and not isinstance(item, nn.Module) and is_metric(item):
                    yield f"{prefix}.{key}" if prefix else key, item


def _was_updated(metric: Any) -> bool:
    """Whether a metric can tell what it has seen, and has seen something or does not say whether."""
    if not is_synced(metric) and not is_mergeable(metric):
        return False
    return bool(getattr(metric, "update_called", True)) and bool(metric.metric_state)


def _on(value: Tensor, metric: Any) -> Tensor:
    return value.clone().to(getattr(metric, "device", torch.device("cpu")))


def _where(metric: Any, found: dict[str, Any]) -> str:
    paths = [path for path, item in found.items() if item is metric]
    if paths:
        return f"Write metric_attribute={paths[0]!r}, or leave it out."
    return f"Use one of {', '.join(map(repr, found))}." if found else "The module has no metric objects."
