"""How all ranks come to stop at the same place without a collective for it.

A place is a point between two batches at which every rank comes by: behind an optimizer step of training, or
behind a batch of a validation within fit. Places are ordered. Whoever stops the run sends every rank an
order; a rank that comes to a place which the order reaches waits there until the order is certain. The sender
makes it certain once every rank, having heard it, was still before the place that it names: so none can have
passed it, and all stop there. A rank that was already beyond makes the sender name a later place. Ranks
answer from another thread than the loop's, so one that is inside a long step, or waits for a peer, answers
too; nobody waits for anything but the sender, so this cannot hang on the ranks themselves.

`RankStop` is the rank's side, `agree` the sender's. In one process an order is certain from the start. Ranks
that have no driver (torchrun, srun) gather what each was told at log points: `GatheredStop`. Where a worker
dies meanwhile, `agree` lets all go on and begins anew, until its time is up.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cluster.errors import ClusterError
from orchestrator.stops import AgreedStop, Interrupted, Preempted

if TYPE_CHECKING:
    from orchestrator.engine import Engine

Position = tuple[int, int, int]
"""A place: accumulation windows that are closed, evaluations begun, batches of the last evaluation."""

ANYWHERE: Position = (-1, 0, 0)
"""Before every place."""
SIGNAL = "stop"
"""The name of the order among what the driver has told."""

_END = 10**12  # stands for the batches of an evaluation behind its last one, however many a rank had
_LOOK_S = 0.001
_AGAIN_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class StopOrder:
    """Stop at a place.

    Attributes:
        reason: Why, in words.
        interrupt: By Ctrl-C, rather than because the run must go.
        at: Stop at the first place that is not before this one.
        certain: Every rank will; otherwise wait there to be told.
    """

    reason: str
    interrupt: bool
    at: Position = ANYWHERE
    certain: bool = True

    def error(self, path: str | None, step: int, *, ended: bool = False) -> AgreedStop:
        """Return what leaves ``fit``, with what has happened in words.

        Args:
            path: The checkpoint that was saved, or None.
            step: Optimizer steps so far.
            ended: Training had come to its end when the order came.
        """
        if ended:
            kept = "It had come to its end."
        elif path is None:
            kept = "No checkpoint was saved: there is nothing to save, or no ModelCheckpoint to say where."
        else:
            kept = f"Go on with fit(ckpt_path={path!r})."
        kind = Interrupted if self.interrupt else Preempted
        return kind(f"{self.reason}: training stopped after step {step}. {kept}", path)


def next_place(positions: Sequence[Position]) -> Position:
    """Return a place behind the furthest of `positions`, with none between.

    >>> next_place([(7, 1, 0), (8, 1, 3)])
    (8, 1, 4)
    """
    windows, evaluations, batches = max(positions)
    return windows, evaluations, batches + 1


def agree(
    announce: Callable[[StopOrder | None], Sequence[Position | None]],
    order: StopOrder,
    is_over: Callable[[], bool],
) -> bool:
    """Make every rank stop at the same place.

    Args:
        announce: Tells every rank of an order, or that there is none, and returns where each was right behind
            that; None from one that has not begun.
        order: Why to stop.
        is_over: Whether the run is over, or its time up.

    Returns:
        Whether all ranks will stop; False when it was over before.
    """
    at = ANYWHERE
    while not is_over():
        draft = StopOrder(reason=order.reason, interrupt=order.interrupt, at=at, certain=False)
        try:
            heard = announce(draft)
            positions = [ANYWHERE if item is None else item for item in heard]
            if all(position < at for position in positions):
                announce(StopOrder(reason=order.reason, interrupt=order.interrupt, at=at))
                return True
            at = next_place(positions)
        except ClusterError:  # a worker died, or is not there yet: nobody may wait for its answer
            with contextlib.suppress(ClusterError):
                announce(None)
            at = ANYWHERE
            time.sleep(_AGAIN_S)
    return False


class RankStop:
    """A rank's side: where it is, and whether it stops there.

    Args:
        engine: Whose run.

    Attributes:
        told: What the driver has said, by name; the loop looks here after each batch. Empty costs nothing.
    """

    def __init__(self, engine: Engine) -> None:
        self.told = engine.place.told
        self._engine = engine
        self._evaluated: Position = (-1, 0, 0)
        self._evaluations = 0

    @property
    def must_go(self) -> bool:
        """Whether the rank was told that the run must go."""
        order = self.told.get(SIGNAL)
        return isinstance(order, StopOrder) and not order.interrupt

    def position(self) -> Position:
        """Return where the rank is. From any thread; it only ever grows."""
        return max((self._engine.state.windows, 0, 0), self._evaluated)

    def begin_evaluation(self) -> None:
        """Note that an evaluation begins."""
        self._evaluations += 1
        self._evaluated = (self._engine.state.windows, self._evaluations, 0)

    def count_evaluated(self) -> None:
        """Note that one more batch of the evaluation is done."""
        windows, evaluations, batches = self._evaluated
        self._evaluated = (windows, evaluations, batches + 1)

    def end_evaluation(self) -> None:
        """Note that all batches of the evaluation are done."""
        self._evaluated = (*self._evaluated[:2], _END)

    def check(self) -> None:
        """Stop here if that was ordered. All ranks do, or none; communicates if they do.

        Raises:
            AgreedStop: They do.
        """
        here = self.position()
        while True:
            order = self.told.get(SIGNAL)
            if not isinstance(order, StopOrder) or here < order.at:
                return
            if order.certain:
                stop(self._engine, order)
            time.sleep(_LOOK_S)


class GatheredStop:
    """The side of a rank that has no driver: all gather at log points what each was told."""

    def __init__(self) -> None:
        self.order: StopOrder | None = None

    def check(self, engine: Engine) -> None:
        """Stop here if any rank was told to. Communicates.

        Raises:
            AgreedStop: One was.
        """
        orders = [item for item in engine.strategy.gather(self.order) if item is not None]
        if orders:
            stop(engine, orders[0])


def stop(engine: Engine, order: StopOrder) -> None:
    """Save for going on, and leave ``fit``. All ranks call it at the same place; communicates.

    Raises:
        AgreedStop: Always.
    """
    path = save_to_resume(engine)
    error = order.error(path, engine.state.global_step)
    engine.say(str(error))
    raise error


def save_to_resume(engine: Engine) -> str | None:
    """Save where ``ckpt_path="last"`` finds it, if there is anything to save and a callback that says where;
    return the path. Communicates."""
    from orchestrator.callbacks.checkpoint_keeper import INTERRUPTED_NAME, CheckpointKeeper

    trainer = engine.trainer
    if trainer.fast_dev_run or trainer.sanity_checking or not trainer.global_step:
        return None
    savers = trainer.checkpoint_callbacks
    for keeper in savers:
        if isinstance(keeper, CheckpointKeeper):
            return keeper.save_to_resume(trainer)
    for saver in savers:  # Lightning's own, and users' own
        directory = getattr(saver, "dirpath", None)
        if directory and not hasattr(saver, "ckpt_path"):  # an OnExceptionCheckpoint saves by itself
            path = f"{str(directory).rstrip('/')}/{INTERRUPTED_NAME}"
            trainer.save_checkpoint(path)
            return path
    return next((str(saver.ckpt_path) for saver in savers if hasattr(saver, "ckpt_path")), None)
