"""The logical ranks of one process: which one runs, the random numbers that each draws, and what is refused.

All random generators are set from a key before anything that draws: reading, transfer hooks and each training
or evaluation step of a logical rank, and what a process does once for all of them. A key says where in the
run it is, and never which process it is. What cannot give the same results on any number of processes is a
`MisconfigurationError` before the first step.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import nn

from modules import rng
from modules.combined_reading import Reader
from orchestrator.errors import MisconfigurationError
from orchestrator.log_slots import LogSlots
from orchestrator.logical_slots import LogicalSlots, MetricStates
from orchestrator.metric_objects import MetricObjects
from orchestrator.optimizers import needs_closure
from orchestrator.settings import Settings
from orchestrator.strategies.elastic import Elastic
from orchestrator.strategies.specs import ElasticStrategy

if TYPE_CHECKING:
    from orchestrator.engine import Engine


def logical_ranks_of(settings: Settings, processes: int) -> int | None:
    """Return V of a run under ``strategy="elastic"``: as asked for, else one a process; None under others."""
    spec = settings.strategy_spec
    if not isinstance(spec, ElasticStrategy):
        return None
    return processes if spec.logical_ranks is None else spec.logical_ranks


class LogicalRanks:
    """The logical ranks that a process hosts.

    Args:
        engine: The run.
        strategy: Its layout.
    """

    def __init__(self, engine: Engine, strategy: Elastic) -> None:
        self._engine = engine
        self._strategy = strategy
        self.states = MetricStates(engine.module)
        self.running: int | None = None
        self.has_checked_step = False

    @property
    def hosted(self) -> tuple[int, ...]:
        """The logical ranks of this process, ascending."""
        return self._strategy.hosted

    @property
    def shown(self) -> int:
        """What ``trainer.global_rank`` is: the logical rank that runs, else the first that is hosted."""
        if self.running is not None:
            return self.running
        return self.hosted[0] if self.hosted else 0

    @property
    def checks_step(self) -> bool:
        """Whether `ElasticStrategy(check_step=True)` was asked for."""
        spec = self._engine.settings.strategy_spec
        return isinstance(spec, ElasticStrategy) and spec.check_step

    def make_slots(self, objects: MetricObjects) -> LogicalSlots:
        """Return slots for training."""
        return LogicalSlots(objects, self.states, self.hosted)

    def key(self, *place: int | str) -> None:
        """Set all random generators from the run's seed and a place in the run."""
        rng.set_seed(rng.fold(self._engine.order_seed, "elastic", *place))

    def key_once(self, what: str) -> None:
        """Set all random generators for what a process does once, alike in all of them."""
        state = self._engine.state
        self.key(what, state.windows, state.epoch)

    def run_as(self, slots: LogicalSlots, rank: int) -> None:
        """Be that logical rank from now on."""
        self.running = rank
        slots.run_as(rank)

    def home(self, slots: LogicalSlots) -> None:
        """Be the process again."""
        self.running = None
        slots.home()

    def evaluation_batches(
        self, slots: LogSlots, reader: Reader, limit: int | None, stage: str, index: int
    ) -> Iterator[Iterator[Any]]:
        """Yield, for each hosted logical rank, an iterator over its batches of an evaluation, and be that
        logical rank meanwhile. Each iterator must be used up before the next is asked for.

        Args:
            slots: Of the evaluation.
            reader: The loader, as it was loaded.
            limit: At most so many batches of each logical rank.
            stage: Which evaluation.
            index: The loader's number.
        """
        assert isinstance(slots, LogicalSlots)
        streams, plan = self._engine.data.evaluation_streams(reader), reader.plan
        streams.start_epoch(self._engine.state.epoch)
        assert plan is not None
        counts = [
            plan.batches(rank) if limit is None else min(limit, plan.batches(rank)) for rank in self.hosted
        ]
        batches = streams.read(0, (place for place, count in enumerate(counts) for _ in range(count)))
        for rank, count in zip(self.hosted, counts, strict=True):
            self.run_as(slots, rank)
            yield self._keyed(batches, count, stage, index, rank)
        self.home(slots)

    def _keyed(self, batches: Iterator[Any], count: int, *place: int | str) -> Iterator[Any]:
        """Yield so many batches, each read and used under generators of its own."""
        windows = self._engine.state.windows
        for number in range(count):
            self.key("read", windows, number, *place)
            batch = next(batches)
            self.key("evaluate", windows, number, *place)
            yield batch

    # ---------------------------------------------------------------- what is refused

    def refuse_module(self) -> None:
        """Refuse a module that cannot be trained by logical ranks.

        Raises:
            MisconfigurationError: It cannot.
        """
        engine = self._engine
        module, name = engine.module, type(engine.module).__qualname__
        if not module.automatic_optimization:
            raise MisconfigurationError(
                f"Trainer(strategy='elastic'): {name} optimises by hand (automatic_optimization=False), so "
                "the gradients of logical ranks cannot be added up between its steps. Use automatic "
                "optimization, or strategy='ddp'."
            )
        for optimizer in engine.optimizers:
            if needs_closure(optimizer):
                raise MisconfigurationError(
                    f"Trainer(strategy='elastic'): {type(optimizer).__name__} runs the training step within "
                    "its own step. Use another optimizer, or strategy='ddp'."
                )
        for path, layer in module.named_modules():
            if isinstance(layer, nn.SyncBatchNorm):
                raise MisconfigurationError(
                    f"Trainer(strategy='elastic'): {name}.{path} is a SyncBatchNorm, which meets other "
                    "processes within a step. Use BatchNorm, whose statistics are logical rank 0's, or "
                    "strategy='ddp'."
                )

    def refuse_data(self, reader: Reader, kind: str) -> None:
        """Refuse data whose batches cannot be dealt to logical ranks in advance.

        Raises:
            MisconfigurationError: They cannot.
        """
        total, plan = self._strategy.world_size, reader.plan
        if plan is None:
            raise MisconfigurationError(
                f"Trainer(strategy='elastic'): the {kind} data, a {type(reader.source).__qualname__}, does "
                "not say beforehand which samples it has (iterable-style, or dealt by itself), so logical "
                "ranks could not move between processes. Use a map-style data set, or strategy='ddp'."
            )
        if kind == "train" and plan.num_batches and 0 in plan.sizes(0):
            samples = plan.samples_before(plan.num_batches)
            raise MisconfigurationError(
                f"Trainer(strategy='elastic'): an epoch has {samples} samples, dealt to {total} logical "
                "ranks, so some would have none. Use fewer logical ranks, smaller batches, or more data."
            )

    def check_alike(self) -> None:
        """Check that all processes compute with as many threads and the same CPU capability; one that comes
        later is checked when it meets them. Communicates.

        Raises:
            MisconfigurationError: They do not.
        """
        if self._engine.place.joins:
            return
        self._strategy.refuse_unlike(self._strategy.gather(self._strategy.alike()))
