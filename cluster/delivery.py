"""Brings the user's source files to the workers that do not have them, once per node and set of files.

The driver's own node is never asked: its workers import the driver's files. One worker of each other node
says whether it would import all of them as they are here; where not, that node's workers get them all. Asking
costs one call per node, and nothing while the files stay as they are.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

from cluster import sources
from cluster.actors import collect
from cluster.ranks import WorkerInfo

_log = logging.getLogger("cluster")


class Delivery:
    """What one group's workers have been given."""

    def __init__(self) -> None:
        self._digest = ""

    def bring(
        self, actors: Sequence[Any], workers: Sequence[WorkerInfo], timeout_s: float, *, new: bool = False
    ) -> None:
        """Make sure that these workers import what this process does; say in the log what that took.

        Args:
            actors: of all ranks.
            workers: those meant.
            timeout_s: seconds for all of it.
            new: they are new, so they may lack what others have been given.

        Raises:
            SerializationError: the source is too large to be sent.
            StartError: a worker did not answer in time.
        """
        import ray

        here = ray.get_runtime_context().get_node_id()
        away = [worker for worker in workers if worker.node_id != here]
        if not away:
            return
        began = time.monotonic()
        bundle = sources.collect()
        if bundle.digest == self._digest and not new:
            return
        nodes = _send(actors, away, bundle, began + timeout_s)
        self._digest = bundle.digest
        if nodes:
            _log.info("%s in %.2f s.", bundle.describe(nodes), time.monotonic() - began)


def _send(
    actors: Sequence[Any], workers: Sequence[WorkerInfo], bundle: sources.Bundle, deadline: float
) -> list[str]:
    """Give the bundle to the nodes without it; return their addresses, sorted."""
    import ray

    first = list({worker.node_id: worker for worker in reversed(workers)}.values())
    wanted = sources.digests(bundle)
    asked = [_lane(actors[worker.rank].lacks).remote(wanted) for worker in first]
    names = [f"node {worker.node_ip}" for worker in first]
    answers = collect(asked, names=names, doing="say which modules it has", deadline=deadline)
    without = {worker.node_id for worker, lacks in zip(first, answers, strict=True) if lacks}
    receivers = [worker for worker in workers if worker.node_id in without]
    if receivers:
        stored = ray.put(bundle)
        calls = [_lane(actors[worker.rank].take_sources).remote(stored) for worker in receivers]
        names = [f"rank {worker.rank} on node {worker.node_ip}" for worker in receivers]
        collect(calls, names=names, doing="take the program's modules", deadline=deadline)
    return sorted({worker.node_ip for worker in receivers})


def _lane(method: Any) -> Any:
    """The method in a thread of its own, as the callable's may be busy."""
    return method.options(concurrency_group="control")
