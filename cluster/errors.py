"""The errors that this package raises.

```
ClusterError (RuntimeError)
├── SpecError (ValueError)         a GroupSpec that contradicts itself; nothing was started
├── SessionError                   Ray could not be reached or started
├── PlacementError                 the cluster cannot hold, or did not free, what was asked for
├── StartError                     the workers were placed but did not come up in time
├── GroupError                     a group was used after its end, or twice at once
├── SerializationError (TypeError) something that has to travel between processes cannot be pickled
├── WorkerDied                     a worker's process ended while it was needed
├── PeerLost                       in a worker: another one did not answer, and may be replaced
├── RunLost                        a run cannot go on where it was; its group is whole again
└── RemoteError                    a callable failed with an exception that cannot travel
```

A callable's own exception is not in this tree: it is raised in the driver with its own type, so `except
ValueError` works as it does in one process. What was known about where it came from is in its notes. Every
message says what happened, with which values, and what to do.
"""

from __future__ import annotations


class ClusterError(RuntimeError):
    """Anything that went wrong between processes rather than inside a user's callable."""


class SpecError(ClusterError, ValueError):
    """A `GroupSpec` holds a value that cannot be, or two values that contradict each other."""


class SessionError(ClusterError):
    """Ray could not be reached at the address given, or could not be started here."""


class PlacementError(ClusterError):
    """The cluster cannot hold the workers asked for, or did not have room for them in time."""


class StartError(ClusterError):
    """Workers were placed but did not start, or did not form their process group, in time."""


class GroupError(ClusterError):
    """A `WorkerGroup` was used after its end, or by two callers at once."""


class SerializationError(ClusterError, TypeError):
    """A callable, an argument, an event or a result cannot be pickled; the message names the part."""


class WorkerDied(ClusterError):
    """A worker's process ended while it was needed.

    Attributes:
        rank: the worker's rank.
        node_ip: the address of the node that it ran on.
        pid: its process id there.
        cause: why it ended, as far as that is known.
    """

    def __init__(self, message: str, *, rank: int, node_ip: str, pid: int, cause: str) -> None:
        super().__init__(message)
        self.rank = rank
        self.node_ip = node_ip
        self.pid = pid
        self.cause = cause

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the keyword arguments when the error is pickled."""
        return _rebuild_worker_died, (str(self), self.rank, self.node_ip, self.pid, self.cause)


def _rebuild_worker_died(message: str, rank: int, node_ip: str, pid: int, cause: str) -> WorkerDied:
    return WorkerDied(message, rank=rank, node_ip=node_ip, pid=pid, cause=cause)


class PeerLost(ClusterError):
    """In a worker: another rank is gone or does not answer. Where the run recovers, the callable rejoins."""


class RunLost(ClusterError):
    """A run lost what only the lost workers knew, or where none may be lost. Its group has been made whole:
    the same call can be made again, from a checkpoint if there is one.
    """


class RemoteError(ClusterError):
    """A callable failed on a worker with an exception that cannot be rebuilt in the driver.

    Attributes:
        type_name: the qualified name of the exception's class, such as `"mypackage.BrokenError"`.
    """

    def __init__(self, message: str, *, type_name: str = "") -> None:
        super().__init__(message)
        self.type_name = type_name
