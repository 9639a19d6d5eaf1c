"""What to ask Ray for: how many workers, with which resources, where.

A `GroupSpec` is a value: checked when it is made, frozen, hashable. Two equal specs ask for the same thing,
so the warm pool may answer the second with the workers of the first. A value that cannot be raises
`SpecError` before anything is started.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

from cluster.errors import SpecError
from cluster.labels import Selector, parse_selector

STRATEGIES = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")
BACKENDS = ("gloo", "nccl")
_GRAIN = 10_000  # Ray counts resources in ten-thousandths
_SHARE_OF_TYPE = 0.001  # of the resource accelerator_type:X, of which a node with such GPUs has 1


class ScalingLike(Protocol):
    """The part of `ray.train.ScalingConfig` that a group is made from."""

    num_workers: Any
    use_gpu: Any
    resources_per_worker: Any
    placement_strategy: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSpec:
    """A gang of equal workers. Make it with `GroupSpec.create`, which takes mappings.

    Attributes:
        num_workers: how many worker processes, at least 1.
        num_nodes: None: wherever there is room. n: exactly num_workers / n on each of n distinct nodes.
        resources_per_worker: sorted (name, amount) pairs in Ray's names ("CPU", "GPU", "memory" in bytes,
            custom ones).
        placement_strategy: Ray's "PACK", "SPREAD", "STRICT_PACK" or "STRICT_SPREAD"; num_nodes goes before
            it.
        backend: "gloo", or "nccl" (NCCL for CUDA tensors with Gloo for CPU tensors), which needs whole GPUs.
        threads: intra-op threads of each worker. None: its CPUs rounded down, at least 1.
        env: sorted (name, value) pairs, set in each worker's `os.environ`.
        start_timeout_s: seconds for reserving, spawning and forming the process group.
        collective_timeout_s: seconds after which a collective that waits for a peer fails; torch's default.
        spares: workers that stand by in places of their own, to take that of a lost one at once.
        placement_group: a Ray placement group that exists already. Its last `num_workers` bundles are used;
            it is never removed.
        label_selectors: which nodes may host a worker, by their labels: empty for any, else one selector for
            each worker; with num_nodes they are all the same.
        preload: modules that callables will need, imported by a worker while the group forms.

    Raises:
        SpecError: a value that cannot be, named as the caller wrote it.
    """

    num_workers: int
    num_nodes: int | None = None
    resources_per_worker: tuple[tuple[str, float], ...] = (("CPU", 1.0),)
    placement_strategy: str = "PACK"
    backend: str = "gloo"
    threads: int | None = None
    env: tuple[tuple[str, str], ...] = ()
    start_timeout_s: float = 60.0
    collective_timeout_s: float = 1800.0
    spares: int = 0
    placement_group: Any = None
    label_selectors: tuple[Selector, ...] = ()
    preload: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check every value, alone and against the others."""
        _check_count("num_workers", self.num_workers)
        if self.num_nodes is not None:
            self._check_nodes(self.num_nodes)
        if self.placement_strategy not in STRATEGIES:
            raise SpecError(
                f"placement_strategy={self.placement_strategy!r} is not known. "
                f"Use one of {', '.join(STRATEGIES)}."
            )
        if self.threads is not None:
            _check_count("threads", self.threads)
        if isinstance(self.spares, bool) or not isinstance(self.spares, int) or self.spares < 0:
            raise SpecError(f"spares={self.spares!r}. Use a whole number of at least 0.")
        for name in ("start_timeout_s", "collective_timeout_s"):
            seconds = getattr(self, name)
            if (
                isinstance(seconds, bool)
                or not isinstance(seconds, (int, float))
                or not 0 < seconds < math.inf
            ):
                raise SpecError(f"{name}={seconds!r} is not a time. Give seconds, more than 0.")
        self._check_resources()
        self._check_labels()
        if self.backend not in BACKENDS:
            raise SpecError(f"backend={self.backend!r} is not known. Use one of {', '.join(BACKENDS)}.")
        gpus = self.resource("GPU")
        if self.backend == "nccl" and gpus < 1:
            raise SpecError(
                f"backend='nccl' with {gpus:g} GPU per worker: NCCL needs a GPU for each rank. "
                "Ask for at least 1 GPU per worker, or use backend='gloo'."
            )

    def _check_nodes(self, num_nodes: int) -> None:
        _check_count("num_nodes", num_nodes)
        if self.num_workers % num_nodes:
            raise SpecError(
                f"num_workers={self.num_workers} does not divide over num_nodes={num_nodes}. "
                f"Use a multiple of {num_nodes} workers, or leave num_nodes out to place them wherever "
                "there is room."
            )
        if num_nodes > 1 and self.placement_strategy == "STRICT_PACK":
            raise SpecError(
                f"num_nodes={num_nodes} contradicts placement_strategy='STRICT_PACK', "
                "which wants one node. Leave one of them out."
            )
        if self.num_workers > num_nodes and self.placement_strategy == "STRICT_SPREAD":
            raise SpecError(
                f"num_workers={self.num_workers} on num_nodes={num_nodes} contradicts "
                "placement_strategy='STRICT_SPREAD', "
                "which wants each worker on a node of its own. Leave one of them out."
            )

    def _check_resources(self) -> None:
        if not self.resources_per_worker:
            raise SpecError(
                "resources_per_worker is empty: Ray cannot place it. Ask for something, such as {'CPU': 1}."
            )
        for name, given in self.resources_per_worker:
            amount = _amount(name, given)
            if name == "GPU" and amount > 1 and amount != int(amount):
                raise SpecError(
                    f"resources_per_worker['GPU']={amount!r} is refused by Ray: above 1 only whole GPUs. "
                    f"Use {math.ceil(amount)}."
                )
            if round(amount * _GRAIN) < 1:
                raise SpecError(
                    f"resources_per_worker[{name!r}]={amount!r} is below Ray's smallest amount, 0.0001. "
                    "Use a larger one."
                )

    def _check_labels(self) -> None:
        different = len(set(self.label_selectors)) > 1
        if self.label_selectors and len(self.label_selectors) != self.num_workers:
            raise SpecError(
                f"label_selector has {len(self.label_selectors)} selectors for {self.num_workers} workers. "
                "Give one dictionary for all workers, or a list with one for each."
            )
        if any(self.label_selectors) and self.placement_group is not None:
            raise SpecError(
                "label_selector contradicts a placement_group, whose bundles have their nodes already. "
                "Give the placement group a bundle_label_selector instead."
            )
        if different and (self.spares or self.num_nodes is not None):
            other = f"spares={self.spares}" if self.spares else f"num_nodes={self.num_nodes}"
            raise SpecError(
                f"label_selector with a different selector for each worker contradicts {other}, "
                "which takes all workers for equal. Give one dictionary, or leave the other out."
            )

    def for_spares(self) -> GroupSpec:
        """Return the spec of the spares' places: the same needs, on as many nodes as there are."""
        return replace(
            self,
            num_workers=self.spares,
            label_selectors=self.label_selectors[:1] * self.spares,
            num_nodes=None,
            placement_strategy="SPREAD",
            spares=0,
            placement_group=None,
        )

    def resource(self, name: str) -> float:
        """The amount of one resource that each worker reserves; 0.0 when none is asked for."""
        return dict(self.resources_per_worker).get(name, 0.0)

    @property
    def worker_threads(self) -> int:
        """Intra-op threads of each worker: `threads`, else its CPUs rounded down, at least 1."""
        return self.threads if self.threads is not None else max(1, math.floor(self.resource("CPU")))

    @classmethod
    def create(
        cls,
        num_workers: int,
        *,
        use_gpu: bool = False,
        resources_per_worker: Mapping[str, float] | None = None,
        env: Mapping[str, str] | None = None,
        label_selector: Mapping[str, str] | Sequence[Mapping[str, str]] | None = None,
        **options: Any,
    ) -> GroupSpec:
        """A spec from mappings, with the usual resources filled in.

        Args:
            num_workers: how many worker processes.
            use_gpu: ask for one GPU per worker unless resources_per_worker says how much, and default to
                NCCL.
            resources_per_worker: amounts by Ray's names. None: 1 CPU, and 1 GPU with `use_gpu`. An amount of
                0 is left out.
            env: environment variables to set in the workers.
            label_selector: labels of the nodes that may host workers, as in Ray: one mapping for all workers,
                or a list with one for each.
            options: the other fields of `GroupSpec` by name.

        Raises:
            SpecError: an unknown option or a value that cannot be.

        >>> GroupSpec.create(2, use_gpu=True).resources_per_worker
        (('CPU', 1.0), ('GPU', 1.0))
        """
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(options) - known)
        if unknown:
            raise SpecError(
                f"GroupSpec has no field {', '.join(unknown)}. Its fields are {', '.join(sorted(known))}."
            )
        if resources_per_worker is None:
            wanted: dict[str, float] = {"CPU": 1.0, "GPU": 1.0} if use_gpu else {"CPU": 1.0}
        else:
            wanted = dict(resources_per_worker)
            if use_gpu:
                if wanted.get("GPU", 1.0) == 0:
                    raise SpecError(
                        "use_gpu=True contradicts resources_per_worker['GPU']=0. Leave one of them out."
                    )
                wanted.setdefault("GPU", 1.0)
        pairs = tuple(sorted((name, _amount(name, amount)) for name, amount in wanted.items() if amount != 0))
        if "backend" not in options and dict(pairs).get("GPU", 0.0) >= 1:
            options["backend"] = "nccl"
        variables = tuple(sorted((str(k), str(v)) for k, v in (env or {}).items()))
        return cls(
            num_workers=num_workers,
            resources_per_worker=pairs,
            env=variables,
            label_selectors=_selectors(label_selector, num_workers),
            **options,
        )

    @classmethod
    def from_scaling_config(cls, config: ScalingLike, **options: Any) -> GroupSpec:
        """A spec from a `ray.train.ScalingConfig`, or anything with its attributes.

        Args:
            config: its num_workers (an int), use_gpu, resources_per_worker, placement_strategy,
                accelerator_type and label_selector are read. A whole GPU of a type is asked for as Ray
                does: by 0.001 of the resource that nodes with such GPUs have.
            options: further fields of `GroupSpec` by name.

        Raises:
            SpecError: num_workers is not one number, it asks for TPUs, or a value that cannot be.
        """
        workers = config.num_workers
        if isinstance(workers, bool) or not isinstance(workers, int):
            raise SpecError(
                f"ScalingConfig(num_workers={workers!r}) is not one number, which a group needs. "
                "Use an int of at least 1."
            )
        if getattr(config, "use_tpu", False):
            raise SpecError(
                "ScalingConfig(use_tpu=True): groups run on CPUs and CUDA GPUs. Leave use_tpu and topology "
                "out."
            )
        use_gpu = bool(getattr(config, "use_gpu", False))
        resources = getattr(config, "resources_per_worker", None)
        kind = getattr(config, "accelerator_type", None)
        if kind is not None:
            resources = (
                dict(resources) if resources is not None else {"CPU": 1, **({"GPU": 1} if use_gpu else {})}
            )
            resources.setdefault(f"accelerator_type:{kind}", _SHARE_OF_TYPE)
        options.setdefault("placement_strategy", getattr(config, "placement_strategy", None) or "PACK")
        return cls.create(
            workers,
            use_gpu=use_gpu,
            resources_per_worker=resources,
            label_selector=getattr(config, "label_selector", None),
            **options,
        )


def _selectors(given: Any, num_workers: Any) -> tuple[Selector, ...]:
    """Return one selector for each worker; none where any node will do."""
    if given is None or given == {} or isinstance(num_workers, bool) or not isinstance(num_workers, int):
        return ()
    if isinstance(given, Mapping):
        return (parse_selector(given),) * num_workers
    if isinstance(given, (str, bytes)) or not isinstance(given, Sequence):
        return (parse_selector(given),)
    found = tuple(parse_selector(item) for item in given)
    if len(found) != num_workers:
        raise SpecError(
            f"label_selector has {len(found)} selectors for {num_workers} workers. "
            "Give one dictionary for all workers, or a list with one for each."
        )
    return found if any(found) else ()


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SpecError(f"{name}={value!r} is not a count. Use an int of at least 1.")


def _amount(name: str, value: object) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(float(value)) or float(value) <= 0:  # type: ignore[arg-type]
        raise SpecError(
            f"resources_per_worker[{name!r}]={value!r} is not an amount. Use a number above 0, "
            "or leave it out."
        )
    return float(value)  # type: ignore[arg-type]
