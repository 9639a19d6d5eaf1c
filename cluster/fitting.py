"""Whether a gang fits into a cluster, and how that is told. Pure.

A `BundlePlan` is what a `GroupSpec` asks of Ray's placement groups. What nodes have is counted as Ray counts
it, in ten-thousandths; labels and strategies mean what they mean to Ray.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cluster.labels import Selector, matches
from cluster.spec import GroupSpec

_GRAIN = 10_000  # Ray counts resources in ten-thousandths


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """What one node has and what of it is free, by Ray's resource names, and the labels that it carries."""

    address: str
    total: Mapping[str, float]
    free: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class BundlePlan:
    """The bundles to reserve, all of the same size.

    Attributes:
        bundle: what each bundle holds.
        count: how many bundles.
        strategy: Ray's placement strategy for them.
        bundle_of_worker: for each worker, in order of creation, the index of its bundle.
        selectors: for each bundle which nodes may hold it; empty: any.
    """

    bundle: Mapping[str, float]
    count: int
    strategy: str
    bundle_of_worker: tuple[int, ...]
    selectors: tuple[Selector, ...] = ()


def plan_bundles(spec: GroupSpec) -> BundlePlan:
    """What to reserve for a spec: a bundle per node when `num_nodes` is given, else a bundle per worker."""
    one = dict(spec.resources_per_worker)
    if spec.num_nodes is None:
        return BundlePlan(
            bundle=one,
            count=spec.num_workers,
            strategy=spec.placement_strategy,
            bundle_of_worker=tuple(range(spec.num_workers)),
            selectors=spec.label_selectors,
        )
    per_node = spec.num_workers // spec.num_nodes
    return BundlePlan(
        bundle={name: round(amount * per_node * _GRAIN) / _GRAIN for name, amount in one.items()},
        count=spec.num_nodes,
        strategy="STRICT_SPREAD",
        bundle_of_worker=tuple(worker // per_node for worker in range(spec.num_workers)),
        selectors=spec.label_selectors[: spec.num_nodes],
    )


def capacity(bundle: Mapping[str, float], has: Mapping[str, float]) -> int:
    """How many bundles fit into what a node has."""
    return min(
        math.floor(round(has.get(name, 0.0) * _GRAIN) / round(need * _GRAIN)) for name, need in bundle.items()
    )


def fits(
    plan: BundlePlan, offers: Sequence[Mapping[str, float]], labels: Sequence[Mapping[str, str]] = ()
) -> bool:
    """Whether the plan fits into these nodes.

    Args:
        plan: what is to be placed.
        offers: what each node offers.
        labels: the labels that each node carries; may be left out for a plan without selectors.
    """
    room = [capacity(plan.bundle, offer) for offer in offers]
    wanted = plan.selectors or ((),) * plan.count
    allowed = {
        selector: [
            not selector or (bool(labels) and matches(selector, labels[index])) for index in range(len(room))
        ]
        for selector in set(wanted)
    }
    if plan.strategy == "STRICT_PACK":
        return any(
            room[index] >= plan.count and all(nodes[index] for nodes in allowed.values())
            for index in range(len(room))
        )
    if plan.strategy == "STRICT_SPREAD":
        room = [min(count, 1) for count in room]
    if len(allowed) == 1:
        (nodes,) = allowed.values()
        return sum(count for count, may in zip(room, nodes, strict=True) if may) >= plan.count
    return _each_finds_a_place(wanted, allowed, room)


def _each_finds_a_place(
    wanted: Sequence[Selector], allowed: Mapping[Selector, Sequence[bool]], room: Sequence[int]
) -> bool:
    """Whether bundles with different selectors fit together: a matching by augmenting paths (Kuhn 1955)."""
    held: list[list[Selector]] = [[] for _ in room]

    def place(selector: Selector, visited: set[int]) -> bool:
        for node, may in enumerate(allowed[selector]):
            if not may or node in visited or not room[node]:
                continue
            visited.add(node)
            if len(held[node]) < room[node]:
                held[node].append(selector)
                return True
            for index, other in enumerate(held[node]):
                if other != selector and place(other, visited):
                    held[node][index] = selector
                    return True
        return False

    return all(place(selector, set()) for selector in wanted)


def describe_request(plan: BundlePlan) -> str:
    """The request in words, such as `2 x {CPU: 1, GPU: 1} (PACK)`."""
    asked = f"{plan.count} x {say_amounts(plan.bundle, plan.bundle)} ({plan.strategy})"
    if not any(plan.selectors):
        return asked
    counted = Counter(plan.selectors)
    parts = [
        f"{'all' if times == plan.count else times} on nodes with {_say(selector)}"
        for selector, times in counted.items()
        if selector
    ]
    return f"{asked}, {', '.join(parts)}"


def describe_nodes(plan: BundlePlan, nodes: Sequence[Node]) -> str:
    """What the nodes have of the resources and labels asked for: total, free, and how many bundles that
    makes.
    """
    if not nodes:
        return "  no node is alive"
    return "\n".join(
        f"  node {node.address}: {say_amounts(node.total, plan.bundle)}, "
        f"free {say_amounts(node.free, plan.bundle)}, "
        f"room for {capacity(plan.bundle, node.total)}, now {capacity(plan.bundle, node.free)}"
        + _say_labels(plan, node)
        for node in nodes
    )


def _say_labels(plan: BundlePlan, node: Node) -> str:
    """What of the labels asked for a node carries, and that it does not fit if so."""
    if not any(plan.selectors):
        return ""
    asked = sorted({label for selector in plan.selectors for label, _ in selector})
    carried = ", ".join(f"{label}={node.labels.get(label, '(none)')}" for label in asked)
    fitting = any(matches(selector, node.labels) for selector in plan.selectors)
    return f", {carried}" + ("" if fitting else ": not wanted")


def _say(selector: Selector) -> str:
    return " and ".join(f"{label}={condition}" for label, condition in selector)


def say_amounts(has: Mapping[str, float], names: Mapping[str, float]) -> str:
    """What is there of the resources named, such as `{CPU: 1, GPU: 0}`."""
    return "{" + ", ".join(f"{name}: {has.get(name, 0.0):g}" for name in names) + "}"
