"""Logical ranks: the mathematics of V ranks, hosted by any number of processes, to the same bits.

Each process computes the gradients of the logical ranks that it hosts, one after the other; they are summed
in one fixed tree (`cluster.tree_reduce`), so the sum does not depend on who hosts what. Every logical rank
begins a step with the same buffers, and afterwards all have logical rank 0's. What else must be alike rides
along in one small vector in which each number comes from one process, so that adding it up loses nothing. A
module whose training step depends on more than weights, buffers, batch and random numbers is not reproduced.
A peer that is gone makes the exchange raise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cluster.layout import Layout, relay, spread
from orchestrator.errors import MisconfigurationError
from orchestrator.strategies.logical_buffers import LogicalBuffers
from orchestrator.strategies.logical_gradients import LogicalGradients, trainable
from orchestrator.strategies.ranks import GroupOfRanks

T = TypeVar("T")


class Elastic(GroupOfRanks):
    """The strategy of V logical ranks.

    Args:
        device: Where this process's copy of the module lives.
        logical_ranks: V.
        grouped: There is a process group; else this process hosts all.
        threads: Intra-op threads to compute with; None leaves them.

    Attributes:
        rank: This process among those that are there.
        processes: How many there are.
        world_size: V.
        layout: Which process hosts which logical ranks.
        hosted: Those that this process hosts, ascending.
        news: What the driver has told this process, by name; an invitation to another process group has its
            number first.
        heard: After a step, the newest such number that every process was told.
        seconds: What this process has computed for its logical ranks in this step; shared in the exchange.
        times: After a step, that of each process.
    """

    name = "elastic"
    in_step = False

    def __init__(
        self,
        device: torch.device,
        *,
        logical_ranks: int,
        grouped: bool,
        threads: int | None = None,
    ) -> None:
        self.device = device
        self.before_meeting: Callable[[], None] | None = None
        self.meetings = 0
        self.grouped = grouped
        self.world_size = logical_ranks
        self.optimizers: list[torch.optim.Optimizer] = []
        self.training_step: Callable[..., Any]
        self.local_step: Callable[..., Any]
        self.news: Mapping[str, Any] = {}
        self.heard = 0
        self.seconds = 0.0
        self.times: list[float] = []
        self._threads = threads
        self._threads_before: int | None = None
        self._module: nn.Module | None = None
        self._gradients: LogicalGradients | None = None
        self._buffers: LogicalBuffers | None = None
        self._counts: list[float] = []
        self._counts_in_use = False
        self.take_place()
        self.layout: Layout = ()
        self.hosted: tuple[int, ...] = ()
        self.lay_out(spread(logical_ranks, self.processes))

    def take_place(self) -> None:
        """Note which process this is in the process group as it is now."""
        there = self.grouped and dist.is_initialized()  # who comes to a run forms the group when it is ready
        self.rank = dist.get_rank() if there else 0
        self.processes = dist.get_world_size() if there else 1

    def lay_out(self, layout: Layout) -> None:
        """Host what this layout says from now on."""
        self.layout, self.hosted = layout, layout[self.rank]

    def layout_after(self, before: Sequence[Sequence[int]], shares: Sequence[int] | None = None) -> Layout:
        """Return the layout that follows from what each process that is there hosts, with so many each."""
        return relay(before, self.world_size, shares)

    def alike(self) -> tuple[int, str]:
        """Return what bits depend on beside the mathematics: intra-op threads, and the CPU's capability."""
        return torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()

    def refuse_unlike(self, found: Sequence[tuple[int, str]]) -> None:
        """Refuse processes that compute differently, from what `alike` returned in each.

        Raises:
            MisconfigurationError: They do.
        """
        if len(set(found)) > 1:
            raise MisconfigurationError(
                f"Trainer(strategy='elastic'): processes compute with (threads, CPU capability) "
                f"{list(found)}, so bits would depend on who hosts which logical rank. Set "
                "threads_per_worker, and ATEN_CPU_CAPABILITY to the least of all machines."
            )

    # ---------------------------------------------------------------- setting up

    def setup(self, module: nn.Module, *, training: bool) -> None:
        """Move the module to the device; when `training`, make ready for reducing."""
        if self.device.type != "cpu":
            module.to(self.device)
        if self._threads is not None and self.device.type == "cpu":
            self._threads_before = torch.get_num_threads()
            torch.set_num_threads(self._threads)
        self.training_step = self.local_step = getattr(module, "training_step", None)  # type: ignore[assignment]
        self._module = module
        if training:
            self._gradients = self._make_gradients(module)
            self._buffers = LogicalBuffers(module)

    def teardown(self) -> None:
        """Undo `setup`."""
        if self._threads_before is not None:
            torch.set_num_threads(self._threads_before)
            self._threads_before = None
        self._gradients = self._buffers = self._module = None

    def follow(self, module: nn.Module) -> bool:
        """Take note of parameters that began or ceased to need gradients; the training step stays."""
        if self._gradients is not None and self._gradients.parameters != trainable(module):
            self._gradients = self._make_gradients(module)
        return False

    def leave(self, module: nn.Module) -> dict[str, Any]:
        """Let go of the process group, which is broken, and of the step that was begun."""
        self._gradients = None
        if self._buffers is not None:
            self._buffers.forget()
        return {}

    def reform(self, module: nn.Module, order: dict[str, Any]) -> None:
        """Make ready for reducing in the present process group and layout."""
        self._gradients = self._make_gradients(module)

    def _make_gradients(self, module: nn.Module) -> LogicalGradients:
        return LogicalGradients(module, self.layout, self.rank, self.device)

    # ---------------------------------------------------------------- a step

    def open_window(self) -> None:
        """Note the buffers that every logical rank begins with."""
        assert self._buffers is not None
        self._buffers.open_window(keeps=len(self.hosted) > 1 or self.rank != 0)

    def begin_rank(self) -> None:
        """Begin with the batches of another logical rank than the first: with the buffers of the step."""
        assert self._buffers is not None
        self._buffers.put_back()

    def end_rank(self, rank: int) -> None:
        """Take the gradients of a logical rank whose batches have run; parameters have none afterwards."""
        assert self._gradients is not None and self._buffers is not None
        self._gradients.take(rank)
        if rank == 0 and len(self.hosted) > 1:
            self._buffers.keep()

    def end_ranks(self, counts: dict[int, float], in_use: bool) -> None:
        """Note, before gradients are reduced, what losses that are sums are sums over.

        Args:
            counts: By logical rank.
            in_use: Training steps here return sums.
        """
        self._counts = [counts.get(rank, 0.0) for rank in range(self.world_size)]
        self._counts_in_use = in_use

    def reduce_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give each parameter the mean of its gradient over all logical ranks, absent ones counting as zero;
        buffers become logical rank 0's. Communicates.
        """
        gradients, buffers = self._gradients, self._buffers
        assert gradients is not None and buffers is not None
        first = self.rank == 0
        changed = buffers.changed() if first else [0.0] * len(buffers.all)
        mine = self.rank, self.processes
        invited = self.news["invitation"][0] if "invitation" in self.news else 0
        shared = self._add_up(
            [
                self._counts,
                [float(self._counts_in_use)],
                gradients.present(),
                changed,
                _alone(invited, *mine),
                _alone(self.seconds, *mine),
            ]
        )
        self._counts, in_use, present, changed, told, self.times = shared
        self._counts_in_use = in_use[0] > 0
        self.heard = int(min(told))
        gradients.finish([bool(item) for item in present])
        if first and len(self.hosted) > 1:
            buffers.take_kept()
        if self.processes > 1 and any(changed):
            buffers.share([bool(item) for item in changed])

    def _add_up(self, parts: list[list[float]]) -> list[list[float]]:
        """Return the sums over processes of lists of numbers of which one process has each."""
        if self.processes == 1:
            return parts
        flat = torch.tensor([item for part in parts for item in part], dtype=torch.float64)
        dist.all_reduce(flat)  # on the CPU, over Gloo: no device waits
        sums = cast("list[float]", flat.tolist())
        found, start = [], 0
        for part in parts:
            found.append(sums[start : start + len(part)])
            start += len(part)
        return found

    def counts(self, number: int) -> list[int]:
        """Return whether any logical rank's losses are sums, as one number: it was shared in the exchange."""
        return [int(self._counts_in_use)]

    def add_up(self, value: Tensor) -> Tensor:
        """Return the sum of the logical ranks' counts, in their order: they were shared in the exchange."""
        total = 0.0
        for item in self._counts:
            total += item
        return torch.full_like(value, total)

    def sync_gradients(self, on: bool) -> None:
        """Gradients are reduced once all of a step's are there."""

    def reduce_after_backward(self, parameters: Iterable[nn.Parameter]) -> None:
        """Manual optimization is refused before it could be asked for."""
        raise AssertionError("manual optimization is refused under elastic")

    # ---------------------------------------------------------------- messages between processes

    def gather(self, value: T) -> list[T]:
        """Return every process's `value`, by process. Communicates."""
        self._meet()
        if not self.grouped:
            return [value]
        values: list[Any] = [None] * self.processes
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: T, source: int = 0) -> T:
        """Return the `value` of process `source`. Communicates."""
        return super().broadcast(value, source) if self.grouped else value

    def barrier(self) -> None:
        """Wait until all processes are here."""
        if self.grouped:
            super().barrier()

    def all_gather(self, tensor: Tensor, group: Any = None, sync_grads: bool = False) -> Tensor:
        """Refuse: which processes there are must not show in a run.

        Raises:
            MisconfigurationError: Always.
        """
        raise MisconfigurationError(
            "all_gather under strategy='elastic': the number of processes may change, and results must not "
            "depend on it. Log values and metric objects with self.log(..., sync_dist=True)."
        )

    # ---------------------------------------------------------------- what a checkpoint keeps

    def state_dict(self) -> dict[str, Any]:
        """Return what a run that goes on from a checkpoint must have alike, and where it ran last."""
        return {
            "logical_ranks": self.world_size,
            "threads": torch.get_num_threads(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "layout": [list(hosted) for hosted in self.layout],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Check that the run can go on to the same bits.

        Raises:
            MisconfigurationError: V, the threads or the CPU's capability are others.
        """
        own = self.state_dict()
        for key, what, advice in _MUST_AGREE:
            if key in state and state[key] != own[key]:
                raise MisconfigurationError(
                    f"The checkpoint was written by a run with {what} {state[key]}, and this one has "
                    f"{own[key]}: it could not go on to the same bits. {advice.format(state[key])}"
                )


_MUST_AGREE = (
    ("logical_ranks", "logical ranks (ElasticStrategy(logical_ranks=...))", "Use {}."),
    ("threads", "intra-op threads", "Use Trainer(threads_per_worker={})."),
    ("cpu_capability", "the CPU capability", "Use such machines, or set ATEN_CPU_CAPABILITY={} on all."),
)


def _alone(value: float, place: int, places: int) -> list[float]:
    """Return a list of zeros with `value` at a place."""
    return [float(value) if index == place else 0.0 for index in range(places)]
