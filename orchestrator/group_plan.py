"""What a group of workers is made of: from the arguments, a ScalingConfig, or what a trial has reserved.

Pure functions; Ray is not started. The spec that is made here is the one that the group will be started with.
Arguments that contradict each other, or ask for a group that cannot be, are a `MisconfigurationError`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from cluster.errors import SpecError
from cluster.spec import GroupSpec
from orchestrator.errors import MisconfigurationError
from orchestrator.settings import Settings

_PRELOAD = ("orchestrator.launch", "orchestrator.homecoming", "orchestrator.fit", "orchestrator.recovery")
"""What a worker's share of a call imports."""


class Reservation(Protocol):
    """The part of a sweep's trial that a plan is made from.

    Attributes:
        num_workers: Workers that it has reserved; 0 when it trains in its own process.
    """

    num_workers: int

    def group_spec(self, num_workers: int, **options: Any) -> GroupSpec:
        """Return what to start in the place that is reserved; refuse another number of workers."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """The workers that devices, nodes and accelerator ask for.

    Attributes:
        number: All of them.
        num_nodes: Distinct nodes; None for wherever there is room.
        use_gpu: Each has a GPU.
    """

    number: int
    num_nodes: int | None
    use_gpu: bool


def make_group_spec(
    settings: Settings,
    workers: Workers,
    scaling_config: Any,
    placement_group: Any,
    reservation: Reservation | None,
) -> GroupSpec:
    """Return what the group is started with; a placement group goes before a trial's reservation."""
    options: dict[str, Any] = {
        "start_timeout_s": settings.start_timeout_s,
        "collective_timeout_s": settings.collective_timeout_s,
        "threads": settings.threads_per_worker or (1 if settings.strategy == "elastic" else None),
        "spares": settings.spares,
        "preload": _PRELOAD,
    }
    backend = backend_of(settings)
    if backend is not None:
        options["backend"] = backend
    resources = None if settings.resources_per_worker is None else dict(settings.resources_per_worker)
    try:
        if placement_group is not None:
            options["placement_group"] = placement_group
        if placement_group is None and reservation is not None:
            spec = reservation.group_spec(workers.number, **options)
        elif scaling_config is not None:
            spec = GroupSpec.from_scaling_config(scaling_config, **options)
        else:
            spec = GroupSpec.create(
                workers.number,
                num_nodes=workers.num_nodes,
                use_gpu=workers.use_gpu,
                resources_per_worker=resources,
                **options,
            )
    except SpecError as error:
        raise MisconfigurationError(f"The Trainer's arguments ask for an impossible group: {error}") from None
    gpus = spec.resource("GPU")
    if settings.accelerator in ("cpu", "gpu", "cuda") and (settings.accelerator == "cpu") != (gpus == 0):
        raise MisconfigurationError(
            f"Trainer(accelerator={settings.accelerator!r}) contradicts workers that have {gpus:g} GPUs "
            "each. Leave accelerator out, or change what a worker reserves."
        )
    return spec


def refuse_contradiction(settings: Settings, scaling_config: Any) -> None:
    """Refuse a ScalingConfig beside arguments that say something else."""
    workers = scaling_config.num_workers
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise MisconfigurationError(
            f"Trainer(scaling_config=...) has num_workers={workers!r}. Use one whole number of at least 1; a "
            "range is not supported."
        )
    asked = settings.devices if isinstance(settings.devices, int) else None
    if isinstance(settings.devices, tuple):
        asked = len(settings.devices)
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
    if settings.resources_per_worker is not None:
        raise MisconfigurationError(
            f"Trainer(resources_per_worker={dict(settings.resources_per_worker)!r}) and scaling_config both "
            "say what a worker reserves. Leave it out, and give scaling_config the resources_per_worker."
        )
    gpu = bool(getattr(scaling_config, "use_gpu", False))
    if (settings.accelerator == "cpu" and gpu) or (settings.accelerator in ("gpu", "cuda") and not gpu):
        raise MisconfigurationError(
            f"Trainer(accelerator={settings.accelerator!r}) contradicts scaling_config's use_gpu={gpu}. "
            "Leave accelerator out."
        )


def backend_of(settings: Settings) -> str | None:
    """Return the backend that the strategy insists on."""
    return getattr(settings.strategy_spec, "process_group_backend", None)
