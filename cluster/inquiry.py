"""Finding out about a silent worker from the driver, where no other worker of its node can look."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

from cluster.heartbeat import ProcessState, process_state

_REACH_S = 1.5  # a SYN that is lost is sent again after 1 s
_LOOK_S = 5.0
_SLICE_S = 0.1


class Inquiry:
    """Asks the nodes of one group.

    Args:
        over: Set when the group ends, so that nobody is waited for.
    """

    def __init__(self, over: threading.Event) -> None:
        self._over = over
        self._nodes: dict[str, tuple[str, int]] = {}

    def remember_nodes(self) -> None:
        """Note where the nodes of the cluster are reached: one that is lost is in no list any more."""
        import ray

        self._nodes = {
            node["NodeID"]: (node["NodeManagerAddress"], node["NodeManagerPort"]) for node in ray.nodes()
        }

    def state_of(self, node: str, pid: int) -> ProcessState:
        """Return the state of a process of a node, by the node's Ray id."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        if node == ray.get_runtime_context().get_node_id():
            return process_state(pid)
        if node not in self._nodes or not _reaches(*self._nodes[node]):
            return ProcessState.UNREACHABLE
        look: Any = ray.remote(num_cpus=0, max_retries=0)(process_state)
        there = NodeAffinitySchedulingStrategy(node, soft=False)
        try:
            call, deadline = look.options(scheduling_strategy=there).remote(pid), time.monotonic() + _LOOK_S
            while not self._over.is_set() and time.monotonic() < deadline:
                if ray.wait([call], timeout=_SLICE_S)[0]:
                    answer: ProcessState = ray.get(call)
                    return answer
        except Exception:  # the node is lost to Ray; being asked again costs nothing
            pass
        return ProcessState.UNKNOWN


def _reaches(host: str, port: int) -> bool:
    """Whether a node's kernel takes a connection."""
    try:
        socket.create_connection((host, port), timeout=_REACH_S).close()
    except OSError:
        return False
    return True
