"""Where a call runs: in this process, or on a group of workers; decided before anything starts, and said in
one line.

A pure function of the arguments and of what this machine and a surrounding trial offer. It never starts Ray
and never looks for a cluster.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from orchestrator.errors import MisconfigurationError
from orchestrator.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The decision.

    Attributes:
        on_group: Run on Ray workers, else in this process.
        num_workers: Processes.
        num_nodes: Distinct nodes that were asked for; None for wherever there is room.
        use_gpu: Each worker has a GPU.
        device: The device of a run in this process, as torch writes it.
        strategy: single or ddp.
        backend: gloo or nccl; empty in this process.
        precision: As in the settings.
    """

    on_group: bool
    num_workers: int
    num_nodes: int | None
    use_gpu: bool
    device: str
    strategy: str
    backend: str
    precision: str

    def describe(self) -> str:
        """Return the plan in one line."""
        if not self.on_group:
            return f"Runs in this process on {self.device}, precision {self.precision}."
        workers = f"{self.num_workers} Ray worker{'s' if self.num_workers > 1 else ''}"
        nodes = "" if self.num_nodes is None else f" on {self.num_nodes} nodes"
        kind = "one GPU each" if self.use_gpu else "on CPUs"
        how = f"strategy {self.strategy} over {self.backend}, precision {self.precision}"
        return f"Runs on {workers}{nodes}, {kind}: {how}."


def make_plan(
    settings: Settings,
    *,
    cuda_devices: int,
    scaling_config: Any = None,
    placement_group: Any = None,
    trial_workers: int = 0,
) -> Plan:
    """Return where a call runs.

    Args:
        settings: The Trainer's arguments.
        cuda_devices: GPUs that torch sees in this process.
        scaling_config: A `ray.train.ScalingConfig`, or None.
        placement_group: A placement group that was given, or None.
        trial_workers: Workers that the surrounding trial of a sweep has reserved; 0 outside of one.

    Raises:
        MisconfigurationError: Arguments contradict each other, or ask for a device that is not there.
    """
    use_gpu = settings.accelerator in ("gpu", "cuda") or (settings.accelerator == "auto" and cuda_devices > 0)
    if scaling_config is not None:
        _refuse_contradiction(settings, scaling_config)
        use_gpu = bool(getattr(scaling_config, "use_gpu", False))
        num_workers, num_nodes = scaling_config.num_workers, None
    else:
        per_node = _devices_per_node(settings, use_gpu, cuda_devices, trial_workers)
        num_workers = per_node * settings.num_nodes
        num_nodes = settings.num_nodes if settings.num_nodes > 1 else None
    on_group = num_workers > 1 or scaling_config is not None or placement_group is not None
    if not on_group and use_gpu and cuda_devices == 0:
        raise MisconfigurationError(
            f"Trainer(accelerator={settings.accelerator!r}): torch sees no GPU in this process. "
            "Use accelerator='cpu', or install a build of torch that knows this machine's GPUs."
        )
    if on_group and settings.strategy == "single" and num_workers > 1:
        raise MisconfigurationError(
            f"Trainer(strategy='single') runs one process, and {num_workers} workers were asked for. Use "
            "strategy='ddp'."
        )
    return Plan(
        on_group=on_group,
        num_workers=num_workers,
        num_nodes=num_nodes,
        use_gpu=use_gpu,
        device="cuda:0" if use_gpu and not on_group else "cpu",
        strategy="ddp" if num_workers > 1 else "single",
        backend=("nccl" if use_gpu else "gloo") if on_group else "",
        precision=settings.precision,
    )


def _devices_per_node(settings: Settings, use_gpu: bool, cuda_devices: int, trial_workers: int) -> int:
    if isinstance(settings.devices, int):
        return settings.devices
    if trial_workers:
        return trial_workers
    return cuda_devices if use_gpu and cuda_devices else 1


def _refuse_contradiction(settings: Settings, scaling_config: Any) -> None:
    workers = scaling_config.num_workers
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise MisconfigurationError(
            f"Trainer(scaling_config=...) has num_workers={workers!r}. Use one whole number of at least 1; a "
            "range is not supported."
        )
    asked = settings.devices if isinstance(settings.devices, int) else None
    if asked is not None and asked * settings.num_nodes != workers:
        raise MisconfigurationError(
            f"Trainer(devices={asked}, num_nodes={settings.num_nodes}) asks for "
            f"{asked * settings.num_nodes} workers and "
            f"scaling_config for {workers}. Leave one of them out."
        )
    if settings.num_nodes > 1:
        raise MisconfigurationError(
            f"Trainer(num_nodes={settings.num_nodes}) and scaling_config both say where workers go. "
            "Leave num_nodes out and use scaling_config's placement_strategy."
        )
    gpu = bool(getattr(scaling_config, "use_gpu", False))
    if (settings.accelerator == "cpu" and gpu) or (settings.accelerator in ("gpu", "cuda") and not gpu):
        raise MisconfigurationError(
            f"Trainer(accelerator={settings.accelerator!r}) contradicts scaling_config's use_gpu={gpu}. "
            "Leave accelerator out."
        )
