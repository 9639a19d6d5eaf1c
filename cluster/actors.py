"""Starts the actors of a group, asks all of them something at once, and ends them.

Whatever goes wrong with an actor while a group comes up is told as a `StartError` that names the worker;
Ray's own errors do not get out. `end` returns once the processes are gone, those that the workers started
included.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

from cluster import native_stack, preflight
from cluster.errors import ClusterError, StartError
from cluster.failure import explain_death
from cluster.placement import Reservation
from cluster.rank_state import RankState
from cluster.ranks import WorkerInfo
from cluster.reaping import wait_gone
from cluster.spec import GroupSpec
from cluster.worker import LANES, Worker

_log = logging.getLogger("cluster")
_SAY_AFTER_S = 10.0
_STACKS_S = 5.0
_OBSERVE_S = 2.0
_OUTSIDE_S = 2.5
_SLICE_S = 0.2
_RUNS = ("cluster/worker.py", "run")  # what the callable's thread has come through
_CHILDREN_S = 1.0
_GONE_S = 20.0


def spawn(spec: GroupSpec, reservation: Reservation, bundle: int) -> Any:
    """Start an actor in a reserved place; returns at once, the process comes up when there is room."""
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    resources = dict(spec.resources_per_worker)
    options: dict[str, Any] = {"num_cpus": resources.pop("CPU", 0), "num_gpus": resources.pop("GPU", 0)}
    if "memory" in resources:
        options["memory"] = resources.pop("memory")
    actor: Any = ray.remote(concurrency_groups=LANES)(Worker)  # type: ignore[call-overload]
    return actor.options(
        max_restarts=0,
        max_task_retries=0,
        resources=resources,
        scheduling_strategy=PlacementGroupSchedulingStrategy(
            reservation.placement_group, placement_group_bundle_index=bundle
        ),
        **options,
    ).remote()


def collect(calls: Sequence[Any], *, names: Sequence[str], doing: str, deadline: float) -> list[Any]:
    """The answers to one call of each worker; the first that fails ends the wait. A long one is mentioned.

    Args:
        calls: one reference per worker.
        names: how to call each worker in an error.
        doing: what they were asked to do, to follow "did not".
        deadline: on the clock of `time.monotonic`.

    Raises:
        StartError: a worker failed, ended, or had not answered by the deadline.
        ClusterError: a worker raised one.
    """
    import ray

    begun, index_of = time.monotonic(), {call: index for index, call in enumerate(calls)}
    waiting, says_at = list(calls), begun + _SAY_AFTER_S
    while waiting:
        until = min(says_at, deadline)
        done, waiting = ray.wait(waiting, num_returns=1, timeout=max(0.0, until - time.monotonic()))
        if not done:
            late = ", ".join(names[index_of[call]] for call in waiting)
            if until < deadline:
                says_at = math.inf
                _log.info(
                    "After %.0f s, %d of %d workers are yet to %s: %s. They have %.0f s more.",
                    time.monotonic() - begun,
                    len(waiting),
                    len(calls),
                    doing,
                    late,
                    deadline - time.monotonic(),
                )
                continue
            raise StartError(
                f"{len(waiting)} of {len(calls)} workers did not {doing} within the "
                f"{time.monotonic() - begun:.1f} s left for it: {late}. Look at the load and the network of "
                "their nodes, or raise start_timeout_s; for one that takes a lost worker's place, "
                "replacement_timeout_s."
            )
        _check(done[0], names[index_of[done[0]]], doing)
    return list(ray.get(list(calls)))


def check_links(
    actors: Sequence[Any], workers: Sequence[WorkerInfo], driver: preflight.Target, deadline: float
) -> None:
    """Have one worker of each node try to reach the driver and all other nodes; nothing on a single node.

    Args:
        actors: in rank order.
        workers: who they are.
        driver: where the driver listens.
        deadline: on the clock of `time.monotonic`.

    Raises:
        StartError: some links do not work; it names both ends.
    """
    by_address = {worker.node_ip: actors[worker.rank] for worker in reversed(workers)}
    chosen = [(by_address[address], address) for address in sorted(by_address)]
    if len(chosen) == 1:
        return
    addresses = [address for _, address in chosen]
    names = [f"node {address}" for address in addresses]
    peers = [next(peer for peer in addresses[::-1] if peer != address) for address in addresses]
    opened = [actor.open_probe.remote(peer) for (actor, _), peer in zip(chosen, peers, strict=True)]
    targets = [driver, *collect(opened, names=names, doing="listen for the others", deadline=deadline)]
    tried = [actor.try_links.remote(targets) for actor, _ in chosen]
    found = collect(tried, names=names, doing="try to reach the others", deadline=deadline)
    preflight.check_links(addresses, found, driver[0])


def stacks(actors: Sequence[Any]) -> list[str]:
    """Where every thread of each worker is; a sentence in its place for a worker that does not answer."""
    import ray

    calls = [actor.stacks.options(concurrency_group="control").remote() for actor in actors]
    ready = set(ray.wait(calls, num_returns=len(calls), timeout=_STACKS_S)[0])
    return [_stack(call) if call in ready else _NO_STACK for call in calls]


def observe(
    actors: Sequence[Any], workers: Sequence[WorkerInfo], is_over: Callable[[], bool]
) -> list[RankState | None]:
    """What each worker is doing: as it says itself within 2 s, else as it is seen from its node within
    another 2.5 s; None where neither tells, or before `is_over`.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    calls = [actor.observe.options(concurrency_group="control").remote() for actor in actors]
    found = _collect_observed(calls, _OBSERVE_S, is_over)
    silent = [rank for rank, state in enumerate(found) if state is None]
    if not silent or is_over():
        return found
    look: Any = ray.remote(num_cpus=0, max_retries=0)(native_stack.observe_process)
    calls = [
        look.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(workers[rank].node_id, soft=False)
        ).remote(workers[rank].pid, _RUNS)
        for rank in silent
    ]
    for rank, state in zip(silent, _collect_observed(calls, _OUTSIDE_S, is_over), strict=True):
        found[rank] = state
    return found


def end(
    members: Sequence[Any], everybody: Sequence[Any], lives: Sequence[Any], workers: Sequence[WorkerInfo]
) -> None:
    """Kill the processes that workers started, then the workers, and wait until all are gone.

    Args:
        members: the actors that have ranks.
        everybody: all actors that were started.
        lives: their calls of `live`, which end with the processes.
        workers: who the members are; empty when they have not come up yet.
    """
    import ray

    try:
        if workers:
            calls = [actor.end_children.options(concurrency_group="control").remote() for actor in members]
            ray.wait(calls, num_returns=len(calls), timeout=_CHILDREN_S)
    finally:
        for actor in everybody:
            ray.kill(actor, no_restart=True)
    if lives:
        ray.wait(list(lives), num_returns=len(lives), timeout=_GONE_S)
    here = ray.get_runtime_context().get_node_id()
    wait_gone([worker.pid for worker in workers if worker.node_id == here], _GONE_S)


_NO_STACK = (
    f"No answer within {_STACKS_S:g} s: native code may hold the interpreter's lock, "
    "or the node is out of reach."
)


def _stack(call: Any) -> str:
    import ray

    try:
        return str(ray.get(call))
    except ray.exceptions.RayError as error:
        return f"No answer: {explain_death(str(error))}."


def _collect_observed(
    calls: Sequence[Any], timeout_s: float, is_over: Callable[[], bool]
) -> list[RankState | None]:
    import ray

    deadline, waiting = time.monotonic() + timeout_s, list(calls)
    while waiting and time.monotonic() < deadline and not is_over():
        waiting = ray.wait(waiting, num_returns=len(waiting), timeout=_SLICE_S)[1]
    return [None if call in waiting else _observed(call) for call in calls]


def are_clean(members: Sequence[Any], timeout_s: float = 1.0) -> bool:
    """Whether all of these workers say that nothing of their last run is left."""
    import ray

    calls = [actor.is_clean.options(concurrency_group="control").remote() for actor in members]
    try:
        return all(ray.get(calls, timeout=timeout_s))
    except ray.exceptions.RayError:
        return False


def _observed(call: Any) -> RankState | None:
    import ray

    try:
        found: RankState | None = ray.get(call)
    except ray.exceptions.RayError:  # it has ended, which the run itself tells of
        return None
    return found


def _check(call: Any, name: str, doing: str) -> None:
    """Raise what a finished call failed with."""
    import ray

    try:
        ray.get(call)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause if isinstance(error.cause, Exception) else error
        if isinstance(cause, ClusterError):
            raise cause from None
        raise StartError(
            f"{name} did not {doing}: {type(cause).__name__}: {cause}. "
            "The packages that this program uses must be installed on every node, in the same versions."
        ) from cause
    except ray.exceptions.RayError as error:
        module = re.search(r"No module named '([\w.]+)'", str(error))
        if module is not None:
            raise StartError(
                f"{name} did not {doing}: there is no module {module[1]!r} on that node. Install there what "
                "is installed here, this project included, in the same versions."
            ) from None
        raise StartError(
            f"{name} did not {doing}, its process ended: {explain_death(str(error))}. "
            "Look at that node's memory and at Ray's log files there."
        ) from None
