"""Gives placed workers their ranks. Pure: the same placement always gets the same ranks.

Ranks are ordered by node (the driver's first, then by address, then by id), within a node by GPU, then by
creation. So rank 0, which writes the files, shares the driver's disk whenever a worker does. Nodes are told
apart by Ray's node id, not by address, so several nodes on one machine stay several. Every worker of a node
sees the GPUs of all its workers, in the same order, and uses the one that Ray gave it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cluster.errors import StartError
from cluster.preflight import Report


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where one worker came up: its node, its process, and the ids of the GPUs that Ray assigned to it.

    Attributes:
        report: the versions that it runs, to be compared with the driver's.
    """

    node_id: str
    node_ip: str
    pid: int
    gpu_ids: tuple[str, ...] = ()
    report: Report | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerInfo:
    """One worker of a group.

    Attributes:
        rank: 0 to world_size - 1; local_rank counts within the node, node_rank counts the nodes.
        device: "cpu", or "cuda:i" with i counted in `visible_gpus`.
        visible_gpus: the GPU ids of all the group's workers on this node, as for CUDA_VISIBLE_DEVICES.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    node_rank: int
    num_nodes: int
    node_id: str
    node_ip: str
    pid: int
    device: str
    visible_gpus: tuple[str, ...]


def assign_ranks(places: Sequence[Place], first: str = "") -> list[tuple[int, WorkerInfo]]:
    """Rank the workers.

    Args:
        places: one per worker, in the order of creation.
        first: the id of the node that gets the first ranks, if workers are there: the driver's.

    Returns:
        In rank order: the index into `places`, and what that worker is.
    """
    order = sorted(
        range(len(places)),
        key=lambda i: (
            places[i].node_id != first,
            _node_key(places[i]),
            _gpu_key(places[i].gpu_ids),
            i,
        ),
    )
    nodes: dict[str, list[int]] = {}
    for index in order:
        nodes.setdefault(places[index].node_id, []).append(index)
    ranked: list[tuple[int, WorkerInfo]] = []
    for node_rank, members in enumerate(nodes.values()):
        gpus = {gpu for index in members for gpu in places[index].gpu_ids}
        visible = tuple(sorted(gpus, key=lambda gpu: _gpu_key((gpu,))))
        for local_rank, index in enumerate(members):
            place = places[index]
            info = WorkerInfo(
                rank=len(ranked),
                world_size=len(places),
                local_rank=local_rank,
                local_world_size=len(members),
                node_rank=node_rank,
                num_nodes=len(nodes),
                node_id=place.node_id,
                node_ip=place.node_ip,
                pid=place.pid,
                device=choose_device(place.gpu_ids, visible),
                visible_gpus=visible,
            )
            ranked.append((index, info))
    return ranked


def replace_worker(workers: Sequence[WorkerInfo], rank: int, place: Place) -> WorkerInfo:
    """Return what the worker at `place` is, that takes the rank of one that was lost; all others stay.

    On a node that has workers it gets the least local rank that is free; on a node that has none it keeps the
    node rank of the lost one if that is free now, else it counts on.

    Args:
        workers: all workers as they were, the lost one included, in rank order.
        rank: the lost one's.
        place: where its replacement came up.
    """
    others = [worker for worker in workers if worker.rank != rank]
    here = [worker for worker in others if worker.node_id == place.node_id]
    taken = {worker.local_rank for worker in here}
    node_ranks = {worker.node_rank for worker in others}
    lost = workers[rank]
    if here:
        node_rank = here[0].node_rank
    elif lost.node_rank not in node_ranks:
        node_rank = lost.node_rank
    else:
        node_rank = max(node_ranks) + 1
    shared = {gpu for worker in here for gpu in worker.visible_gpus} | set(place.gpu_ids)
    visible = tuple(sorted(shared, key=lambda gpu: _gpu_key((gpu,)))) if place.gpu_ids else ()
    return replace(
        lost,
        local_rank=next(local for local in range(len(workers)) if local not in taken),
        local_world_size=len(here) + 1,
        node_rank=node_rank,
        num_nodes=len(node_ranks | {node_rank}),
        node_id=place.node_id,
        node_ip=place.node_ip,
        pid=place.pid,
        device=choose_device(place.gpu_ids, visible),
        visible_gpus=visible,
    )


def choose_device(own: Sequence[str], visible: Sequence[str]) -> str:
    """A worker's torch device: "cpu" without a GPU, else "cuda:i" by the place in `visible` of the first of
    its ids, which Ray lists in no order.
    """
    if not own:
        return "cpu"
    missing = [gpu for gpu in own if gpu not in visible]
    if missing:
        raise StartError(
            f"Ray assigned GPU {missing[0]} but CUDA_VISIBLE_DEVICES is {','.join(visible)!r}. "
            "Leave CUDA_VISIBLE_DEVICES to Ray, or list the assigned GPU in it."
        )
    return f"cuda:{min(list(visible).index(gpu) for gpu in own)}"


def _node_key(place: Place) -> tuple[int, int, str]:
    address = ipaddress.ip_address(place.node_ip)
    return (address.version, int(address), place.node_id)


def _gpu_key(ids: Sequence[str]) -> tuple[tuple[int, int, str], ...]:
    """Ids that are numbers in number order, before those that are not (UUIDs of MIG slices)."""
    return tuple(sorted((0, int(gpu), "") if gpu.isdigit() else (1, 0, gpu) for gpu in ids))
