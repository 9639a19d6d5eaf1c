"""Reserves room for a whole gang of workers at once, and says why when there is none.

Either all workers get their place or none does. A request that can never be met is refused at once, with the
arithmetic per node, unless an autoscaler might add nodes; one that has to wait for others says so in the log
and stops after the spec's start timeout. Whether a request fits is decided by pure functions over what nodes
have. A placement group that was given from outside is checked and used, and never removed.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster import session
from cluster.errors import PlacementError
from cluster.spec import GroupSpec

logger = logging.getLogger("cluster")

_GRAIN = 10_000  # Ray counts resources in ten-thousandths
_AT_ONCE_S = 0.2
_SAY_AFTER_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """What one node has and what of it is free, by Ray's resource names."""

    address: str
    total: Mapping[str, float]
    free: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class BundlePlan:
    """The bundles to reserve, all equal.

    Attributes:
        bundle: what each bundle holds.
        count: how many bundles.
        strategy: Ray's placement strategy for them.
        bundle_of_worker: for each worker, in order of creation, the index of its bundle.
    """

    bundle: Mapping[str, float]
    count: int
    strategy: str
    bundle_of_worker: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """Room in the cluster: a placement group, and for each worker the bundle to start it in."""

    placement_group: Any
    bundle_of_worker: tuple[int, ...]
    ours: bool

    def remove(self) -> None:
        """Give the room back, unless the placement group came from outside."""
        import ray

        if self.ours and ray.is_initialized():
            ray.util.remove_placement_group(self.placement_group)


def plan_bundles(spec: GroupSpec) -> BundlePlan:
    """What to reserve for a spec: a bundle per node when `num_nodes` is given, else a bundle per worker."""
    one = dict(spec.resources_per_worker)
    if spec.num_nodes is None:
        return BundlePlan(
            bundle=one,
            count=spec.num_workers,
            strategy=spec.placement_strategy,
            bundle_of_worker=tuple(range(spec.num_workers)),
        )
    per_node = spec.num_workers // spec.num_nodes
    return BundlePlan(
        bundle={name: round(amount * per_node * _GRAIN) / _GRAIN for name, amount in one.items()},
        count=spec.num_nodes,
        strategy="STRICT_SPREAD",
        bundle_of_worker=tuple(worker // per_node for worker in range(spec.num_workers)),
    )


def capacity(bundle: Mapping[str, float], has: Mapping[str, float]) -> int:
    """How many bundles fit into what a node has."""
    return min(
        math.floor(round(has.get(name, 0.0) * _GRAIN) / round(need * _GRAIN)) for name, need in bundle.items()
    )


def fits(plan: BundlePlan, offers: Sequence[Mapping[str, float]]) -> bool:
    """Whether the plan fits into these nodes, given what each of them offers."""
    room = [capacity(plan.bundle, offer) for offer in offers]
    if plan.strategy == "STRICT_PACK":
        return max(room, default=0) >= plan.count
    if plan.strategy == "STRICT_SPREAD":
        return sum(count > 0 for count in room) >= plan.count
    return sum(room) >= plan.count


def describe_request(plan: BundlePlan) -> str:
    """The request in words, such as `2 x {CPU: 1, GPU: 1} (PACK)`."""
    return f"{plan.count} x {_amounts(plan.bundle, plan.bundle)} ({plan.strategy})"


def describe_nodes(plan: BundlePlan, nodes: Sequence[Node]) -> str:
    """What the nodes have of the resources asked for: total, free, and how many bundles that makes."""
    if not nodes:
        return "  no node is alive"
    return "\n".join(
        f"  node {node.address}: {_amounts(node.total, plan.bundle)}, "
        f"free {_amounts(node.free, plan.bundle)}, "
        f"room for {capacity(plan.bundle, node.total)}, now {capacity(plan.bundle, node.free)}"
        for node in nodes
    )


def list_nodes() -> list[Node]:
    """The nodes that are alive, in order of address. What is free may lag behind by a moment."""
    import ray

    free = _free_by_node()
    alive = [node for node in ray.nodes() if node["Alive"]]
    return sorted(
        (
            Node(
                address=node["NodeManagerAddress"],
                total=node["Resources"],
                free=free.get(node["NodeID"], node["Resources"]),
            )
            for node in alive
        ),
        key=lambda node: node.address,
    )


def reserve(spec: GroupSpec, deadline: float, make_room: Callable[[], None] | None = None) -> Reservation:
    """Reserve room for all workers of a spec; blocks until it is there.

    Args:
        spec: what to reserve.
        deadline: on the clock of `time.monotonic`.
        make_room: called once if there is no room at once, to free what the caller can do without.

    Raises:
        PlacementError: it can never fit, or there was no room by the deadline.
    """
    if spec.placement_group is not None:
        return _use_given(spec, deadline)
    import ray

    plan = plan_bundles(spec)
    nodes = list_nodes()
    if not fits(plan, [node.total for node in nodes]) and not session.may_grow():
        raise PlacementError(
            f"The cluster can never hold this group: asked {describe_request(plan)}, there is\n"
            f"{describe_nodes(plan, nodes)}\n{_advice(spec)}"
        )
    group = ray.util.placement_group([dict(plan.bundle)] * plan.count, strategy=plan.strategy)
    reservation = Reservation(placement_group=group, bundle_of_worker=plan.bundle_of_worker, ours=True)
    try:
        ready = [group.ready()]
        if not _wait(ready, min(_AT_ONCE_S, deadline - time.monotonic())):
            if make_room is not None:
                make_room()
            _wait_long(ready, plan, spec, deadline)
    except BaseException:
        reservation.remove()
        raise
    return reservation


def _wait(ready: list[Any], seconds: float) -> bool:
    import ray

    return bool(ray.wait(ready, timeout=max(0.0, seconds))[0])


def _wait_long(ready: list[Any], plan: BundlePlan, spec: GroupSpec, deadline: float) -> None:
    """Wait to the deadline, and say so after a moment."""
    if _wait(ready, min(_SAY_AFTER_S, deadline - time.monotonic())):
        return
    nodes = list_nodes()
    reason = _reason(plan, nodes)
    logger.warning(
        "Waiting %s: asked %s, there is\n%s", reason, describe_request(plan), describe_nodes(plan, nodes)
    )
    if not _wait(ready, deadline - time.monotonic()):
        raise PlacementError(
            f"No room for this group after {spec.start_timeout_s:g} s of waiting {reason}: "
            f"asked {describe_request(plan)}, there is\n{describe_nodes(plan, list_nodes())}\n"
            "Free what others hold, add nodes, raise start_timeout_s, or: " + _advice(spec)
        )


def _reason(plan: BundlePlan, nodes: Sequence[Node]) -> str:
    """What a plan that is not placed yet is waiting for."""
    if not fits(plan, [node.total for node in nodes]):
        return "for nodes to be added, as the present ones cannot hold it"
    if not fits(plan, [node.free for node in nodes]):
        return "for others to free what they hold"
    return "for Ray to reserve what is free"


def _use_given(spec: GroupSpec, deadline: float) -> Reservation:
    """Check a placement group from outside and take its last bundles."""
    group, need = spec.placement_group, dict(spec.resources_per_worker)
    bundles = list(group.bundle_specs)
    offset = len(bundles) - spec.num_workers
    small = [b for b in bundles[max(0, offset) :] if capacity(need, b) < 1]
    if offset < 0 or small:
        raise PlacementError(
            f"The placement group given does not hold this group: asked {spec.num_workers} bundles of "
            f"{_amounts(need, need)} at its end, it has {bundles}. "
            "Make it with one such bundle for each worker, or ask for fewer workers or resources."
        )
    if not _wait([group.ready()], deadline - time.monotonic()):
        raise PlacementError(
            f"The placement group given was not ready after {spec.start_timeout_s:g} s: it has {bundles}. "
            "Wait for it before it is used, or raise start_timeout_s."
        )
    return Reservation(
        placement_group=group, bundle_of_worker=tuple(range(offset, offset + spec.num_workers)), ours=False
    )


def _advice(spec: GroupSpec) -> str:
    where = "" if spec.num_nodes is None else f" on fewer than {spec.num_nodes} nodes,"
    return f"Ask for fewer than {spec.num_workers} workers,{where} or for less in resources_per_worker."


def _amounts(has: Mapping[str, float], names: Mapping[str, float]) -> str:
    return "{" + ", ".join(f"{name}: {has.get(name, 0.0):g}" for name in names) + "}"


def _free_by_node() -> Mapping[str, Mapping[str, float]]:
    """Free resources by node id; empty where this version of Ray does not tell."""
    try:
        from ray._private.state import available_resources_per_node
    except ImportError:
        return {}
    return dict(available_resources_per_node())
