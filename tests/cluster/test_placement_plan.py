"""Whether a request fits, and how that is said: `fitting`."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import GroupSpec
from cluster.fitting import (
    BundlePlan,
    Node,
    capacity,
    describe_nodes,
    describe_request,
    fits,
    plan_bundles,
)
from cluster.labels import matches


def test_without_num_nodes_each_worker_has_a_bundle() -> None:
    """Workers are placed one by one, as the strategy says."""
    plan = plan_bundles(GroupSpec.create(3, placement_strategy="SPREAD"))
    assert (plan.bundle, plan.count, plan.strategy) == ({"CPU": 1.0}, 3, "SPREAD")
    assert plan.bundle_of_worker == (0, 1, 2)


def test_with_num_nodes_each_node_has_a_bundle_for_its_workers() -> None:
    """num_nodes puts exactly as many workers on each of that many distinct nodes."""
    plan = plan_bundles(GroupSpec.create(4, num_nodes=2, resources_per_worker={"CPU": 0.1, "GPU": 1}))
    assert (plan.bundle, plan.count, plan.strategy) == ({"CPU": 0.2, "GPU": 2.0}, 2, "STRICT_SPREAD")
    assert plan.bundle_of_worker == (0, 0, 1, 1)


@pytest.mark.parametrize(
    ("need", "has", "times"),
    [
        ({"CPU": 0.1}, {"CPU": 0.3}, 3),
        ({"CPU": 0.5}, {"CPU": 2.0}, 4),
        ({"CPU": 1.0, "GPU": 1.0}, {"CPU": 8.0, "GPU": 2.0}, 2),
        ({"GPU": 1.0}, {"CPU": 8.0}, 0),
    ],
)
def test_capacity_counts_in_rays_grain(need: dict[str, float], has: dict[str, float], times: int) -> None:
    """How often a bundle fits is not blurred by binary fractions, and the scarcest resource decides."""
    assert capacity(need, has) == times


@given(
    st.lists(st.tuples(st.integers(0, 4), st.sampled_from("ab")), min_size=1, max_size=4),
    st.lists(st.sampled_from(["", "a", "b", "!a", "in(a, b)"]), min_size=1, max_size=6),
    st.integers(1, 2),
    st.sampled_from(["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]),
)
def test_fits_agrees_with_trying_every_placement(
    nodes: list[tuple[int, str]], conditions: list[str], need: int, strategy: str
) -> None:
    """The rule gives the same answer as trying all ways to put the bundles on the nodes, labels included."""
    selectors = tuple((("zone", condition),) if condition else () for condition in conditions)
    count = len(conditions)
    plan = BundlePlan(
        bundle={"CPU": need}, count=count, strategy=strategy, bundle_of_worker=(), selectors=selectors
    )
    cpus, labels = [amount for amount, _ in nodes], [{"zone": zone} for _, zone in nodes]

    def allowed(places: tuple[int, ...]) -> bool:
        if strategy == "STRICT_PACK" and len(set(places)) > 1:
            return False
        if strategy == "STRICT_SPREAD" and len(set(places)) < count:
            return False
        return all(places.count(node) * need <= cpus[node] for node in places) and all(
            matches(selector, labels[node]) for selector, node in zip(selectors, places, strict=True)
        )

    tried = any(allowed(places) for places in itertools.product(range(len(nodes)), repeat=count))
    assert fits(plan, [{"CPU": float(amount)} for amount in cpus], labels) == tried


def test_the_arithmetic_is_told_per_node() -> None:
    """A reader sees what was asked, what each node has, what is free, and how often it fits."""
    plan = plan_bundles(GroupSpec.create(3, resources_per_worker={"CPU": 2, "GPU": 1}))
    node = Node(address="10.0.0.1", total={"CPU": 4.0, "GPU": 8.0}, free={"CPU": 1.0, "GPU": 8.0})
    assert describe_request(plan) == "3 x {CPU: 2, GPU: 1} (PACK)"
    assert describe_nodes(plan, [node]) == (
        "  node 10.0.0.1: {CPU: 4, GPU: 8}, free {CPU: 1, GPU: 8}, room for 2, now 0"
    )


def test_labels_are_told_with_the_arithmetic() -> None:
    """A reader sees which labels were asked for, and which nodes do not carry them."""
    plan = plan_bundles(GroupSpec.create(2, label_selector={"zone": "a"}))
    nodes = [
        Node(address=address, total={"CPU": 4.0}, free={"CPU": 4.0}, labels=labels)
        for address, labels in (("10.0.0.1", {"zone": "a"}), ("10.0.0.2", {}))
    ]
    assert describe_request(plan) == "2 x {CPU: 1} (PACK), all on nodes with zone=a"
    assert describe_nodes(plan, nodes).splitlines() == [
        "  node 10.0.0.1: {CPU: 4}, free {CPU: 4}, room for 4, now 4, zone=a",
        "  node 10.0.0.2: {CPU: 4}, free {CPU: 4}, room for 4, now 4, zone=(none): not wanted",
    ]
    mixed = plan_bundles(GroupSpec.create(3, label_selector=[{"zone": "a"}, {"zone": "a"}, {}]))
    assert describe_request(mixed) == "3 x {CPU: 1} (PACK), 2 on nodes with zone=a"
