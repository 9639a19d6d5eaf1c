"""Processes that somebody else started: torchrun, or SLURM's srun. Each is one rank, and trains where it is.

Whether that is so is a pure function of the environment variables. Only what the launcher itself sets counts:
a process in which somebody has merely set ``RANK`` starts its own workers as always. What the Trainer's
arguments say about devices and nodes must agree with what was started, or it is a `MisconfigurationError`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from orchestrator.errors import MisconfigurationError


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """One process among those that a launcher started.

    Attributes:
        launcher: ``torchrun`` or ``srun``.
        rank: This process among all.
        world_size: Processes.
        local_rank: This process among those of its node.
        local_world_size: Processes of each node.
        node_rank: Its node among all.
        address: Where rank 0 waits for the others.
        port: And on which port.
    """

    launcher: str
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    node_rank: int
    address: str
    port: int

    @property
    def num_nodes(self) -> int:
        """Nodes."""
        return max(1, self.world_size // self.local_world_size)


class TorchElasticEnvironment:
    """Processes that torchrun started; ``Trainer(plugins=...)`` takes one to insist on it.

    Nobody needs to: without it the Trainer finds out by itself.
    """

    launcher: ClassVar[str] = "torchrun"

    @staticmethod
    def detect(environ: Mapping[str, str]) -> bool:
        """Whether `environ` is that of a process which torchrun started."""
        return "TORCHELASTIC_RUN_ID" in environ

    @staticmethod
    def read(environ: Mapping[str, str]) -> Launched:
        """Return which process this is."""
        return Launched(
            launcher="torchrun",
            rank=int(environ["RANK"]),
            world_size=int(environ["WORLD_SIZE"]),
            local_rank=int(environ["LOCAL_RANK"]),
            local_world_size=int(environ["LOCAL_WORLD_SIZE"]),
            node_rank=int(environ.get("GROUP_RANK", "0")),
            address=environ["MASTER_ADDR"],
            port=int(environ["MASTER_PORT"]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SLURMEnvironment:
    """Processes that SLURM's srun started; ``Trainer(plugins=...)`` takes one to insist on it, or to say how.

    Attributes:
        auto_requeue: On the signal, save a checkpoint, put the job back into the queue, and end; the job goes
            on from that checkpoint.
        requeue_signal: The signal's name. Ask SLURM for it with ``#SBATCH --signal=SIGUSR1@90``.
    """

    launcher: ClassVar[str] = "srun"
    auto_requeue: bool = True
    requeue_signal: str = "SIGUSR1"

    @staticmethod
    def detect(environ: Mapping[str, str]) -> bool:
        """Whether `environ` is that of a task of a job step; a batch script's own process is none."""
        return "SLURM_PROCID" in environ and "SLURM_STEP_NUM_TASKS" in environ

    @staticmethod
    def read(environ: Mapping[str, str]) -> Launched:
        """Return which process this is."""
        world_size = int(environ["SLURM_STEP_NUM_TASKS"])
        nodes = int(environ.get("SLURM_STEP_NUM_NODES", environ.get("SLURM_NNODES", "1")))
        if world_size % nodes:
            raise MisconfigurationError(
                f"srun started {world_size} tasks on {nodes} nodes, which are not equally many on each. "
                "Use srun --ntasks-per-node=N."
            )
        names = environ.get("SLURM_STEP_NODELIST", environ.get("SLURM_NODELIST", "127.0.0.1"))
        return Launched(
            launcher="srun",
            rank=int(environ["SLURM_PROCID"]),
            world_size=world_size,
            local_rank=int(environ.get("SLURM_LOCALID", "0")),
            local_world_size=world_size // nodes,
            node_rank=int(environ.get("SLURM_NODEID", "0")),
            address=environ.get("MASTER_ADDR", first_node(names)),
            port=int(environ.get("MASTER_PORT", _port(environ.get("SLURM_JOB_ID", "0")))),
        )


Environment = TorchElasticEnvironment | SLURMEnvironment


def first_node(names: str) -> str:
    """Return the first host of SLURM's short form.

    >>> first_node("gpu[07-09,12],login1"), first_node("a1,a2")
    ('gpu07', 'a1')
    """
    found = re.match(r"([^\[,]+)(?:\[([^\]]*)\])?([^,]*)", names)
    if found is None:
        return names
    prefix, numbers, suffix = found.groups()
    return prefix + (re.split("[-,]", numbers)[0] if numbers else "") + suffix


def _port(job_id: str) -> str:
    """Return a port that all processes of a job agree on, and two jobs of a node seldom share."""
    digits = "".join(item for item in job_id if item.isdigit()) or "0"
    return str(15000 + int(digits) % 10000)


def find(environ: Mapping[str, str], insisted: Environment | None = None) -> Launched | None:
    """Return which of several started processes this is; None when it is the only one.

    Args:
        environ: The environment variables.
        insisted: What ``Trainer(plugins=...)`` has.

    Raises:
        MisconfigurationError: What was insisted on is not there, or variables of it are missing.
    """
    kinds: tuple[Any, ...] = (TorchElasticEnvironment, SLURMEnvironment)
    kind = next((item for item in kinds if item.detect(environ)), None)
    if insisted is not None:
        if not insisted.detect(environ):
            raise MisconfigurationError(
                f"Trainer(plugins=[{type(insisted).__name__}()]): {insisted.launcher} did not start this "
                f"process. Leave the plugin out, or start the script with {insisted.launcher}."
            )
        kind = type(insisted)
    if kind is None:
        return None
    try:
        launched: Launched = kind.read(environ)
    except (KeyError, ValueError) as error:
        if isinstance(error, MisconfigurationError):
            raise
        raise MisconfigurationError(
            f"{kind.launcher} started this process, but its environment is not whole: {error}. "
            f"Start the script with {kind.launcher}, and leave these variables alone."
        ) from None
    return launched if launched.world_size > 1 else None


def check(launched: Launched, devices: Any, num_nodes: int) -> None:
    """Refuse arguments that contradict what was started.

    Args:
        launched: What was started.
        devices: The Trainer's: a number, GPU ids, or ``"auto"``.
        num_nodes: The Trainer's; 1, its default, says nothing about nodes where devices are left open.

    Raises:
        MisconfigurationError: The numbers differ.
    """
    asked = len(devices) if isinstance(devices, tuple) else devices
    if asked == "auto":
        if num_nodes in (1, launched.num_nodes):
            return
        asked = launched.local_world_size
    if asked == launched.local_world_size and num_nodes == launched.num_nodes:
        return
    raise MisconfigurationError(
        f"Trainer(devices={devices!r}, num_nodes={num_nodes}) asks for {asked * num_nodes} processes, "
        f"{asked} on each of {num_nodes} nodes, and {launched.launcher} started {launched.world_size}, "
        f"{launched.local_world_size} on each of {launched.num_nodes}. "
        f"Use devices={launched.local_world_size}, num_nodes={launched.num_nodes}, or 'auto'."
    )


def join(launched: Launched, *, backend: str, timeout_s: float, device: Any) -> None:
    """Form the process group with the others, unless this process has one; it lasts as long as it does."""
    import atexit
    from datetime import timedelta

    import torch.distributed as dist

    if dist.is_initialized():
        return
    options: dict[str, Any] = {}
    if device.type == "cuda":
        import torch

        torch.cuda.set_device(device)
        options["device_id"] = device
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if backend == "nccl" else backend,
        init_method=None if launched.launcher == "torchrun" else f"tcp://{launched.address}:{launched.port}",
        rank=launched.rank,
        world_size=launched.world_size,
        timeout=timedelta(seconds=timeout_s),
        **options,
    )
    atexit.register(_leave)


def _leave() -> None:
    import gc

    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
    gc.collect()  # a group that a cycle keeps alive ends with the interpreter, and may abort the process
