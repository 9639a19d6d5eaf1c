"""What a trial reserves, and whether the cluster can ever hold it.

A trial in one process reserves one bundle. A trial on workers reserves a bundle for each of them, and nothing
for the process that leads them: so the workers find their room inside the trial's own placement group, and no
two trials can wait for each other's room. What can never fit is refused with the arithmetic for each node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.fitting import BundlePlan, describe_nodes, describe_request, fits
from cluster.placement import list_nodes
from cluster.session import may_grow
from cluster.spec import GroupSpec
from orchestrator.errors import MisconfigurationError

_FORMS = "Use a dictionary like {'CPU': 1}, or a ray.train.ScalingConfig."
_UPPER = {"cpu": "CPU", "gpu": "GPU"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRoom:
    """What one trial reserves.

    Attributes:
        own: The bundle of the trial's own process; empty where workers train.
        workers: A bundle for each worker.
        strategy: How Ray places the bundles.
    """

    own: Mapping[str, float]
    workers: tuple[Mapping[str, float], ...] = ()
    strategy: str = "PACK"

    @property
    def bundles(self) -> list[dict[str, float]]:
        """All bundles, as a `PlacementGroupFactory` takes them; the first may be empty."""
        return [dict(self.own), *map(dict, self.workers)]

    @property
    def threads(self) -> int:
        """Threads of torch's kernels in a trial that trains in its own process."""
        return max(1, int(self.own.get("CPU", 1)))


def parse_resources(given: Any) -> TrialRoom:
    """Return what a trial reserves; one CPU when nothing is given.

    Args:
        given: A dictionary, a `ray.train.ScalingConfig`, or a `ray.tune.PlacementGroupFactory` whose first
            bundle is the trial's own.

    Raises:
        MisconfigurationError: It is neither, or asks for nothing or for less than nothing.
    """
    if given is None:
        return TrialRoom(own={"CPU": 1.0})
    if isinstance(given, Mapping):
        own = _amounts(given)
        if not any(own.values()):
            raise MisconfigurationError(
                f"Sweep(resources_per_trial={dict(given)!r}) reserves nothing, so Ray would start "
                "all trials at "
                "once. Reserve at least a part of a CPU."
            )
        return TrialRoom(own=own)
    if hasattr(given, "num_workers"):
        spec = GroupSpec.from_scaling_config(given)
        return TrialRoom(
            own={},
            workers=(dict(spec.resources_per_worker),) * spec.num_workers,
            strategy=spec.placement_strategy,
        )
    if hasattr(given, "bundles") and hasattr(given, "strategy"):
        own, *workers = given.bundles if not given.head_bundle_is_empty else [{}, *given.bundles]
        return TrialRoom(own=_amounts(own), workers=tuple(map(_amounts, workers)), strategy=given.strategy)
    raise MisconfigurationError(f"Sweep(resources_per_trial={given!r}). {_FORMS}")


def room_of(spec: GroupSpec | None, threads: int | None = None, *, gpus: float = 0.0) -> TrialRoom:
    """Return what a trial reserves whose Trainer runs on such a group, or in its own process on `gpus` GPUs
    with so many threads.
    """
    if spec is None:
        own = {"CPU": float(threads or 1)}
        return TrialRoom(own={**own, "GPU": gpus} if gpus else own)
    return TrialRoom(
        own={},
        workers=(dict(spec.resources_per_worker),) * spec.num_workers,
        strategy=spec.placement_strategy,
    )


def factory(room: TrialRoom) -> Any:
    """Return what Ray Tune reserves for each trial."""
    from ray.tune import PlacementGroupFactory

    return PlacementGroupFactory(room.bundles, strategy=room.strategy)


def check_room(room: TrialRoom) -> None:
    """Refuse trials that can never be placed in the cluster that this process is connected to.

    Raises:
        MisconfigurationError: One trial is more than all nodes could hold if they were free.
    """
    if may_grow():
        return
    nodes = list_nodes()
    plans = [plan for plan in (_plan((room.own,), room.strategy), _plan(room.workers, room.strategy)) if plan]
    for plan in plans:
        if not fits(plan, [node.total for node in nodes], [node.labels for node in nodes]):
            asked = ", ".join(f"{amount * plan.count:g} {name}" for name, amount in plan.bundle.items())
            raise MisconfigurationError(
                f"Sweep(resources_per_trial=...): no trial can ever fit: one needs {asked}, as "
                f"{describe_request(plan)}, there is\n{describe_nodes(plan, nodes)}\n"
                "Ask for less, or add nodes."
            )


def _plan(bundles: Sequence[Mapping[str, float]], strategy: str) -> BundlePlan | None:
    wanted = [{name: amount for name, amount in bundle.items() if amount} for bundle in bundles]
    if not any(wanted):
        return None
    return BundlePlan(
        bundle=wanted[0], count=len(wanted), strategy=strategy, bundle_of_worker=tuple(range(len(wanted)))
    )


def _amounts(given: Mapping[str, Any]) -> dict[str, float]:
    amounts = {}
    for name, amount in given.items():
        if not isinstance(name, str) or isinstance(amount, bool) or not isinstance(amount, (int, float)):
            raise MisconfigurationError(f"Sweep(resources_per_trial={dict(given)!r}). {_FORMS}")
        if amount < 0:
            raise MisconfigurationError(
                f"Sweep(resources_per_trial=...): {amount:g} {name} is less than nothing. Use 0 or more."
            )
        amounts[_UPPER.get(name, name)] = float(amount)
    return amounts
