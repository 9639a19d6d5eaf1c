"""Looks at one node for the doctor: an actor there, or this process for its own machine.

It only looks: it listens for the other nodes while it lives, leaves no file behind, and changes nothing. What
cannot be found out is left out. Judging is `cluster.diagnosis`'s.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from cluster import link_meter, network, preflight, process_group
from cluster.diagnosis import RAYS_FILES
from cluster.examination import Disk, Interface, NodeFacts
from cluster.process_group import StoreAddress

Target = tuple[str, int, bytes]
"""Where a meter listens, and its token."""
_TRIES = 3
_REACH_S = 2.0


class Examiner:
    """One node's end of an examination; its methods are called by `cluster.doctor`."""

    def __init__(self) -> None:
        self._meter: link_meter.LinkMeter | None = None
        self._probe = preflight.Probe()

    def look(self, address: str, peer: str | None, rays_folder: str | None) -> NodeFacts:
        """Return what is to be found on this node. Imports torch.

        Args:
            address: Of this node, as Ray knows it.
            peer: Of another node; None where there is none.
            rays_folder: Where Ray keeps its files here.
        """
        return examine(address, peer, rays_folder)

    def now(self) -> float:
        """The time by this node's clock."""
        return time.time()

    def listen(self, peer: str) -> Target:
        """Listen on the address that leads to another node, and return where.

        Raises:
            StartError: No route leads there.
        """
        self._meter = link_meter.LinkMeter(network.address_towards(peer))
        return self._meter.address, self._meter.port, self._meter.token

    def reach(self, targets: Sequence[tuple[str, int]]) -> list[str | None]:
        """Try to reach other nodes, all at once; for each: None, or why not."""
        return self._probe.reach(targets)

    def measure(self, target: Target) -> tuple[float, float] | str:
        """Measure the way to another node: seconds of a round trip and bytes per second; or why not."""
        try:
            return link_meter.measure(*target)
        except OSError as error:
            return error.strerror or str(error)

    def all_reduce(
        self, store: StoreAddress, rank: int, world_size: int, size_bytes: int, timeout_s: float
    ) -> float | str:
        """Form a process group over Gloo with the other nodes, as workers do, and add up a tensor; return the
        seconds of the quickest of three, or why it failed.
        """
        import torch
        import torch.distributed as dist

        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        if self._meter is not None:
            network.name_interface(self._meter.address)
        try:
            process_group.join(
                process_group.connect_store(store, timeout_s),
                generation=0,
                rank=rank,
                world_size=world_size,
                backend="gloo",
                timeout_s=timeout_s,
                device="cpu",
            )
            seconds = []
            for _ in range(_TRIES):
                tensor = torch.full((size_bytes // 4,), float(rank + 1))
                began = time.perf_counter()
                dist.all_reduce(tensor)
                seconds.append(time.perf_counter() - began)
                expected = world_size * (world_size + 1) / 2
                if tensor[0].item() != expected or tensor[-1].item() != expected:
                    return f"its sum is {tensor[0].item():g} instead of {expected:g}"
            return min(seconds)
        except (RuntimeError, OSError) as error:
            return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        finally:
            process_group.leave()

    def sees(self, path: str, token: str) -> str | None:
        """Return None if what the driver has written at `path` is here and more can be written; else why."""
        return see(path, token)


def examine(address: str, peer: str | None, rays_folder: str | None) -> NodeFacts:
    """Look at the machine of this process; as `Examiner.look`."""
    import ray

    leaves_by, no_route = _route(peer)
    return NodeFacts(
        address=address,
        host=socket.gethostname(),
        versions=preflight.report(),
        ray=ray.__version__,
        interfaces=_interfaces(),
        leaves_by=leaves_by,
        no_route=no_route,
        chosen=_chosen(os.environ),
        shm=_disk("shared memory", "/dev/shm"),
        open_files=_open_files(),
        disks=tuple(
            disk
            for disk in (
                None if rays_folder is None else _disk(RAYS_FILES, rays_folder),
                _disk("temporary files", os.environ.get("TMPDIR", "/tmp")),
            )
            if disk is not None
        ),
    )


def leave(path: str, token: str) -> str | None:
    """Leave a file of that name at `path`, a folder or a URI; return why it cannot be done, or None."""
    try:
        filesystem, folder = _storage(path)
        if filesystem.type_name == "local" and not os.path.isdir(folder):  # buckets need no folders
            return "there is no such folder"
        with filesystem.open_output_stream(f"{folder}/{token}") as file:
            file.write(token.encode())
    except (OSError, ValueError, ImportError) as error:
        return f"it cannot be written ({_first_line(error)})"
    return None


def remove(path: str, token: str) -> None:
    """Remove what `leave` has left."""
    with contextlib.suppress(OSError, ValueError, ImportError):
        filesystem, folder = _storage(path)
        filesystem.delete_file(f"{folder}/{token}")


def see(path: str, token: str) -> str | None:
    """Return None if the file of that name is at `path` and another can be written; else why not."""
    import pyarrow.fs as fs

    try:
        filesystem, folder = _storage(path)
        found = filesystem.get_file_info([f"{folder}/{token}", folder])
    except (OSError, ValueError, ImportError) as error:
        return f"it cannot be read ({_first_line(error)})"
    if found[0].type == fs.FileType.NotFound:
        there = found[1].type != fs.FileType.NotFound
        return "it is another disk than the driver's" if there else "there is no such folder"
    own = f"{token}-{uuid.uuid4().hex}"
    why = leave(path, own)
    remove(path, own)
    return why


def _storage(path: str) -> tuple[Any, str]:
    """Return the file system of a path or URI, and the path there."""
    import pyarrow.fs as fs

    if "://" in path:
        filesystem, folder = fs.FileSystem.from_uri(path)
        return filesystem, str(folder).rstrip("/")
    return fs.LocalFileSystem(), path


def _route(peer: str | None) -> tuple[str | None, str | None]:
    """Return the interface that leads to a peer, and why there is no route."""
    if peer is None:
        return None, None
    from cluster.errors import StartError

    try:
        return network.interface_of(network.address_towards(peer)), None
    except StartError as error:
        return None, str(error)


def _interfaces() -> tuple[Interface, ...]:
    import psutil

    statistics = psutil.net_if_stats()
    found = []
    for name, addresses in sorted(psutil.net_if_addrs().items()):
        state = statistics.get(name)
        inet = [item for item in addresses if item.family in (socket.AF_INET, socket.AF_INET6)]
        found.append(
            Interface(
                name=name,
                addresses=tuple(item.address for item in sorted(inet, key=lambda item: item.family)),
                is_up=state is not None and state.isup,
                mtu=0 if state is None else state.mtu,
            )
        )
    return tuple(found)


def _chosen(environ: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    names = network.INTERFACE_VARIABLES
    return tuple((name, environ[name]) for name in names if environ.get(name))


def _open_files() -> tuple[int, int] | None:
    if sys.platform == "win32":
        return None
    import resource

    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = 2**31
    return tuple(unlimited if item == resource.RLIM_INFINITY else item for item in (now, most))  # type: ignore[return-value]


def _disk(use: str, path: str) -> Disk | None:
    try:
        usage = shutil.disk_usage(path)
    except OSError:
        return None
    return Disk(use=use, path=path, total_bytes=usage.total, free_bytes=usage.free)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
