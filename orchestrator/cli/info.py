"""``orchestrator info``: the facts about this machine and installation that a bug report needs.

It only looks: no Ray is started and none is attached to; a running cluster is noticed by the address that Ray
leaves on disk, and one attempt to connect that takes `PROBE_TIMEOUT_S` at most. Values that cannot be found
out here are None, or "not installed" for a package; nothing raises.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import os
import platform
import shutil
import socket
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import orchestrator

SUMMARY = "print versions, hardware, Ray and storage, as a bug report needs them"
PROBE_TIMEOUT_S = 0.5

_PACKAGES = ("ray", "pyarrow", "numpy", "tensorboard", "lightning")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One device that torch sees."""

    name: str
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RayState:
    """Which Ray a run here would attach to.

    Attributes:
        address: What RAY_ADDRESS says, else what a cluster started on this machine left on disk, else None.
        source: "RAY_ADDRESS", the file that named the address, or None.
        answers: Whether something listens there; None without an address with a port.
    """

    address: str | None
    source: str | None
    answers: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """One place that training writes to; `free_bytes` is None where it does not exist."""

    path: str
    free_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Info:
    """Everything that ``orchestrator info`` prints."""

    versions: dict[str, str]
    platform: str
    cpus: int | None
    cpus_usable: int | None
    memory_bytes: int | None
    gpus: tuple[Gpu, ...]
    cuda: str | None
    backends: tuple[str, ...]
    ray: RayState
    disks: dict[str, Disk]
    filesystems: tuple[str, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare ``--json``."""
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def run(arguments: argparse.Namespace) -> int:
    """Print the facts and return 0."""
    info = collect()
    print(json.dumps(dataclasses.asdict(info), indent=2) if arguments.json else format_text(info))
    return 0


def collect() -> Info:
    """Look at this machine; imports torch and pyarrow (about a second)."""
    build, gpus, cuda, backends = _torch_sees()
    return Info(
        versions={
            "orchestrator": orchestrator.__version__,
            "python": f"{platform.python_version()} ({platform.python_implementation()})",
            "torch": build or _version("torch"),
            **{name: _version(name) for name in _PACKAGES},
        },
        platform=platform.platform(),
        cpus=os.cpu_count(),
        cpus_usable=len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        memory_bytes=_memory_bytes(),
        gpus=gpus,
        cuda=cuda,
        backends=backends,
        ray=find_ray(os.environ.get("RAY_ADDRESS"), Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray"),
        disks={
            "working directory": _disk(os.getcwd()),
            "temporary files": _disk(tempfile.gettempdir()),
            "shared memory": _disk("/dev/shm"),
        },
        filesystems=_filesystems(),
    )


def find_ray(ray_address: str | None, ray_folder: Path) -> RayState:
    """Tell which cluster ``ray.init()`` would attach to.

    Args:
        ray_address: The value of RAY_ADDRESS; "local" and "auto" mean what they mean to Ray.
        ray_folder: Ray's folder of temporary files, in which a running cluster leaves its address.
    """
    if ray_address and ray_address != "auto":
        return RayState(address=ray_address, source="RAY_ADDRESS", answers=_answers(ray_address))
    current = ray_folder / "ray_current_cluster"
    try:
        address = current.read_text(encoding="utf-8").strip()
    except OSError:
        return RayState(
            address=ray_address or None, source="RAY_ADDRESS" if ray_address else None, answers=None
        )
    return RayState(address=address, source=str(current), answers=_answers(address))


def format_text(info: Info) -> str:
    """Lay the facts out as two columns of text."""
    gib = 2**30
    memory = "unknown" if info.memory_bytes is None else f"{info.memory_bytes / gib:.1f} GiB"
    gpus = [f"{gpu.name}, {gpu.memory_bytes / gib:.1f} GiB" for gpu in info.gpus]
    rows = [
        *info.versions.items(),
        ("platform", info.platform),
        ("CPUs", f"{info.cpus_usable} usable of {info.cpus}"),
        ("memory", memory),
        ("GPUs", "; ".join(gpus) or "none that torch sees"),
        ("CUDA", info.cuda or "not in this build of torch"),
        ("backends", ", ".join(info.backends) or "none"),
        ("Ray cluster", _describe_ray(info.ray)),
        *((name, _describe_disk(disk)) for name, disk in info.disks.items()),
        ("filesystems", ", ".join(info.filesystems)),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _describe_ray(state: RayState) -> str:
    if state.address is None:
        return "none: a run on several workers starts its own"
    answer = {True: "something listens there", False: "nothing listens there", None: "not probed"}[
        state.answers
    ]
    return f"{state.address} (from {state.source}; {answer})"


def _describe_disk(disk: Disk) -> str:
    free = "does not exist" if disk.free_bytes is None else f"{disk.free_bytes / 2**30:.1f} GiB free"
    return f"{disk.path} ({free})"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _memory_bytes() -> int | None:
    """The machine's memory, or this container's limit where that is less."""
    try:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return None
    try:
        return min(machine, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    except (OSError, ValueError):  # no cgroup, or "max"
        return machine


def _torch_sees() -> tuple[str | None, tuple[Gpu, ...], str | None, tuple[str, ...]]:
    """Torch's version with its build, the GPUs, that build's CUDA version, and the process group backends."""
    try:
        import torch
        import torch.distributed as dist
    except ImportError:
        return None, (), None, ()
    properties = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    gpus = tuple(Gpu(name=device.name, memory_bytes=device.total_memory) for device in properties)
    backends = []
    if dist.is_available():
        backends = [name for name in ("gloo", "nccl", "mpi", "ucc") if dist.is_backend_available(name)]
    return torch.__version__, gpus, torch.version.cuda, tuple(backends)


def _answers(address: str) -> bool | None:
    """Whether one TCP connection to ``[ray://]host:port`` succeeds."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdigit():
        return None
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=PROBE_TIMEOUT_S):
            return True
    except (OSError, OverflowError):
        return False


def _disk(path: str) -> Disk:
    try:
        return Disk(path=path, free_bytes=shutil.disk_usage(path).free)
    except OSError:
        return Disk(path=path, free_bytes=None)


def _filesystems() -> tuple[str, ...]:
    """The kinds of storage that this build of pyarrow reaches."""
    try:
        import pyarrow.fs as fs
    except ImportError:
        return ()
    kinds = {
        "local": "LocalFileSystem",
        "s3": "S3FileSystem",
        "gs": "GcsFileSystem",
        "abfs": "AzureFileSystem",
        "hdfs": "HadoopFileSystem",
    }
    found = []
    for kind, name in kinds.items():
        try:
            getattr(fs, name)
        except (AttributeError, ImportError):
            continue
        found.append(kind)
    return tuple(found)
