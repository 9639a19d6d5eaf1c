"""Whether a request fits, and how that is said: the pure half of `placement`."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import GroupSpec
from cluster.placement import (
    BundlePlan,
    Node,
    capacity,
    describe_nodes,
    describe_request,
    fits,
    plan_bundles,
)


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
    st.lists(st.integers(0, 4), min_size=1, max_size=4),
    st.integers(1, 6),
    st.integers(1, 2),
    st.sampled_from(["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]),
)
def test_fits_agrees_with_trying_every_placement(
    cpus: list[int], count: int, need: int, strategy: str
) -> None:
    """The rule gives the same answer as trying all ways to put the bundles on the nodes."""
    plan = BundlePlan(bundle={"CPU": need}, count=count, strategy=strategy, bundle_of_worker=())

    def allowed(nodes: tuple[int, ...]) -> bool:
        if strategy == "STRICT_PACK" and len(set(nodes)) > 1:
            return False
        if strategy == "STRICT_SPREAD" and len(set(nodes)) < count:
            return False
        return all(nodes.count(node) * need <= cpus[node] for node in nodes)

    tried = any(allowed(nodes) for nodes in itertools.product(range(len(cpus)), repeat=count))
    assert fits(plan, [{"CPU": float(amount)} for amount in cpus]) == tried


def test_the_arithmetic_is_told_per_node() -> None:
    """A reader sees what was asked, what each node has, what is free, and how often it fits."""
    plan = plan_bundles(GroupSpec.create(3, resources_per_worker={"CPU": 2, "GPU": 1}))
    node = Node(address="10.0.0.1", total={"CPU": 4.0, "GPU": 8.0}, free={"CPU": 1.0, "GPU": 8.0})
    assert describe_request(plan) == "3 x {CPU: 2, GPU: 1} (PACK)"
    assert describe_nodes(plan, [node]) == (
        "  node 10.0.0.1: {CPU: 4, GPU: 8}, free {CPU: 1, GPU: 8}, room for 2, now 0"
    )
