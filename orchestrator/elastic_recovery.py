"""Takes a process of an elastic fit through losses and arrivals: the others' logical ranks are hosted
elsewhere.

As `orchestrator.recovery`, with one difference: what must outlive a process is what its logical ranks have
logged and counted; all else is alike in all processes, or follows from numbers. So a lost process is not
waited for: those that are left lay its logical ranks out anew and run the step again, with the same samples
and random numbers. One that comes is told all behind a step, and gets logical ranks of others. What hooks
have logged behind the last commit in a lost first process is logged again by the next first one.
"""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from cluster.errors import RunLost
from modules.rank_streams import RankStreams
from modules.rng_mark import put
from orchestrator.logical_slots import LogicalSlots
from orchestrator.private_state import PrivateState, dumps, loads
from orchestrator.recovery import BatchEnd, Hook, Recovery, _Known, _Place
from orchestrator.relief import STEPS, relieved_shares
from orchestrator.standpoint import Standpoint, go_back_to
from orchestrator.step_parts import visible
from orchestrator.strategies.elastic import Elastic

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.engine import Engine
    from orchestrator.fit import TrainingLoop

INVITATION = "invitation"
"""What the driver tells of who has come: (generation, its members)."""


class Moves(Exception):
    """All processes leave a whole process group for one with a process more, behind this step."""


class ElasticRecovery(Recovery):
    """The recovery of one process.

    Args:
        engine: Of a run that `orchestrator.recovery.can_recover`.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._elastic = cast(Elastic, engine.strategy)
        self._elastic.news = engine.place.told
        self._moves = False
        self._stays = False
        self._shares: list[int] | None = None  # that processes are to host
        self._times: list[list[float]] = []
        self._timed = -1

    def is_loss(self, error: BaseException) -> bool:
        """Whether an exception says that the process group is another from here on."""
        return isinstance(error, Moves) or super().is_loss(error)

    def end_batch(self, hooks: Sequence[Hook], end: BatchEnd) -> None:
        """Run what hooks are left behind a commit, and stand there; leave for another process group where all
        have heard of one.

        Raises:
            Moves: All have.
        """
        super().end_batch(hooks, end)
        if self._here is None or not self._stands:
            return
        if self._elastic.heard > self._peers.generation:
            self._elastic.barrier()  # nobody leaves while another has yet to get what was sent
            self._moves = True
            raise Moves
        self._look_at_times()

    def _look_at_times(self) -> None:
        """Relieve slow processes, where all have found that this gains.

        Raises:
            Moves: It does.
        """
        strategy, state = self._elastic, self._engine.state
        if state.windows == self._timed or strategy.processes == 1:
            return
        self._timed = state.windows
        self._times = [*self._times[1 - STEPS :], strategy.times]
        hosted = [len(own) for own in strategy.layout]
        self._shares = relieved_shares(self._times, hosted)
        if self._shares is not None:
            self._engine.say(
                f"Step {state.global_step}: processes take {_seconds(strategy.times)} for {hosted} logical "
                f"ranks, and get {self._shares} from here on."
            )
            self._stays = True
            raise Moves

    def _arrives(self) -> bool:
        return False  # who comes makes itself ready first, so that nobody waits for that

    def _rejoin(self) -> None:
        if self._stays:  # only logical ranks move
            self._stays = False
            return
        self._shares = None
        if self._moves:
            self._moves = False
            generation, members = cast("tuple[int, tuple[int, ...]]", self._engine.place.told[INVITATION])
            self._peers.move(generation, members)
        else:
            self._peers.rejoin()

    def _named(self, states: list[bytes]) -> dict[int, bytes]:
        return dict(zip(self._peers.members, states, strict=True))

    def _settle(self, loop: TrainingLoop) -> None:
        engine, strategy = self._engine, self._elastic
        self._stands = False
        self._running_hook = None
        strategy.take_place()
        self._take_rank()
        here = self._here
        own_ranks: tuple[int, ...] = () if here is None else strategy.hosted
        found = strategy.gather((None if here is None else here.at, own_ranks, strategy.alike()))
        strategy.refuse_unlike([item for _, _, item in found])
        standpoints: list[Standpoint | None] = [at for at, _, _ in found]
        target = go_back_to(standpoints)
        if target is None:
            raise RunLost("All processes were lost at once, and with them what only they knew.")
        takers = [place for place, at in enumerate(standpoints) if at is None or at.windows != target.windows]
        donor = next(place for place, at in enumerate(standpoints) if at is not None and place not in takers)
        place = self._place_at(target)
        logged, late = self._collect(strategy.gather(self._logged_at(place, target)))
        if place is not None and strategy.rank not in takers and place.alike is not None:
            self._put_alike(place.alike)
        if takers and strategy.rank == donor:
            assert place is not None
            alike = dumps(replace(place.own, logged={}, outputs=None))
            strategy.send({**self._content(place), "own": alike}, takers)
        elif strategy.rank in takers:
            self._take(strategy.receive(donor))
            if place is None:
                left = None
                if self._taken["left"] is not None:
                    index, hook = self._taken["left"]
                    left = BatchEnd(has_batch=False, index=index, hook=hook)
                place = _Place(target, loads(self._taken["own"]), left=left)
        assert place is not None
        shares, self._shares = self._shares, None
        self._times, self._timed = [], target.windows  # what is known of times is about another layout
        strategy.lay_out(strategy.layout_after(_claims([hosted for _, hosted, _ in found]), shares))
        slots = cast(LogicalSlots, engine.train_slots)
        slots.host(strategy.hosted)
        slots.reset_metrics()
        engine.data.forget_streams()
        if loop.feed is not None:
            loop.feed.close()
        loop.feed = engine.feed = loop.make_feed()
        strategy.reform(engine.module, {})
        loop.build_steps()
        own = replace(place.own, logged={"ranks": {rank: logged[rank] for rank in strategy.hosted}})
        place = _Place(target, own, alike=place.alike, left=place.left)
        self._go_back(loop, place)
        if 0 in late and 0 in strategy.hosted:
            self._log_again(place, late[0])
        taken = self._states.take(
            batches=own.batches, validated=own.validated, begun=own.begun, whole=True, outputs=own.outputs
        )
        gathered = strategy.gather(dumps(taken))
        self._before, self._entering = None, None
        self._here = _Place(target, replace(own, logged=taken.logged), alike=place.alike, left=place.left)
        self._known = _Known(target, self._named(gathered))
        self._stands = True
        self.left = None if place.left is None else replace(place.left)
        self.returns = own.begun

    def _take_rank(self) -> None:
        """Note which process this is now; the first has the loggers and the display."""
        engine = self._engine
        engine.place = replace(engine.place, rank=self._elastic.rank)
        if engine.is_global_zero:
            engine.lead()

    def _logged_at(self, place: _Place | None, target: Standpoint) -> dict[int, tuple[int, Any]]:
        """Return what is known here of what logical ranks had logged at `target`: by logical rank, with how
        good it is. 2 is what a process that stands there has itself, 1 what all have told each other there, 0
        what was handed over before the commit.
        """
        known: dict[int, tuple[int, Any]] = {}

        def add(grade: int, logged: dict[str, Any], own: PrivateState) -> None:
            for rank, state in logged.get("ranks", {}).items():
                if rank not in known or known[rank][0] < grade:
                    known[rank] = grade, state if grade else (state, own.outputs)

        for copies in self._peers.held().values():
            if target.windows in copies:
                own = loads(copies[target.windows])
                add(0, own.logged, own)
        if self._known.at == target:
            for data in self._known.states.values():
                own = loads(data)
                add(1, own.logged, own)
        if place is not None:
            add(2, place.own.logged, place.own)
        return known

    def _collect(self, offers: list[dict[int, tuple[int, Any]]]) -> tuple[dict[int, Any], dict[int, Any]]:
        """Return what every logical rank had logged; and of those that were handed over before the commit,
        what their steps had returned.

        Raises:
            RunLost: Nobody knows it of some.
        """
        best: dict[int, tuple[int, Any]] = {}
        for rank, (grade, state) in itertools.chain.from_iterable(offer.items() for offer in offers):
            if rank not in best or best[rank][0] < grade:
                best[rank] = grade, state
        unknown = sorted(set(range(self._elastic.world_size)) - set(best))
        if unknown:
            raise RunLost(
                f"What logical rank {unknown[0]} had logged was held by a process that was lost with its "
                "own. The run can go on from a checkpoint."
            )
        logged = {rank: state if grade else state[0] for rank, (grade, state) in best.items()}
        return logged, {rank: state[1] for rank, (grade, state) in best.items() if not grade}

    def _log_again(self, place: _Place, outputs: Any) -> None:
        """Run the hooks behind the commit as logical rank 0, whose process is lost, for what they log. What
        they do to callbacks was done here already, and is put back.
        """
        engine, own = self._engine, place.own
        hooks = engine.hooks["on_train_batch_end"]
        left, form = place.left, engine.data
        if left is None or not hooks or not own.begun:
            return
        plan = form.load_training().plan
        if plan is None or own.batches > plan.batches(0):
            return
        reader = form.training_readers()[0]
        streams = RankStreams([reader], engine.order_seed)
        streams.start_epoch(own.epoch_index)
        assert engine.logical is not None
        engine.logical.key("read", own.epoch_index, own.batches - 1, 0)
        batch = next(streams.read(own.batches - 1, [0]))
        engine.logical.key("transfer", own.epoch_index, own.batches - 1, 0)
        if engine.transfer is not None:
            batch = engine.transfer(batch, 0)
        callbacks = {item.state_key: copy.deepcopy(item.state_dict()) for item in engine.trainer.callbacks}
        engine.logical.key("committed", place.at.windows - 1, own.epoch_index)
        slots = engine.train_slots
        slots.batch, slots.batch_size = batch, 0
        slots.enter("on_train_batch_end")
        for hook in hooks[: left.hook]:
            hook(visible(outputs), batch, left.index)
        for item in engine.trainer.callbacks:
            if callbacks[item.state_key]:
                item.load_state_dict(callbacks[item.state_key])
        put(own.random)


def _seconds(times: Sequence[float]) -> str:
    return ", ".join(f"{item:.2f} s" for item in times)


def _claims(hosted: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Return what each process hosts where two may name the same: the first that does."""
    taken: set[int] = set()
    found = []
    for own in hosted:
        found.append(tuple(rank for rank in own if rank not in taken))
        taken |= set(own)
    return found
