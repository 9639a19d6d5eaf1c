"""What a user passes as ``Trainer(strategy=...)`` when a name does not say enough.

A spec is a frozen value that is checked when it is made and travels to the workers; what runs there is made
from it (`orchestrator.strategies.strategy.Strategy`). Names and meaning of the fields are PyTorch's. A value
that cannot be is a `MisconfigurationError`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from os import PathLike
from typing import Any, ClassVar

from orchestrator.errors import MisconfigurationError, suggest
from orchestrator.strategies.deepspeed_config import read_config

BACKENDS = ("gloo", "nccl")


@dataclass(frozen=True, slots=True, kw_only=True)
class SingleDeviceStrategy:
    """One process, one device.

    Attributes:
        device: Accepted for Lightning's sake; `Trainer(accelerator=..., devices=...)` says which device.
    """

    name: ClassVar[str] = "single"
    device: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DDPStrategy:
    """Every rank holds all weights, gradients are averaged by `torch.nn.parallel.DistributedDataParallel`.

    Attributes:
        find_unused_parameters: Some parameters get no gradient in some steps.
        gradient_as_bucket_view: Gradients are views into the buffers that are reduced.
        static_graph: The same parameters are used in every step.
        bucket_cap_mb: Size of these buffers in MiB; torch's default when None.
        broadcast_buffers: Rank 0's buffers are everybody's at each forward pass.
        process_group_backend: ``"gloo"`` or ``"nccl"``; by the device when None.
        timeout: How long a rank waits for another; `Trainer(collective_timeout_s=...)` when None.
        ddp_comm_hook: ``hook(state, bucket) -> Future[Tensor]``, which reduces a bucket in DDP's place.
        ddp_comm_state: The hook's first argument.
    """

    name: ClassVar[str] = "ddp"
    find_unused_parameters: bool = False
    gradient_as_bucket_view: bool = False
    static_graph: bool = False
    bucket_cap_mb: float | None = None
    broadcast_buffers: bool = True
    process_group_backend: str | None = None
    timeout: timedelta | float | None = None
    ddp_comm_hook: Callable[[Any, Any], Any] | None = None
    ddp_comm_state: Any = None

    def __post_init__(self) -> None:
        """Check every value."""
        for name in (
            "find_unused_parameters",
            "gradient_as_bucket_view",
            "static_graph",
            "broadcast_buffers",
        ):
            _check_switch("DDPStrategy", name, getattr(self, name))
        _check_backend("DDPStrategy", self.process_group_backend)
        _check_timeout("DDPStrategy", self.timeout)
        cap = self.bucket_cap_mb
        if cap is not None and (isinstance(cap, bool) or not isinstance(cap, (int, float)) or not cap > 0):
            raise MisconfigurationError(
                f"DDPStrategy(bucket_cap_mb={cap!r}). Use a number of MiB above 0, or None."
            )
        if self.ddp_comm_hook is not None and not callable(self.ddp_comm_hook):
            raise MisconfigurationError(
                f"DDPStrategy(ddp_comm_hook={self.ddp_comm_hook!r}). Use a function of (state, bucket)."
            )
        if self.ddp_comm_state is not None and self.ddp_comm_hook is None:
            raise MisconfigurationError(
                "DDPStrategy(ddp_comm_state=...) has no ddp_comm_hook that would get it. Give both."
            )

    def ddp_arguments(self) -> dict[str, Any]:
        """Return keyword arguments of `DistributedDataParallel`, without those that say what torch does
        anyway.
        """
        found: dict[str, Any] = {"find_unused_parameters": self.find_unused_parameters}
        for name in ("gradient_as_bucket_view", "static_graph"):
            if getattr(self, name):
                found[name] = True
        if not self.broadcast_buffers:
            found["broadcast_buffers"] = False
        if self.bucket_cap_mb is not None:
            found["bucket_cap_mb"] = self.bucket_cap_mb
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class FSDPStrategy:
    """Weights, gradients and optimizer state are dealt to the ranks by torch's ``fully_shard`` (FSDP2).

    Attributes:
        auto_wrap: Classes whose instances are gathered and let go one by one, a transformer's block, say;
            everything else forms one unit. A module may also call ``fully_shard`` itself, in
            ``configure_model``.
        min_num_params: Submodules with at least so many parameters, outside of the units within them, form
            units too; None for none.
        reshard_after_forward: Let go of a unit's weights between forward and backward; torch's choice when
            None.
        cpu_offload: Keep shards in the memory of the host; needs GPUs.
        state_dict_type: ``"full"`` gathers whole tensors on rank 0, which writes one file; ``"sharded"`` lets
            each rank write its part into a directory, without gathering. Both are read by any strategy.
        process_group_backend: ``"gloo"`` or ``"nccl"``; by the device when None.
        timeout: How long a rank waits for another; `Trainer(collective_timeout_s=...)` when None.
    """

    name: ClassVar[str] = "fsdp"
    auto_wrap: type | tuple[type, ...] | list[type] | set[type] = ()
    min_num_params: int | None = None
    reshard_after_forward: bool | None = None
    cpu_offload: bool = False
    state_dict_type: str = "full"
    process_group_backend: str | None = None
    timeout: timedelta | float | None = None

    def __post_init__(self) -> None:
        """Check every value."""
        _check_switch("FSDPStrategy", "cpu_offload", self.cpu_offload)
        if self.reshard_after_forward is not None:
            _check_switch("FSDPStrategy", "reshard_after_forward", self.reshard_after_forward)
        if self.state_dict_type not in ("full", "sharded"):
            raise MisconfigurationError(
                f"FSDPStrategy(state_dict_type={self.state_dict_type!r}) is "
                f"unknown.{suggest(self.state_dict_type, ('full', 'sharded'))} Use 'full' or 'sharded'."
            )
        _check_backend("FSDPStrategy", self.process_group_backend)
        _check_timeout("FSDPStrategy", self.timeout)
        if not all(isinstance(item, type) for item in self.classes()):
            raise MisconfigurationError(
                f"FSDPStrategy(auto_wrap={self.auto_wrap!r}). Use a class of modules, or several in a tuple."
            )
        least = self.min_num_params
        if least is not None and (isinstance(least, bool) or not isinstance(least, int) or least < 1):
            raise MisconfigurationError(
                f"FSDPStrategy(min_num_params={least!r}). Use a whole number of at least 1, or None."
            )

    def classes(self) -> tuple[Any, ...]:
        """Return `auto_wrap` as a tuple."""
        return (self.auto_wrap,) if isinstance(self.auto_wrap, type) else tuple(self.auto_wrap)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepSpeedStrategy:
    """Optimizer state, gradients and weights are dealt to the ranks by DeepSpeed's ZeRO.

    Needs the extra ``deepspeed``. Tested on CPUs with Gloo only; on GPUs it has not been run.

    Attributes:
        stage: What is dealt: 1, the optimizer's state; 2, gradients too; 3, weights too.
        offload_optimizer: Keep the optimizer's state in the memory of the host, and step there.
        offload_parameters: Keep weights there until they are needed; stage 3 only.
        config: More of DeepSpeed's own configuration, a dictionary or the path of a JSON file. What the
            Trainer decides (batch sizes, accumulation, clipping, precision, the optimizer) cannot be in it,
            unless it says ``"auto"``.
        process_group_backend: ``"gloo"`` or ``"nccl"``; by the device when None.
        timeout: How long a rank waits for another; `Trainer(collective_timeout_s=...)` when None.
    """

    name: ClassVar[str] = "deepspeed"
    stage: int = 2
    offload_optimizer: bool = False
    offload_parameters: bool = False
    config: Mapping[str, Any] | str | PathLike[str] | None = None
    process_group_backend: str | None = None
    timeout: timedelta | float | None = None

    def __post_init__(self) -> None:
        """Check every value, and read the file."""
        if isinstance(self.stage, bool) or self.stage not in (1, 2, 3):
            raise MisconfigurationError(
                f"DeepSpeedStrategy(stage={self.stage!r}). Use 1, 2 or 3; where nothing is to be dealt, "
                "strategy='ddp'."
            )
        _check_switch("DeepSpeedStrategy", "offload_optimizer", self.offload_optimizer)
        _check_switch("DeepSpeedStrategy", "offload_parameters", self.offload_parameters)
        if self.offload_parameters and self.stage < 3:
            raise MisconfigurationError(
                f"DeepSpeedStrategy(stage={self.stage}, offload_parameters=True): only stage 3 deals "
                "weights, so only there can they be elsewhere. Use stage=3, or leave offload_parameters out."
            )
        _check_backend("DeepSpeedStrategy", self.process_group_backend)
        _check_timeout("DeepSpeedStrategy", self.timeout)
        object.__setattr__(self, "config", read_config(self.config, self.stage))


@dataclass(frozen=True, slots=True, kw_only=True)
class ElasticStrategy:
    """The mathematics of a fixed number of logical ranks, on any number of processes, to the same bits.

    Attributes:
        logical_ranks: V: the ranks that samples are dealt to, and gradients averaged over; one a process of
            the start when None.
        min_workers: Go on with so many processes without waiting when others are lost.
        max_workers: Take in so many at most; as many as at the start when None, and in a trial of a sweep as
            many as there are logical ranks.
        check_step: Run each process's first batch of a fit twice beforehand, on a copy of the module, and
            refuse a training step that depends on more than weights, buffers, batch and random numbers.
        process_group_backend: ``"gloo"`` or ``"nccl"``; by the device when None.
        timeout: How long a process waits for another; `Trainer(collective_timeout_s=...)` when None.
    """

    name: ClassVar[str] = "elastic"
    logical_ranks: int | None = None
    min_workers: int = 1
    max_workers: int | None = None
    check_step: bool = False
    process_group_backend: str | None = None
    timeout: timedelta | float | None = None

    def __post_init__(self) -> None:
        """Check every value."""
        for name in ("logical_ranks", "min_workers", "max_workers"):
            value = getattr(self, name)
            optional = name != "min_workers"
            if value is None and optional:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise MisconfigurationError(
                    f"ElasticStrategy({name}={value!r}). Use a whole number of at least "
                    f"1{' or None' if optional else ''}."
                )
        most = self.max_workers
        if most is not None and most < self.min_workers:
            raise MisconfigurationError(
                f"ElasticStrategy(min_workers={self.min_workers}, max_workers={most}) leaves no number of "
                "workers. Use a max_workers that is not below min_workers."
            )
        for name in ("min_workers", "max_workers"):
            value = getattr(self, name)
            if value is not None and self.logical_ranks is not None and value > self.logical_ranks:
                raise MisconfigurationError(
                    f"ElasticStrategy(logical_ranks={self.logical_ranks}, {name}={value}): a worker hosts at "
                    f"least one logical rank. Use at most {self.logical_ranks} workers, or more logical "
                    "ranks."
                )
        _check_switch("ElasticStrategy", "check_step", self.check_step)
        _check_backend("ElasticStrategy", self.process_group_backend)
        _check_timeout("ElasticStrategy", self.timeout)


Spec = SingleDeviceStrategy | DDPStrategy | FSDPStrategy | DeepSpeedStrategy | ElasticStrategy


def timeout_s(spec: Spec | None) -> float | None:
    """Return a spec's timeout in seconds, or None where it says none."""
    found = getattr(spec, "timeout", None)
    return found.total_seconds() if isinstance(found, timedelta) else found


def _check_switch(owner: str, name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise MisconfigurationError(f"{owner}({name}={value!r}). Use True or False.")


def _check_backend(owner: str, value: Any) -> None:
    if value is not None and value not in BACKENDS:
        raise MisconfigurationError(
            f"{owner}(process_group_backend={value!r}) is unknown.{suggest(value, BACKENDS)} "
            "Use 'gloo', 'nccl' or None."
        )


def _check_timeout(owner: str, value: Any) -> None:
    if value is None:
        return
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < float("inf"):
        raise MisconfigurationError(
            f"{owner}(timeout={value!r}). Use a datetime.timedelta or a number of seconds, above 0."
        )
