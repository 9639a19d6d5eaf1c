"""What is logged where one process hosts several logical ranks: each has slots and metrics of its own.

The process *runs as* one of them at a time: then `self.log` and the module's metric objects are that rank's.
Between steps it is at home: in the process that hosts logical rank 0 that is logical rank 0, elsewhere a
place whose values count nowhere, so that what hooks log and count is logical rank 0's, whoever hosts it.
Values are reduced in the order of logical ranks, so they do not depend on who hosts which. Nothing here waits
for a device; `gather` communicates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from orchestrator.log_reduction import Record
from orchestrator.log_slots import LogSlots, Table
from orchestrator.metric_objects import MetricObjects, is_collection, is_mergeable, is_metric, is_synced
from orchestrator.slot import Slot
from orchestrator.strategies.strategy import Strategy

T = TypeVar("T")
NOWHERE = -1
"""The home of a process that does not host logical rank 0."""
_BY_EACH = frozenset(
    {
        "training_step",
        "on_before_backward",
        "on_after_backward",
        *(f"{stage}_step" for stage in ("validation", "test")),
        *(f"on_{stage}_batch_{end}" for stage in ("validation", "test") for end in ("start", "end")),
    }
)
"""The hooks that every logical rank runs; in all others only logical rank 0's values count."""


class MetricStates:
    """The states of a module's metric objects, of each logical rank that is hosted here.

    Args:
        module: Where the objects are.
    """

    def __init__(self, module: nn.Module) -> None:
        parts = [item for layer in module.modules() for item in (layer, *vars(layer).values())]
        found = {
            id(item): item for item in parts if is_metric(item) and (is_synced(item) or is_mergeable(item))
        }
        self._metrics = list(found.values())
        self._collections: list[Any] = [item for item in module.modules() if is_collection(item)]
        self._saved: dict[int, list[Any]] = {}
        self._active: int | None = None

    def __bool__(self) -> bool:
        return bool(self._metrics)

    def switch(self, rank: int) -> None:
        """Let the objects hold what that rank's have seen; what they hold now is kept for the rank before.
        The first to come has what they held.
        """
        before, self._active = self._active, rank
        if before in (None, rank) or not self._metrics:
            return
        for item in self._collections:
            item.items(copy_state=False)
        self._saved[before] = [_taken(metric) for metric in self._metrics]
        saved = self._saved.pop(rank, None)
        with torch.inference_mode(False):
            for place, metric in enumerate(self._metrics):
                _put(metric, None if saved is None else saved[place])

    def reset(self) -> None:
        """Let the objects forget what they hold now."""
        with torch.inference_mode(False):
            for metric in self._metrics:
                metric.reset()

    def drop(self, ranks: Iterable[int]) -> None:
        """Forget ranks."""
        for rank in ranks:
            self._saved.pop(rank, None)


class LogicalSlots(LogSlots):
    """The slots of all logical ranks that this process hosts; those of the one that it runs as are in use.

    Args:
        objects: The metric objects of the module.
        states: Their states, by logical rank.
        hosted: The logical ranks, ascending.
        told: What the user was told in this run.
    """

    def __init__(
        self,
        objects: MetricObjects,
        states: MetricStates,
        hosted: Sequence[int],
        told: set[str] | None = None,
    ) -> None:
        super().__init__(objects, told)
        self._states = states
        self._banks: dict[int, tuple[dict[tuple[str, str], Table], list[Slot]]] = {}
        self._updated: dict[int, frozenset[str]] | None = None
        self.hosted: tuple[int, ...] = ()
        self.running = NOWHERE
        self.host(hosted)

    @property
    def home_rank(self) -> int:
        """Whose slots are in use between steps."""
        return 0 if 0 in self.hosted else NOWHERE

    def host(self, hosted: Sequence[int]) -> None:
        """Host these logical ranks from now on: forget others, begin those that are new; be at home."""
        self.hosted = tuple(hosted)
        wanted = {*self.hosted, NOWHERE}
        self._enter(self.home_rank, {rank: self._banks.get(rank) or ({}, []) for rank in wanted})
        self._states.drop(set(range(-1, max(self.hosted) + 1)) - wanted)

    def run_as(self, rank: int) -> None:
        """Log and count as that logical rank from now on."""
        if rank != self.running:
            self._enter(rank, self._banks)

    def home(self) -> None:
        """Log and count as nobody in particular: as logical rank 0, or nowhere."""
        if self.running != self.home_rank:
            self._enter(self.home_rank, self._banks)
            self.table = None

    def _enter(self, rank: int, banks: dict[int, tuple[dict[tuple[str, str], Table], list[Slot]]]) -> None:
        self.running, self._banks = rank, banks
        self._tables, self._slots = banks[rank]
        self._states.switch(rank)

    def _each(self, ranks: Iterable[int] | None = None) -> Iterator[int]:
        """Run as each logical rank in turn, then be at home."""
        for rank in self.hosted if ranks is None else ranks:
            self.run_as(rank)
            yield rank
        self.home()

    def for_evaluation(self) -> LogicalSlots:
        """Return slots for an evaluation, of the same logical ranks."""
        self.home()
        return LogicalSlots(self.objects, self._states, self.hosted, self.told)

    # ---------------------------------------------------------------- among ranks

    def gather(self, strategy: Strategy, take: Callable[[], T]) -> list[T]:
        """Return what `take` returns for each logical rank, by logical rank. Communicates."""
        own = {rank: _counting(rank, take()) for rank in self._each()}
        found: dict[int, T] = {}
        for part in strategy.gather(own):
            found |= part
        return [found[rank] for rank in sorted(found)]

    def adopt(self, descriptions: Iterable[dict[str, Any]]) -> None:
        """Make the slots that other ranks have, for every logical rank here."""
        known = list(descriptions)
        for _ in self._each((*self.hosted, NOWHERE)):
            super().adopt(known)

    def end_steps(self) -> None:
        """Note that the values of steps have been told."""
        for _, slots in self._banks.values():
            for slot in slots:
                slot.stepped = False

    def take_computed(self, values: dict[str, float]) -> dict[tuple[str, str], float]:
        """Note the values of metric objects for every logical rank; return all that are known."""
        known: dict[tuple[str, str], float] = {}
        for _ in self._each():
            known.update(super().take_computed(values))
        return known

    def clear(self) -> None:
        """Forget all values of all logical ranks, and reset their metric objects that were logged."""
        for _ in self._each((*self.hosted, NOWHERE)):
            super().clear()

    def reset_metrics(self) -> None:
        """Reset all metric objects of all logical ranks."""
        for _ in self._each((*self.hosted, NOWHERE)):
            self._states.reset()

    # ---------------------------------------------------------------- checkpoints

    def pause(self, evaluating: bool) -> None:
        """Say that an evaluation begins or has ended."""
        self._updated = {rank: self.objects.updated() for rank in self._each()} if evaluating else None

    def state(self, *, objects: bool = True) -> dict[str, Any]:
        """Return what each logical rank here has for the epoch so far, under ``ranks``."""
        found = {}
        for rank in self._each():
            self._updated_before = None if self._updated is None else self._updated[rank]
            found[rank] = super().state(objects=objects)
        self._updated_before = None
        return {"ranks": found}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` has returned, here or elsewhere, for the logical ranks that are here."""
        for rank in self._each():
            if rank in state["ranks"]:
                super().restore(state["ranks"][rank])


def _counting(rank: int, value: T) -> T:
    """Return what one logical rank contributes without what hooks have logged, unless it is the first."""
    if rank == 0 or not isinstance(value, tuple):
        return value
    return tuple(_by_each(item) if isinstance(item, list) else item for item in value)  # type: ignore[return-value]


def _by_each(items: list[Any]) -> list[Any]:
    return [item for item in items if not isinstance(item, Record) or item.hook in _BY_EACH]


def _taken(metric: Any) -> Any:
    """Return what a metric object holds; torchmetrics' as it is, others' copied."""
    if is_synced(metric):
        return dict(metric.metric_state), metric._update_count, metric._computed
    return {
        key: [part.clone() for part in value] if isinstance(value, list) else value.clone()
        for key, value in metric.metric_state.items()
    }


def _put(metric: Any, saved: Any) -> None:
    """Let a metric object hold what `_taken` returned; as new for None."""
    if saved is None or not is_synced(metric):
        metric.reset()
        if saved is not None:
            metric.merge_state(saved)
        return
    state, updates, computed = saved
    for key, value in state.items():
        setattr(metric, key, value)
    metric._update_count, metric._computed = updates, computed
