"""Examines a cluster before a run: what each node is like, whether the nodes reach each other and how well,
whether an all-reduce works over them, and whether they share a disk.

`examine` attaches to the cluster that a run would use, and puts an examiner on each of its nodes, which takes
no resources away from others and ends with the examination. Where there is no cluster it looks at this
machine alone, without Ray. It finds facts; `cluster.diagnosis` judges them. Nothing on a node is changed, and
a node that cannot be looked at becomes a fact of its own; only a cluster that cannot be reached raises.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from cluster import network, preflight, session
from cluster.examination import Examination, LinkFacts, NodeFacts, ReduceFacts, StorageFacts
from cluster.examiner import Examiner, Target, examine, leave, remove, see
from cluster.failure import explain_death
from cluster.process_group import StoreServer

REDUCE_BYTES = 4 * 2**20
START_S = 60.0
_ANSWER_S = 20.0
_MEASURE_S = 15.0
_REDUCE_S = 10.0
_CLOCK_TRIES = 5
_PORT_S = 4.0


def examine_machine(storage: str | None = None) -> Examination:
    """Look at this machine alone, without Ray.

    Args:
        storage: A folder or URI that a run would write to.
    """
    facts = examine("127.0.0.1", None, None)
    return Examination(
        cluster=None,
        driver=facts.address,
        here=preflight.report(),
        here_ray=facts.ray,
        nodes=(facts,),
        storage=None if storage is None else _examine_storage(storage, []),
    )


def examine_cluster(storage: str | None = None, nodes: Sequence[str] = ()) -> Examination:
    """Look at the nodes of the cluster that `session.connect` attaches to.

    Args:
        storage: A folder or URI that a run would write to.
        nodes: Addresses of those to look at; all that are alive when empty.

    Raises:
        SessionError: The cluster cannot be reached.
    """
    import ray

    session.connect()
    alive = {str(node["NodeManagerAddress"]): node for node in ray.nodes() if node["Alive"]}
    chosen = [address for address in sorted(alive) if not nodes or address in nodes]
    patients = _Patients([(address, str(alive[address]["NodeID"])) for address in chosen])
    try:
        facts = patients.look()
        links: tuple[LinkFacts, ...] = ()
        reduce: ReduceFacts | None = None
        if len(chosen) > 1:
            links = patients.try_links(
                {address: int(node["NodeManagerPort"]) for address, node in alive.items()}
            )
            reduce = patients.reduce(facts, links)
        return Examination(
            cluster=str(ray.get_runtime_context().gcs_address),
            driver=ray.util.get_node_ip_address(),
            here=preflight.report(),
            here_ray=ray.__version__,
            nodes=facts,
            missing=tuple(address for address in nodes if address not in alive),
            links=links,
            all_reduce=reduce,
            storage=None if storage is None else _examine_storage(storage, patients.examiners()),
        )
    finally:
        patients.leave()


def _examine_storage(path: str, examiners: Sequence[tuple[str, Any]]) -> StorageFacts:
    """Write a file, have each node look for it, and remove it; without nodes, look from here."""
    if "://" not in path:
        path = os.path.abspath(os.path.expanduser(path))
    token = f".doctor-{secrets.token_hex(8)}"
    here = leave(path, token)
    if here is not None:
        return StorageFacts(path=path, here=here)
    try:
        if not examiners:
            return StorageFacts(path=path, here=see(path, token))
        answers = _ask(
            [(address, examiner.sees.remote(path, token)) for address, examiner in examiners], _ANSWER_S
        )
        return StorageFacts(
            path=path,
            nodes=tuple(
                (address, str(answer) if isinstance(answer, _NoAnswer) else answer)
                for address, answer in answers.items()
            ),
        )
    finally:
        remove(path, token)


class _NoAnswer(str):
    """Why a node has not answered."""


class _Patients:
    """The nodes that are examined, each with an examiner.

    Args:
        nodes: Address and Ray's id of each.
    """

    def __init__(self, nodes: Sequence[tuple[str, str]]) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        kind: Any = ray.remote(Examiner)
        self._addresses = [address for address, _ in nodes]
        self._actors: dict[str, Any] = {
            address: kind.options(
                num_cpus=0,
                max_restarts=0,
                max_concurrency=4,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
            ).remote()
            for address, node in nodes
        }
        self._well: list[str] = []
        self._meters: dict[str, Target] = {}

    def examiners(self) -> list[tuple[str, Any]]:
        """Those that have answered, by address."""
        return [(address, self._actors[address]) for address in self._well]

    def leave(self) -> None:
        """End the examiners."""
        import ray

        for actor in self._actors.values():
            with contextlib.suppress(Exception):
                ray.kill(actor, no_restart=True)

    def look(self) -> tuple[NodeFacts, ...]:
        """Look at each node; one that does not answer has an error."""
        import ray

        folder = os.path.dirname(_session_folder())
        calls = [
            (address, actor.look.remote(address, self._peer_of(address), folder))
            for address, actor in self._actors.items()
        ]
        answers = _ask(calls, START_S)
        self._well = [address for address in self._addresses if not isinstance(answers[address], _NoAnswer)]
        here = ray.util.get_node_ip_address()
        facts = []
        for address in self._addresses:
            answer = answers[address]
            if isinstance(answer, _NoAnswer):
                facts.append(NodeFacts(address=address, error=str(answer)))
            else:
                off_s, error_s = (None, 0.0) if address == here else self._clock_of(address)
                facts.append(replace(answer, clock_off_s=off_s, clock_error_s=error_s))
        return tuple(facts)

    def _clock_of(self, address: str) -> tuple[float | None, float]:
        """How far a node's clock is ahead, and half of the quickest question's way: as NTP does it."""
        import ray

        tries: list[tuple[float, float]] = []
        for _ in range(_CLOCK_TRIES):
            asked, began = time.time(), time.monotonic()
            try:
                there = ray.get(self._actors[address].now.remote(), timeout=_ANSWER_S)
            except Exception:
                return None, 0.0
            way = (time.monotonic() - began) / 2
            tries.append((way, there - asked - way))
        way, off_s = min(tries)
        return off_s, way

    def _peer_of(self, address: str) -> str | None:
        return next((other for other in self._addresses if other != address), None)

    def try_links(self, ray_ports: Mapping[str, int]) -> tuple[LinkFacts, ...]:
        """Try all ways between nodes at once, then measure those that work, one per node at a time."""
        opened = _ask(
            [(address, actor.listen.remote(self._peer_of(address))) for address, actor in self.examiners()],
            _ANSWER_S,
        )
        self._meters = {
            address: target for address, target in opened.items() if not isinstance(target, _NoAnswer)
        }
        found: dict[tuple[str, str], LinkFacts] = {}
        for source, answer in self._reach(
            {
                source: [(target[0], target[1]) for other, target in self._meters.items() if other != source]
                for source in self._meters
            }
        ).items():
            others = [address for address in self._meters if address != source]
            for target, why in zip(others, answer, strict=True):
                port = self._meters[target][1]
                found[source, target] = LinkFacts(source=source, target=target, port=port, why=why)
        broken = [pair for pair, link in found.items() if link.why is not None]
        rays = self._reach(
            {
                source: [(target, ray_ports[target]) for one, target in broken if one == source]
                for source in dict.fromkeys(source for source, _ in broken)
            }
        )
        for source, answers in rays.items():
            targets = [target for one, target in broken if one == source]
            for target, why in zip(targets, answers, strict=True):
                found[source, target] = replace(found[source, target], ray_answers=why is None)
        self._measure(found)
        return tuple(found.values())

    def _reach(self, targets: Mapping[str, Sequence[tuple[str, int]]]) -> dict[str, list[str | None]]:
        """Have nodes try others; for each: None, or why it cannot be reached."""
        calls = [
            (source, self._actors[source].reach.remote(list(wanted))) for source, wanted in targets.items()
        ]
        return {
            source: [str(answer)] * len(targets[source]) if isinstance(answer, _NoAnswer) else answer
            for source, answer in _ask(calls, _ANSWER_S + _PORT_S).items()
        }

    def _measure(self, found: dict[tuple[str, str], LinkFacts]) -> None:
        """Measure links in rounds in which each node sends to one other and receives from one; all pairs of
        up to nine nodes, of more those at distances of powers of two.
        """
        nodes = list(self._meters)
        for distance in distances(len(nodes)):
            pairs = [(node, nodes[(index + distance) % len(nodes)]) for index, node in enumerate(nodes)]
            pairs = [pair for pair in pairs if pair in found and found[pair].why is None]
            calls = [
                (source, self._actors[source].measure.remote(self._meters[target]))
                for source, target in pairs
            ]
            answers = _ask(calls, _MEASURE_S)
            for source, target in pairs:
                answer = answers[source]
                if isinstance(answer, str):
                    found[source, target] = replace(found[source, target], why=f"while measured: {answer}")
                else:
                    latency_s, speed = answer
                    found[source, target] = replace(
                        found[source, target], latency_s=latency_s, bytes_per_s=speed
                    )

    def reduce(self, facts: Sequence[NodeFacts], links: Sequence[LinkFacts]) -> ReduceFacts:
        """Add a tensor up over all nodes, as a run does; not where it is known that it cannot work."""
        from cluster.diagnosis import judge_interfaces, judge_ports

        partly = Examination(
            cluster="",
            driver="",
            here=preflight.report(),
            here_ray="",
            nodes=tuple(facts),
            links=tuple(links),
        )
        wrong = [*judge_interfaces(partly), *judge_ports(partly)]
        if wrong or len(self._meters) < len(self._addresses):
            return ReduceFacts(size_bytes=REDUCE_BYTES, why_not="interfaces or links are not in order")
        peer = next((target[0] for target in self._meters.values()), "127.0.0.1")
        store = StoreServer(network.address_towards(peer), _REDUCE_S)
        try:
            examiners = self.examiners()
            answers = _ask(
                [
                    (
                        address,
                        actor.all_reduce.remote(store.address, rank, len(examiners), REDUCE_BYTES, _REDUCE_S),
                    )
                    for rank, (address, actor) in enumerate(examiners)
                ],
                2 * _REDUCE_S,
            )
        finally:
            store.close()
        errors = tuple(
            (address, str(answer)) for address, answer in answers.items() if isinstance(answer, str)
        )
        seconds = [answer for answer in answers.values() if not isinstance(answer, str)]
        return ReduceFacts(
            size_bytes=REDUCE_BYTES, seconds=None if errors else max(seconds, default=None), errors=errors
        )


def distances(nodes: int) -> list[int]:
    """How far apart the ends of the links are that are measured, with the nodes in a ring.

    >>> distances(4), distances(20)
    ([1, 2, 3], [1, 2, 4, 8, 16])
    """
    if nodes <= 9:
        return list(range(1, nodes))
    return [2**power for power in range(nodes.bit_length()) if 2**power < nodes]


def _ask(calls: Sequence[tuple[str, Any]], timeout_s: float) -> dict[str, Any]:
    """Return the answers to one call of each node, by address; a `_NoAnswer` that says why for the others."""
    import ray

    references = [call for _, call in calls]
    ready = (
        set(ray.wait(references, num_returns=len(references), timeout=timeout_s)[0]) if references else set()
    )
    return {
        address: _answer(call) if call in ready else _NoAnswer(f"no answer within {timeout_s:g} s")
        for address, call in calls
    }


def _answer(call: Any) -> Any:
    import re

    import ray

    try:
        return ray.get(call)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        return _NoAnswer(f"{type(cause).__name__}: {cause}")
    except ray.exceptions.RayError as error:
        module = re.search(r"No module named '([\w.]+)'", str(error))
        if module is not None:
            return _NoAnswer(f"there is no module {module[1]!r}")
        return _NoAnswer(f"its process ended: {explain_death(str(error))}")


def _session_folder() -> str:
    import ray

    node: Any = ray._private.worker._global_node
    return str(node.get_session_dir_path())
