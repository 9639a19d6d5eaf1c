"""Reserves room for a whole gang of workers at once, and says why when there is none.

Either all workers get their place or none does. A request that can never be met is refused at once, with the
arithmetic per node, unless an autoscaler might add nodes; one that has to wait for others says so in the log
and stops after the spec's start timeout. A placement group that was given from outside is checked and used,
and never removed; so is the one that this process itself was started in by Ray Tune, because the room that a
trial has not reserved may never come.
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cluster import session
from cluster.errors import PlacementError
from cluster.fitting import (
    BundlePlan,
    Node,
    capacity,
    describe_nodes,
    describe_request,
    fits,
    plan_bundles,
    say_amounts,
)
from cluster.spec import GroupSpec

logger = logging.getLogger("cluster")

_AT_ONCE_S = 0.2
_SAY_AFTER_S = 3.0


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
                labels=node.get("Labels") or {},
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
    surrounding = _surrounding_trial()
    if surrounding is not None and spec.spares:
        raise PlacementError(
            f"spares={spec.spares} in a trial of Ray Tune: a trial has no room but what it has reserved, "
            "which its workers take. Leave spares out."
        )
    if spec.placement_group is not None:
        return _use_given(spec, deadline)
    if surrounding is not None:
        return _use_given(replace(spec, placement_group=surrounding), deadline, trial=True)
    import ray

    plan = plan_bundles(spec)
    nodes = list_nodes()
    if not session.may_grow():
        _refuse_impossible(spec, plan, nodes)
    group = ray.util.placement_group(
        [dict(plan.bundle)] * plan.count,
        strategy=plan.strategy,
        **({"bundle_label_selector": [dict(item) for item in plan.selectors]} if plan.selectors else {}),
    )
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


def _refuse_impossible(spec: GroupSpec, plan: BundlePlan, nodes: Sequence[Node]) -> None:
    """Raise if the nodes could not hold the group, spares included, even if all of them were free."""
    totals, labels = [node.total for node in nodes], [node.labels for node in nodes]
    if not fits(plan, totals, labels):
        raise PlacementError(
            f"The cluster can never hold this group: asked {describe_request(plan)}, there is\n"
            f"{describe_nodes(plan, nodes)}\n{_advice(spec)}"
        )
    if spec.spares:
        single = plan_bundles(replace(spec, num_nodes=None))
        everybody = replace(
            single,
            count=spec.num_workers + spec.spares,
            strategy="PACK",
            selectors=spec.label_selectors[:1] * (spec.num_workers + spec.spares),
        )
        if not fits(everybody, totals, labels):
            raise PlacementError(
                f"The cluster can hold this group but not its spares: asked {spec.num_workers} workers and "
                f"{spec.spares} spares, {describe_request(everybody)}, there is\n"
                f"{describe_nodes(everybody, nodes)}\nAsk for fewer spares, or: {_advice(spec)}"
            )


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
    labels = [node.labels for node in nodes]
    if not fits(plan, [node.total for node in nodes], labels):
        return "for nodes to be added, as the present ones cannot hold it"
    if not fits(plan, [node.free for node in nodes], labels):
        return "for others to free what they hold"
    return "for Ray to reserve what is free"


def _use_given(spec: GroupSpec, deadline: float, *, trial: bool = False) -> Reservation:
    """Check a placement group from outside and take its last bundles.

    Args:
        spec: what is asked for, with the placement group.
        deadline: on the clock of `time.monotonic`.
        trial: it is that of the Tune trial which this process runs, rather than an argument.
    """
    group, need = spec.placement_group, dict(spec.resources_per_worker)
    bundles = list(group.bundle_specs)
    offset = len(bundles) - spec.num_workers
    own = 1 if trial and _holds_a_bundle() else 0
    small = [b for b in bundles[max(0, offset) :] if capacity(need, b) < 1]
    if (offset < own or small) and trial:
        raise PlacementError(
            f"This trial of Ray Tune has not reserved room for its workers: asked {spec.num_workers} bundles "
            f"of {say_amounts(need, need)} beside its own, its placement group has {bundles}. Reserve them: "
            f"tune.with_resources(train, tune.PlacementGroupFactory([{{'CPU': 1}}] + [{need}] * "
            f"{spec.num_workers})), or use orchestrator.Sweep, which does."
        )
    if offset < 0 or small:
        raise PlacementError(
            f"The placement group given does not hold this group: asked {spec.num_workers} bundles of "
            f"{say_amounts(need, need)} at its end, it has {bundles}. "
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


def _surrounding_trial() -> Any:
    """Return the placement group of the Tune trial that this process runs; None outside of one."""
    import ray

    group = ray.util.get_current_placement_group()
    if group is None or "ray.tune" not in sys.modules:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of asking outside of a trial
        trial = sys.modules["ray.tune"].get_context().get_trial_id()
    return None if trial is None else group


def _holds_a_bundle() -> bool:
    """Whether this process itself occupies a bundle; a trial that asks for nothing occupies none."""
    import ray

    return any(amount > 0 for amount in ray.get_runtime_context().get_assigned_resources().values())


def _advice(spec: GroupSpec) -> str:
    where = "" if spec.num_nodes is None else f" on fewer than {spec.num_nodes} nodes,"
    return f"Ask for fewer than {spec.num_workers} workers,{where} or for less in resources_per_worker."


def _free_by_node() -> Mapping[str, Mapping[str, float]]:
    """Free resources by node id; empty where this version of Ray does not tell."""
    try:
        from ray._private.state import available_resources_per_node
    except ImportError:
        return {}
    return dict(available_resources_per_node())
