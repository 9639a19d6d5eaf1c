"""Takes a rank of a data-parallel fit through the loss of another: no step is lost, no sample, no process
that was not.

A rank *stands* behind each commit (see `orchestrator.standpoint`). Before it commits, its private state has
reached another rank, and another's has reached it; so whoever is lost, somebody knows where it stood. Behind
every *meeting* (a log point, a validation, an epoch's end) all ranks know all of it. After a loss those that
are left form the next generation of the process group with the replacements, agree on where all go on, bring
weights and all else that ranks have alike to those that lack it, and each goes back to what it had there.
Then the step is run again with the same samples, in the same order of reduction.

What happens only where ranks are lost costs nothing before; at a commit one message of a few kilobytes is
sent. Where nobody is left who knows a lost rank's state, `RunLost` says so on all ranks, and the run begins
again from a checkpoint. So it does where the loss comes in a place that cannot be run again: before the
first step, in a hook that speaks to other ranks in the middle of an accumulation window, at the very end.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

from cluster.errors import RunLost
from modules.module import LightningModule
from modules.rng_mark import put
from orchestrator.checkpoint import contents
from orchestrator.foreign import meets_ranks
from orchestrator.hooks import overrides
from orchestrator.optimizers import needs_closure
from orchestrator.place import Peers
from orchestrator.private_state import PrivateState, PrivateStates, completed, dumps, loads
from orchestrator.standpoint import Standpoint, go_back_to
from orchestrator.step_parts import visible
from orchestrator.strategies.ddp import DataParallel
from orchestrator.strategies.elastic import Elastic

if TYPE_CHECKING:
    from orchestrator.engine import Engine
    from orchestrator.fit import TrainingLoop

Hook = Callable[..., Any]


@dataclass(slots=True, kw_only=True)
class BatchEnd:
    """What is left to be done behind a commit.

    Attributes:
        outputs: What the training step returned.
        seen: What hooks see of it.
        batch: The batch; None where this rank had none.
        has_batch: This rank had a batch; without one only hooks that meet other ranks run.
        index: Its number in the epoch.
        hook: The first of the hooks that has yet to run, by its place among them.
        reread: The batch is not here: it must be read again, and the hooks before `hook` run on it first.
    """

    outputs: Any = None
    seen: Any = None
    batch: Any = None
    has_batch: bool = True
    index: int = 0
    hook: int = 0
    reread: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Alike:
    """What ranks have alike beside weights, where it must be put back."""

    counters: dict[str, int]
    callbacks: dict[str, Any]
    schedulers: list[dict[str, Any]]
    groups: list[list[dict[str, Any]]]
    board: dict[str, Any]
    should_stop: bool
    stop_agreed: bool


@dataclass(slots=True)
class _Place:
    """A standpoint of this rank, with what it needs to go back there."""

    at: Standpoint
    own: PrivateState
    alike: _Alike | None = None
    left: BatchEnd | None = None


@dataclass(slots=True)
class _Known:
    """The private states of all ranks at the last meeting, as they travelled."""

    at: Standpoint | None = None
    states: dict[int, bytes] = field(default_factory=dict)


def can_recover(engine: Engine) -> bool:
    """Whether a fit can go on in place after a loss: ranks average gradients once a step, in one commit."""
    optimizers = engine.optimizers
    return (
        engine.place.peers is not None
        and isinstance(engine.strategy, (DataParallel, Elastic))
        and engine.manual is None
        and len(optimizers) == 1
        and not needs_closure(optimizers[0])
        and not overrides(engine.module, "optimizer_step", LightningModule)
    )


class Recovery:
    """The recovery of one rank.

    Args:
        engine: Of a run that `can_recover`.

    Attributes:
        left: After `recover`, what is left to be done behind the commit; the loop takes it.
        returns: `recover` has brought this rank back into an epoch that had begun.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._peers = cast(Peers, engine.place.peers)
        self._strategy = cast(DataParallel, engine.strategy)
        self._states = PrivateStates(engine)
        self._here: _Place | None = None
        self._before: _Place | None = None
        self._entering: _Place | None = None  # in the exchange of a meeting
        self._committing: PrivateState | None = None
        self._taken: dict[str, Any] = {}
        self._meeting = engine.hooks.positions("on_train_batch_end", meets_ranks)
        self._known = _Known()
        self._stands = False
        self._running_hook: BatchEnd | None = None
        self._order: dict[str, Any] = {}
        self._knows_order = False  # of the gradients, which DDP finds behind its first step
        self.left: BatchEnd | None = None
        self.returns = False
        self._strategy.before_meeting = self.about_to_meet

    @property
    def stands(self) -> bool:
        """Whether nothing has happened since the standpoint that could not be done again."""
        return self._stands

    def is_loss(self, error: BaseException) -> bool:
        """Whether an exception comes of the loss of a rank, from a place that can be run again."""
        return self._here is not None and self._peers.is_broken(error)

    # ---------------------------------------------------------------- on the way

    def before_commit(self, outputs: Any) -> None:
        """Make sure that what this rank alone knows outlives it, before the optimizer steps."""
        if self._known.at is None:
            return
        engine = self._engine
        if engine.place.device.type == "cuda":
            import torch

            torch.cuda.synchronize()  # a reduction that failed shows only now
        assert engine.feed is not None
        kept = outputs if engine.hooks["on_train_batch_end"] else None
        self._committing = self._states.take(batches=engine.feed.position, validated=False, outputs=kept)
        self._peers.hand_over(engine.state.windows + 1, self._states.dumps(self._committing))

    def open_window(self) -> None:
        """Note that the first batch of a window is about to run: where ranks meet now, none can stand."""
        self._stands = False

    def end_batch(self, hooks: Sequence[Hook], end: BatchEnd) -> None:
        """Run what hooks are left behind a commit, and stand there. A hook that speaks to other ranks can be
        run again.

        Args:
            hooks: Those of the end of a batch.
            end: What they get, and which is the next.
        """
        self._running_hook = end
        met = self._strategy.meetings
        for index in range(end.hook, len(hooks)):
            end.hook = index
            if end.has_batch:
                hooks[index](end.seen, end.batch, end.index)
            elif index in self._meeting:
                hooks[index](None, None, end.index)
        self._running_hook = None
        end.hook = len(hooks)
        if self._known.at is None:
            return
        if self._strategy.meetings != met:
            self.meet(left=end)
        elif self._is_behind_commit():
            self._stand(end, again=bool(hooks))
        if not self._knows_order and self._engine.state.windows:
            self._strategy.before_save()
            self._knows_order = True

    def about_to_meet(self) -> None:
        """Take what ranks have alike, which a meeting may change, where it was not taken at this standpoint.

        Called by the strategy before ranks exchange anything, and by the loop before a validation and an
        epoch's end.
        """
        if self._known.at is None:
            return
        if self._running_hook is not None and self._is_behind_commit():
            self._stand(self._running_hook, again=True)
        here = self._here
        if self._stands and here is not None and here.alike is None:
            here.alike = self._alike()

    def meet(self, *, begun: bool = True, left: BatchEnd | None = None) -> None:
        """Exchange private states, so that every rank knows where every rank stands. Communicates."""
        engine, here = self._engine, self._here
        engine.saves.settle()  # from here on no rank would make the checkpoint again
        windows = engine.state.windows
        meetings = here.at.meetings + 1 if here is not None and here.at.windows == windows else 1
        own = self._states.take(
            batches=engine.state.epoch_batches,
            validated=engine.state.validated,
            begun=begun,
            whole=True,
            outputs=None if left is None else left.outputs,
        )
        self._stands = False  # the exchange itself changes nothing that would have to be put back
        self._entering = _Place(Standpoint(windows, meetings), own, left=left)
        states = self._strategy.gather(dumps(own))
        self._before, self._here, self._entering = self._here, self._entering, None
        self._known = _Known(self._here.at, self._named(states))
        self._stands = True
        self._note()

    def _is_behind_commit(self) -> bool:
        return self._here is None or self._here.at.windows != self._engine.state.windows

    def _stand(self, end: BatchEnd, *, again: bool) -> None:
        state = self._engine.state
        self._engine.saves.settle()
        own = self._committing
        if again or own is None:
            own = self._states.take(batches=state.epoch_batches, validated=False, outputs=end.outputs)
        self._before, self._here = self._here, _Place(Standpoint(state.windows, 0), own, left=replace(end))
        self._stands = True
        self._note()

    def _note(self) -> None:
        """Let go of what only earlier standpoints need, and say how far the run is."""
        feed, before = self._engine.feed, self._before
        if feed is not None and before is not None and before.own.epoch_index == self._engine.state.epoch:
            feed.forget(before.own.batches)
        self._peers.note_progress(self._engine.state.windows)

    def _alike(self) -> _Alike:
        engine = self._engine
        return _Alike(
            counters=engine.state.counters(),
            callbacks={item.state_key: copy.deepcopy(item.state_dict()) for item in engine.trainer.callbacks},
            schedulers=[copy.deepcopy(config.scheduler.state_dict()) for config in engine.schedulers],
            groups=[
                [
                    {key: value for key, value in group.items() if key != "params"}
                    for group in item.param_groups
                ]
                for item in engine.optimizers
            ],
            board=engine.board.state(),
            should_stop=bool(engine.trainer.should_stop),
            stop_agreed=engine.stop_agreed,
        )

    def end(self) -> None:
        """Stand nowhere any more: training is over."""
        self._peers.note_progress(0)
        self._strategy.before_meeting = None
        self._here = self._before = None

    # ---------------------------------------------------------------- after a loss

    def recover(self, loop: TrainingLoop) -> None:
        """Go on with the replacements from where all can. All ranks call it; a replacement too, to begin.

        Raises:
            RunLost: Nobody knows what a lost rank alone knew.
        """
        arrives = self._arrives()
        while True:
            self._order = self._strategy.leave(self._engine.module) or self._order
            loop.drop_steps()
            if not arrives:
                self._rejoin()
            arrives = False
            try:
                self._settle(loop)
                return
            except Exception as error:
                if not self._peers.is_broken(error):
                    raise

    def _arrives(self) -> bool:
        """Whether this rank has come, and has formed a process group with the others already."""
        return self._engine.place.joins and self._here is None

    def _rejoin(self) -> None:
        """Form the next process group."""
        self._peers.rejoin()

    def _named(self, states: list[bytes]) -> dict[int, bytes]:
        """Return the states of all ranks by rank."""
        return dict(enumerate(states))

    def _settle(self, loop: TrainingLoop) -> None:
        engine, strategy = self._engine, self._strategy
        self._stands = False
        self._running_hook = None
        found: list[Standpoint | None] = strategy.gather(None if self._here is None else self._here.at)
        target = go_back_to(found)
        if target is None:
            raise RunLost("All ranks were lost at once, and with them what only they knew.")
        replaced = [rank for rank, at in enumerate(found) if at is None]
        takers = [rank for rank, at in enumerate(found) if at is None or at.windows != target.windows]
        donor = next(rank for rank, at in enumerate(found) if at is not None and rank not in takers)
        place = self._place_at(target)
        offers = strategy.gather((self._offer(replaced, target), self._order))
        order = next((order for _, order in offers if order), {})
        self._knows_order = bool(order)
        states = _known_states([offer for offer, _ in offers], target)
        unknown = [rank for rank in replaced if rank not in states]
        if unknown:
            raise RunLost(
                f"What rank {unknown[0]} alone knew was held by a rank that was lost with it. "
                "The run can go on from a checkpoint."
            )
        if place is not None and strategy.rank not in takers and place.alike is not None:
            self._put_alike(place.alike)
        if takers and strategy.rank == donor:
            assert place is not None
            strategy.send(self._content(place), takers)
        elif strategy.rank in takers:
            self._take(strategy.receive(donor))
            if place is None:
                own, is_late = states[strategy.rank]
                left = None
                if self._taken["left"] is not None:
                    index, hook = self._taken["left"]
                    left = BatchEnd(
                        outputs=own.outputs,
                        seen=visible(own.outputs),
                        has_batch=False,
                        index=index,
                        hook=hook,
                        reread=is_late,
                    )
                place = _Place(target, own, left=left)
        assert place is not None
        strategy.reform(engine.module, order)
        loop.build_steps()
        self._go_back(loop, place)
        own = self._states.take(
            batches=place.own.batches,
            validated=place.own.validated,
            begun=place.own.begun,
            whole=True,
            outputs=place.own.outputs,
        )
        gathered = strategy.gather(dumps(own))
        self._before, self._entering = None, None
        self._here = _Place(target, own, alike=place.alike, left=place.left)
        self._known = _Known(target, dict(enumerate(gathered)))
        self._stands = True
        self.left = None if place.left is None else replace(place.left)
        self.returns = place.own.begun

    def _place_at(self, target: Standpoint) -> _Place | None:
        """Return this rank's own place at `target`; None for a replacement."""
        for place in (self._entering, self._here, self._before):
            if place is not None and place.at == target:
                return place
        if self._here is None:
            return None
        raise RunLost(f"Rank {self._strategy.rank} stands at {self._here.at} and cannot go back to {target}.")

    def _offer(self, replaced: Sequence[int], target: Standpoint) -> tuple[_Known, dict[int, bytes]]:
        """Return what this rank knows of those that were replaced: at the last meeting, and since."""
        known, held = self._known, self._peers.held()
        if known.at is not None and known.at > target:
            known = _Known()
        since = {
            rank: held[rank][target.windows] for rank in replaced if target.windows in held.get(rank, {})
        }
        return _Known(
            known.at, {rank: known.states[rank] for rank in replaced if rank in known.states}
        ), since

    def _content(self, place: _Place) -> dict[str, Any]:
        """Return all that ranks have alike, as it stands here."""
        engine = self._engine
        left = place.left
        return {
            "shared": contents.shared(engine),
            "should_stop": bool(engine.trainer.should_stop),
            "stop_agreed": engine.stop_agreed,
            "accumulate": engine.accumulate,
            "left": None if left is None else (left.index, left.hook),
        }

    def _take(self, content: dict[str, Any]) -> None:
        engine = self._engine
        contents.restore_shared(engine, content["shared"])
        engine.trainer.should_stop = content["should_stop"]
        engine.stop_agreed = content["stop_agreed"]
        engine.accumulate = content["accumulate"]
        self._taken = content

    def _put_alike(self, alike: _Alike) -> None:
        engine = self._engine
        engine.state.restore(alike.counters)
        for callback in engine.trainer.callbacks:
            if alike.callbacks[callback.state_key]:
                callback.load_state_dict(copy.deepcopy(alike.callbacks[callback.state_key]))
        for config, saved in zip(engine.schedulers, alike.schedulers, strict=True):
            config.scheduler.load_state_dict(copy.deepcopy(saved))
        for optimizer, groups in zip(engine.optimizers, alike.groups, strict=True):
            for group, values in zip(optimizer.param_groups, groups, strict=False):
                group.update(values)
        engine.board.restore(alike.board)
        engine.trainer.should_stop = alike.should_stop
        engine.stop_agreed = alike.stop_agreed

    def _go_back(self, loop: TrainingLoop, place: _Place) -> None:
        """Put back what this rank has for itself, and stand in the data where it stood."""
        engine, own = self._engine, place.own
        state = engine.state
        engine.rng_to_resume = None
        engine.precision.forget_step()
        for optimizer in engine.optimizers:
            optimizer.zero_grad()
        state.epoch_batches, state.validated = own.batches, own.validated
        state.stage = "train"
        self._states.put(own)
        left = place.left
        if not own.begun:
            loop.feed.restore(own.reading())
        elif left is not None and left.reread and engine.hooks["on_train_batch_end"]:
            left.batch = loop.read_again(own.epoch_index, own.batches, own.reading(), own.totals)
            left.has_batch = left.batch is not None
        else:
            loop.feed.go_back(own.epoch_index, own.batches, own.reading(), own.totals)
        put(own.random)
        if left is not None and left.reread:
            left.reread = False
            if left.has_batch:
                self._run_hooks_again(left)

    def _run_hooks_again(self, left: BatchEnd) -> None:
        """Run, in a replacement, the hooks that the lost process may not have run behind the commit: for what
        they log and draw. What they do to callbacks has been taken from another rank, and is taken again.
        """
        slots = self._engine.train_slots
        slots.batch, slots.batch_size = left.batch, 0
        slots.enter("on_train_batch_end")
        for hook in self._engine.hooks["on_train_batch_end"][: left.hook]:
            hook(left.seen, left.batch, left.index)
        contents.restore_callbacks(self._engine, self._taken["shared"])


def _known_states(
    offers: Sequence[tuple[_Known, dict[int, bytes]]], target: Standpoint
) -> dict[int, tuple[PrivateState, bool]]:
    """Return the states of lost ranks at `target`, from what others know: by rank, with whether it is that
    before the hooks behind the commit.
    """
    newest = max((known.at for known, _ in offers if known.at is not None), default=None)
    if newest is None:
        return {}
    wholes = {rank: data for known, _ in offers if known.at == newest for rank, data in known.states.items()}
    if newest == target:
        return {rank: (loads(data), False) for rank, data in wholes.items()}
    if target.meetings:
        return {}
    since = {rank: data for _, held in offers for rank, data in held.items()}
    return {
        rank: (completed(loads(since[rank]), loads(data)), True)
        for rank, data in wholes.items()
        if rank in since
    }
