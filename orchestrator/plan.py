"""Where a call runs: in this process, or on a group of workers; decided before anything starts, and said in
one line.

A pure function of the arguments and of what this machine and a surrounding trial offer. It never starts Ray
and never looks for a cluster. Devices and backend of a group are read from the very spec that the group will
be started with, so that what is said is what happens. Arguments that contradict each other are a
`MisconfigurationError`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cluster.spec import GroupSpec
from orchestrator import environments
from orchestrator.environments import Launched
from orchestrator.errors import MisconfigurationError
from orchestrator.group_plan import Reservation, Workers, backend_of, make_group_spec, refuse_contradiction
from orchestrator.precision import check_precision
from orchestrator.settings import Settings
from orchestrator.strategies.deepspeed_config import check_deepspeed
from orchestrator.strategies.elastic_arguments import check_elastic
from orchestrator.strategies.specs import DeepSpeedStrategy, ElasticStrategy, FSDPStrategy


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The decision.

    Attributes:
        on_group: Run on Ray workers, else in this process.
        num_workers: Processes.
        num_nodes: Distinct nodes that were asked for; None for wherever there is room.
        use_gpu: Each worker has GPUs, or a part of one.
        device: The device of a run in this process, as torch writes it.
        strategy: single, ddp, fsdp, deepspeed or elastic.
        backend: gloo or nccl; empty in this process.
        precision: As in the settings.
        group: What the workers are; None in this process.
        launched: Which of several processes this is that a launcher started; None where none did.
        notes: What else the user should know.
    """

    on_group: bool
    num_workers: int
    num_nodes: int | None
    use_gpu: bool
    device: str
    strategy: str
    backend: str
    precision: str
    group: GroupSpec | None = None
    launched: Launched | None = None
    notes: tuple[str, ...] = ()

    def describe(self) -> str:
        """Return the plan in one line, and a line for each note."""
        return "\n".join([self._place(), *(f"{note}." for note in self.notes)])

    def _place(self) -> str:
        if self.launched is not None:
            return (
                f"Runs in the {self.launched.world_size} processes that {self.launched.launcher} started, "
                f"rank 0 on {self.device}: strategy {self.strategy} over {self.backend}, "
                f"precision {self.precision}."
            )
        if self.group is None:
            how = "" if self.strategy == "single" else f" with strategy {self.strategy}"
            return f"Runs in this process on {self.device}{how}, precision {self.precision}."
        workers = f"{self.num_workers} Ray worker{'s' if self.num_workers > 1 else ''}"
        nodes = "" if self.num_nodes is None else f" on {self.num_nodes} nodes"
        kind = _say_gpus(self.group.resource("GPU")) + _say_place(self.group)
        how = f"strategy {self.strategy} over {self.backend}, precision {self.precision}"
        return f"Runs on {workers}{nodes}, {kind}: {how}."


def make_plan(
    settings: Settings,
    *,
    cuda_devices: int,
    scaling_config: Any = None,
    placement_group: Any = None,
    reservation: Reservation | None = None,
    mps: bool = False,
    launched: Launched | None = None,
) -> Plan:
    """Return where a call runs.

    Args:
        settings: The Trainer's arguments.
        cuda_devices: GPUs that torch sees in this process.
        scaling_config: A `ray.train.ScalingConfig`, or None.
        placement_group: A placement group that was given, or None.
        reservation: What the surrounding trial of a sweep has reserved; None outside of one.
        mps: Torch sees an Apple GPU in this process.
        launched: Which of several processes this is that a launcher started; None where none did.

    Raises:
        MisconfigurationError: Arguments contradict each other, or ask for a device that is not there.
    """
    use_gpu = _wants_gpu(settings, cuda_devices)
    if launched is not None and scaling_config is None and placement_group is None and reservation is None:
        return _plan_launched(settings, launched, use_gpu, cuda_devices)
    if scaling_config is not None:
        refuse_contradiction(settings, scaling_config)
        num_workers, num_nodes = scaling_config.num_workers, None
    else:
        per_node = _devices_per_node(settings, use_gpu, cuda_devices, reservation)
        num_workers = per_node * settings.num_nodes
        num_nodes = settings.num_nodes if settings.num_nodes > 1 else None
    reserved = reservation is not None and num_workers == reservation.num_workers
    on_group = num_workers > 1 or reserved or scaling_config is not None or placement_group is not None
    if not on_group and use_gpu and cuda_devices == 0:
        raise MisconfigurationError(
            f"Trainer({_say_wish(settings)}): torch sees no GPU in this process. "
            "Use accelerator='cpu', or install a build of torch that knows this machine's GPUs."
        )
    if not on_group and settings.spares:
        raise MisconfigurationError(
            f"Trainer(spares={settings.spares}): spares stand by for lost workers, and this run has none: it "
            "stays in this process. Leave spares out, or use devices of at least 2."
        )
    device = _device_here(settings, use_gpu, cuda_devices, mps, on_group)
    if on_group and settings.strategy == "single" and num_workers > 1:
        raise MisconfigurationError(
            f"Trainer(strategy='single') runs one process, and {num_workers} workers were asked for. Use "
            "strategy='ddp'."
        )
    group = None
    if on_group:
        workers = Workers(number=num_workers, num_nodes=num_nodes, use_gpu=use_gpu)
        group = make_group_spec(settings, workers, scaling_config, placement_group, reservation)
        use_gpu = group.resource("GPU") > 0
    strategy = _strategy_of(settings, num_workers, "cuda" if use_gpu else "cpu")
    check_precision(
        settings.precision, device.partition(":")[0] if not on_group else "cuda" if use_gpu else "cpu"
    )
    return Plan(
        on_group=on_group,
        num_workers=num_workers,
        num_nodes=num_nodes,
        use_gpu=use_gpu,
        device=device,
        strategy=strategy,
        backend="" if group is None else group.backend,
        precision=settings.precision,
        group=group,
        notes=_notes(settings, on_group),
    )


def _plan_launched(settings: Settings, launched: Launched, use_gpu: bool, cuda_devices: int) -> Plan:
    """Return the plan of one of several processes that a launcher started: it stays where it is."""
    environments.check(launched, settings.devices, settings.num_nodes)
    if settings.spares:
        raise MisconfigurationError(
            f"Trainer(spares={settings.spares}): {launched.launcher} started the processes of this run, and "
            "only it can replace them. Leave spares out."
        )
    if settings.strategy == "single":
        raise MisconfigurationError(
            f"Trainer(strategy='single') runs one process, and {launched.launcher} started "
            f"{launched.world_size}. Use strategy='ddp', or start one."
        )
    if use_gpu and launched.local_rank >= cuda_devices:
        raise MisconfigurationError(
            f"{launched.launcher} started {launched.local_world_size} processes on a machine on which torch "
            f"sees {cuda_devices} GPUs, and each needs its own. Start fewer, or use accelerator='cpu'."
        )
    number = (
        settings.devices[launched.local_rank] if isinstance(settings.devices, tuple) else launched.local_rank
    )
    check_precision(settings.precision, "cuda" if use_gpu else "cpu")
    return Plan(
        on_group=False,
        num_workers=launched.world_size,
        num_nodes=launched.num_nodes,
        use_gpu=use_gpu,
        device=f"cuda:{number}" if use_gpu else "cpu",
        strategy=_strategy_of(settings, launched.world_size, "cuda" if use_gpu else "cpu"),
        backend=backend_of(settings) or ("nccl" if use_gpu else "gloo"),
        precision=settings.precision,
        launched=launched,
        notes=() if not settings.strategy_note else (f"strategy 'ddp' is what {launched.launcher} started",),
    )


def _device_here(settings: Settings, use_gpu: bool, cuda_devices: int, mps: bool, on_group: bool) -> str:
    """Return the device of a run in this process."""
    if settings.accelerator == "mps" or (settings.accelerator == "auto" and mps and not use_gpu):
        if on_group and settings.accelerator == "mps":
            raise MisconfigurationError(
                "Trainer(accelerator='mps') runs one process. Use devices=1, or accelerator='cpu'."
            )
        if not mps and not on_group:
            raise MisconfigurationError(
                "Trainer(accelerator='mps'): torch sees no Apple GPU in this process. Use accelerator='cpu'."
            )
        return "cpu" if on_group else "mps"
    if not use_gpu or on_group:
        return "cpu"
    number = settings.devices[0] if isinstance(settings.devices, tuple) else 0
    if number >= cuda_devices:
        raise MisconfigurationError(
            f"Trainer(devices={list(settings.devices)!r}): torch sees {cuda_devices} GPUs in this process, "  # type: ignore[arg-type]
            f"numbered from 0. Use a number below {cuda_devices}."
        )
    return f"cuda:{number}"


def _strategy_of(settings: Settings, num_workers: int, device_type: str) -> str:
    """Return the strategy's name for so many processes; one has nothing to deal or to average."""
    spec = settings.strategy_spec
    if isinstance(spec, FSDPStrategy) and spec.cpu_offload and device_type == "cpu":
        raise MisconfigurationError(
            "Trainer(strategy='fsdp_cpu_offload') keeps parts in the host's memory, and the workers have no "
            "GPUs that they would be kept out of. Use strategy='fsdp'."
        )
    if isinstance(spec, ElasticStrategy):
        check_elastic(settings, spec, num_workers)
        return settings.strategy
    if num_workers == 1:
        return "single"
    if settings.strategy == "fsdp" and settings.sync_batchnorm:
        raise MisconfigurationError(
            "Trainer(strategy='fsdp', sync_batchnorm=True): sharded layers are not synchronised. "
            "Use strategy='ddp', or normalisation that does not look at the batch."
        )
    if isinstance(spec, DeepSpeedStrategy):
        check_deepspeed(settings)
    return settings.strategy if settings.strategy in ("fsdp", "deepspeed") else "ddp"


def _notes(settings: Settings, on_group: bool) -> tuple[str, ...]:
    notes = [settings.strategy_note] if settings.strategy_note else []
    if on_group and isinstance(settings.devices, tuple):
        notes.append(
            f"devices={list(settings.devices)}: Ray chooses which GPUs; CUDA_VISIBLE_DEVICES of its nodes "
            "says from which"
        )
    return tuple(notes)


def _wants_gpu(settings: Settings, cuda_devices: int) -> bool:
    """Whether to compute on GPUs: as told, else as reserved, else where torch sees any."""
    if settings.accelerator != "auto":
        return settings.accelerator not in ("cpu", "mps")
    reserved = dict(settings.resources_per_worker or ()).get("GPU")
    return cuda_devices > 0 if reserved is None else reserved > 0


def _say_wish(settings: Settings) -> str:
    """Return the argument that asks for a GPU, as the user wrote it."""
    if settings.accelerator != "auto" or settings.resources_per_worker is None:
        return f"accelerator={settings.accelerator!r}"
    return f"resources_per_worker={dict(settings.resources_per_worker)!r}"


def _say_gpus(gpus: float) -> str:
    """Return what each of several workers computes on."""
    if gpus == 0:
        return "on CPUs"
    return "one GPU each" if gpus == 1 else f"{gpus:g} GPU{'s' if gpus > 1 else ''} each"


def _say_place(group: GroupSpec) -> str:
    """Return what else was asked about the places of the workers, and how many stand by."""
    strategy, labels = group.placement_strategy, sorted(set(group.label_selectors))
    parts = [] if strategy == "PACK" else [f"placed by {strategy}"]
    if any(labels):
        said = "; ".join(" and ".join(f"{name}={value}" for name, value in item) or "any" for item in labels)
        parts.append(f"on nodes with {said}")
    if group.spares:
        parts.append(f"{group.spares} spare{'s' if group.spares > 1 else ''} standing by")
    return "".join(f", {part}" for part in parts)


def _devices_per_node(
    settings: Settings, use_gpu: bool, cuda_devices: int, reservation: Reservation | None
) -> int:
    if isinstance(settings.devices, int):
        return settings.devices
    if isinstance(settings.devices, tuple):
        if not use_gpu:
            raise MisconfigurationError(
                f"Trainer(devices={list(settings.devices)!r}) names GPUs, and torch sees none in this "
                f"process. Use devices={len(settings.devices)} and accelerator='cpu'."
            )
        return len(settings.devices)
    if reservation is not None and reservation.num_workers:
        return reservation.num_workers
    return cuda_devices if use_gpu and cuda_devices else 1
