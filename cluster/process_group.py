"""Forms the process group that connects the workers, and takes it apart.

The store through which ranks find each other lives in the driver, on a socket bound to one address, so no
rank owns it and no port can be lost between choosing and using it. Each forming is a *generation* with a key
prefix of its own: a process can leave one generation and join the next through the same store. A peer that
does not come makes `join` fail after the timeout. A collective that waits for a peer can be freed from
another thread, by `Links.close`.
"""

from __future__ import annotations

import contextlib
import gc
import json
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from cluster.gloo_links import Address, close_links, listeners
from cluster.network import listen

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreAddress:
    """Where a group's store listens."""

    host: str
    port: int


class StoreServer:
    """The driver's end of the store. It listens on `address` alone until `close`."""

    def __init__(self, host: str, timeout_s: float) -> None:
        """Listen on a free port of `host`, an address of this machine; `timeout_s` bounds each operation."""
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        server = listen(host)
        self.address = StoreAddress(host=host, port=server.getsockname()[1])
        self._store: TCPStore | None = TCPStore(
            host,
            self.address.port,
            is_master=True,
            wait_for_workers=False,
            timeout=timedelta(seconds=timeout_s),
            master_listen_fd=server.detach(),  # given a host name alone it would listen on every interface
        )

    def close(self) -> None:
        """Stop listening and end the store's thread. A second call does nothing."""
        self._store = None


def connect_store(address: StoreAddress, timeout_s: float) -> TCPStore:
    """A worker's connection to the driver's store."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    return TCPStore(
        address.host,
        address.port,
        is_master=False,
        wait_for_workers=False,
        timeout=timedelta(seconds=timeout_s),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """The connections of one process group.

    Attributes:
        addresses: Where Gloo listens in each of its processes.
    """

    addresses: frozenset[Address]

    def close(self) -> None:
        """Make the collectives that run, and those to come, fail here and at the peers; from any thread.

        The process group must be left afterwards. NCCL's communicators are aborted, which needs no sockets.
        """
        import torch.distributed as dist

        close_links(self.addresses)
        if dist.is_initialized() and "nccl" in dist.get_backend():
            with contextlib.suppress(RuntimeError):
                dist.distributed_c10d._abort_process_group()


def join(
    store: TCPStore,
    *,
    generation: int,
    rank: int,
    world_size: int,
    backend: str,
    timeout_s: float,
    device: str,
) -> Links:
    """Form the default process group together with the other ranks of this generation, once all have come.

    Args:
        store: the connection to the driver's store.
        generation: never used before with this store.
        rank: this process's place, 0 to world_size - 1.
        world_size: number of processes.
        backend: "gloo", or "nccl" (then CPU tensors go over Gloo).
        timeout_s: seconds a collective waits for a peer, this one included.
        device: this process's device, such as "cuda:0"; NCCL is bound to it at once.

    Returns:
        What frees a collective of the group that is stuck.
    """
    import torch
    import torch.distributed as dist
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]

    options: dict[str, Any] = {"device_id": torch.device(device)} if backend == "nccl" else {}
    prefixed = PrefixStore(f"generation{generation}", store)
    before = listeners()
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if backend == "nccl" else backend,
        store=prefixed,
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=timeout_s),
        **options,
    )
    prefixed.set(f"listens{rank}", json.dumps(sorted(listeners() - before)))
    addresses = set()
    for other in range(world_size):
        addresses |= {(host, port) for host, port in json.loads(prefixed.get(f"listens{other}"))}
    return Links(addresses=frozenset(addresses))


def leave() -> None:
    """Destroy the default process group and all groups made from it, if there are any."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
    gc.collect()  # a group that a cycle keeps alive keeps its sockets, and peers would wait on them
