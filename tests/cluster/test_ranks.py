"""Who gets which rank: `assign_ranks`."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import StartError
from cluster.ranks import Place, assign_ranks, choose_device

NODES = [("a", "10.0.0.9"), ("b", "10.0.0.10"), ("c", "10.0.0.9")]


@st.composite
def placements(draw: st.DrawFn) -> list[Place]:
    """One to eight workers on up to three nodes, two of which share an address, each with a GPU of its node
    or none.
    """
    gpus = draw(st.booleans())
    nodes = draw(st.lists(st.sampled_from(NODES), min_size=1, max_size=8))
    return [
        Place(node_id=node, node_ip=ip, pid=100 + i, gpu_ids=(str(i),) if gpus else ())
        for i, (node, ip) in enumerate(nodes)
    ]


@given(placements())
def test_ranks_are_complete_and_local_ranks_nest(places: list[Place]) -> None:
    """Ranks are 0 to n - 1, nodes are contiguous, and each node's local ranks are 0 to its size - 1."""
    workers = [info for _, info in assign_ranks(places)]
    assert [worker.rank for worker in workers] == list(range(len(places)))
    assert [worker.node_rank for worker in workers] == sorted(worker.node_rank for worker in workers)
    for node in {worker.node_id for worker in workers}:
        local = [worker for worker in workers if worker.node_id == node]
        assert [worker.local_rank for worker in local] == list(range(len(local)))
        assert {worker.local_world_size for worker in local} == {len(local)}
    assert {worker.num_nodes for worker in workers} == {len({place.node_id for place in places})}


@given(placements(), st.randoms(use_true_random=False))
def test_ranks_do_not_depend_on_the_order_of_arrival(places: list[Place], shuffle: random.Random) -> None:
    """Workers that differ in node or GPU get the same rank however they arrive."""
    distinct = list({(place.node_id, place.gpu_ids): place for place in places}.values())
    shuffled = shuffle.sample(distinct, len(distinct))
    ranks = {info.pid: info.rank for _, info in assign_ranks(distinct)}
    assert {info.pid: info.rank for _, info in assign_ranks(shuffled)} == ranks


def test_nodes_are_ordered_by_number_not_by_text() -> None:
    """10.0.0.9 comes before 10.0.0.10, and GPU 2 before GPU 10."""
    places = [
        Place(node_id="x", node_ip="10.0.0.10", pid=1),
        Place(node_id="y", node_ip="10.0.0.9", pid=2, gpu_ids=("10",)),
        Place(node_id="y", node_ip="10.0.0.9", pid=3, gpu_ids=("2",)),
    ]
    assert [info.pid for _, info in assign_ranks(places)] == [3, 2, 1]


def test_every_worker_of_a_node_sees_all_its_gpus_and_uses_its_own() -> None:
    """The device counts in the list of all GPUs that the group has on the node, whatever their ids."""
    places = [
        Place(node_id="n", node_ip="10.0.0.1", pid=i, gpu_ids=(gpu,)) for i, gpu in enumerate(["7", "3"])
    ]
    workers = [info for _, info in assign_ranks(places)]
    assert [worker.visible_gpus for worker in workers] == [("3", "7"), ("3", "7")]
    assert [(worker.pid, worker.device) for worker in workers] == [(1, "cuda:0"), (0, "cuda:1")]


def test_a_shared_gpu_is_one_device() -> None:
    """Two workers with fractions of one GPU both use it."""
    places = [Place(node_id="n", node_ip="10.0.0.1", pid=i, gpu_ids=("0",)) for i in range(2)]
    assert [info.device for _, info in assign_ranks(places)] == ["cuda:0", "cuda:0"]


def test_a_gpu_that_is_not_visible_is_refused() -> None:
    """An assigned GPU that CUDA_VISIBLE_DEVICES leaves out is an error, not another device."""
    with pytest.raises(StartError, match="GPU 5"):
        choose_device(["5"], ["0", "1"])
    assert choose_device([], ["0"]) == "cpu"


@given(placements(), st.sampled_from("abc"))
def test_the_drivers_node_gets_the_first_ranks(places: list[Place], first: str) -> None:
    """If workers are on the driver's node, rank 0 is; the order of the others stays."""
    ranked = [info for _, info in assign_ranks(places, first=first)]
    plain = [info.pid for _, info in assign_ranks(places)]
    theirs = {place.pid for place in places if place.node_id == first}
    assert {info.pid for info in ranked[: len(theirs)]} == theirs
    rest = [info.pid for info in ranked if info.pid not in theirs]
    assert rest == [pid for pid in plain if pid not in theirs]


def test_a_worker_of_several_gpus_uses_the_first_of_them() -> None:
    """Ray lists the ids in no order: the one that comes first among the visible ones is taken."""
    assert choose_device(("3", "1"), ("0", "1", "2", "3")) == choose_device(("1", "3"), ("0", "1", "2", "3"))
    assert choose_device(("3", "1"), ("0", "1", "2", "3")) == "cuda:1"
