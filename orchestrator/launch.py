"""Carries a job to where its plan says and brings the result back: the only place where training meets the
cluster.

On a group every worker gets its own copy of trainer, module, data and callbacks, and runs an engine on it;
rank 0 goes on with the driver's random state. Progress comes back as events while it runs. A failure is
raised here as it was there, with a note that names the rank.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from modules import rng
from orchestrator import portable, storage
from orchestrator.engine import Engine
from orchestrator.interleaving import interleave
from orchestrator.job import Job, new_attempt
from orchestrator.launched import run_launched
from orchestrator.place import Place
from orchestrator.plan import Plan
from orchestrator.preemption import GroupDesk, desk_in_process, run_heeding
from orchestrator.progress import ProgressRecord
from orchestrator.rank_logs import RankLogs
from orchestrator.requeue import find_requeue, on_signal
from orchestrator.run_event import RunEvent
from orchestrator.stops import AgreedStop
from orchestrator.strategies.specs import ElasticStrategy
from orchestrator.sweep.stopped import TrialStopped

if TYPE_CHECKING:
    from cluster import WorkerGroup
    from cluster.context import WorkerContext
    from cluster.recovery import Recovered
    from cluster.spec import GroupSpec
    from cluster.standstill import StandstillPolicy
    from orchestrator.homecoming import Standing
    from orchestrator.settings import Settings
    from orchestrator.trainer import Trainer

_log = logging.getLogger("orchestrator")

Show = Callable[[ProgressRecord], None]

# Where one rank may be for long while the others wait: it writes, downloads, or builds the model.
_SLOW = frozenset({f"{__package__}.checkpoint", f"{__package__}.loggers"}) | {
    "prepare_data",
    "setup",
    "configure_model",
}


def run_in_process(trainer: Trainer, job: Job, plan: Plan, show: Show | None) -> Any:
    """Run the job here, as one of several ranks where a launcher has started several, and return what its
    entry point returns.
    """
    environment = trainer.plugins.environment
    requeue = find_requeue(os.environ, environment, trainer.settings.default_root_dir)
    with on_signal(requeue if job.fn == "fit" else None, environment):
        if plan.launched is not None:
            return run_launched(trainer, job, plan, show, _hearing(trainer), requeue)
        place = Place(device=torch.device(plan.device), emit=_hearing(trainer))
        if trainer.trial is not None:
            place = replace(place, ask=trainer.trial.answer)
        engine = Engine(trainer, job, place, show)
        engine.requeue = requeue
        return run_heeding(engine, desk_in_process)


def run_on_group(trainer: Trainer, job: Job, spec: GroupSpec, show: Show | None) -> Any:
    """Run the job on a worker group, warm if there is one, and return what its entry point returns."""
    from cluster import RecoveryPolicy, RunLost, environment, pool
    from orchestrator.homecoming import Luggage, Standing, apply_standing, unpack

    trial = trainer.trial
    sent = environment.chosen(os.environ)
    seeds = {name: os.environ[name] for name in rng.SEED_VARIABLES if name in os.environ}
    portable.check(trainer, job)

    standing: list[Standing] = []

    recovered_so_far = 0
    logs = RankLogs(lambda: None if trainer.record is None else trainer.record.folder, job.fn)

    def on_event(rank: int, event: object) -> None:
        if isinstance(event, Standing):
            standing.append(event)
            del standing[:-1]
        elif not isinstance(event, ProgressRecord):
            hear(event)
        elif show is not None:
            show(replace(event, recovered=recovered_so_far))

    hear = _hearing(trainer)
    settings = trainer.settings
    policy = RecoveryPolicy(max_failures=settings.max_failures, wait_s=settings.replacement_timeout_s)
    if isinstance(settings.strategy_spec, ElasticStrategy) and job.fn == "fit":
        policy.min_workers = settings.strategy_spec.min_workers
        policy.max_workers = settings.strategy_spec.max_workers
        if trial is not None:
            trial.let_grow(policy, spec, settings.strategy_spec.logical_ranks or spec.num_workers)

    def on_recovered(recovered: Recovered) -> None:
        nonlocal recovered_so_far
        recovered_so_far += len(recovered.causes)
        logs.begin(worker for worker in group.workers if worker.rank in recovered.ranks)
        _say(recovered.describe())
        if trainer.record is not None:
            trainer.record.note("recovery", text=recovered.describe(), ranks=recovered.ranks)

    state = rng.capture()
    desk: GroupDesk | None = None
    try:
        with pool.lease(spec) as group, contextlib.ExitStack() as open_desk:
            for note in (_say_sent(sent), storage.check(trainer, job, group)):
                if note is not None:
                    _say(note)
            if job.fn == "fit":
                desk = GroupDesk(group, trainer.preemption_notice, group.hand_over)
                open_desk.callback(_end_if_it_leaves, group, desk)
                open_desk.enter_context(desk.open())
            open_desk.callback(logs.close)
            logs.begin(group.workers)
            while True:
                try:
                    outcomes = group.run(
                        run_on_worker,
                        trainer,
                        job,
                        {**sent, **seeds},
                        state,
                        show is not None,
                        on_event=on_event,
                        on_rank_output=logs.take,
                        on_ask=None if trial is None else lambda rank, question: trial.answer(question),
                        on_recovered=on_recovered,
                        on_notice=None if desk is None else desk.take,
                        recovery=policy if settings.max_failures else None,
                        standstill=_watch_over(settings),
                    )
                    break
                except RunLost as lost:
                    job = _again(trainer, job, standing)
                    if trainer.record is not None:
                        trainer.record.note("again", text=str(lost), ckpt_path=job.ckpt_path)
    except BaseException as error:
        if standing:
            apply_standing(trainer, job, standing[-1])
        trainer.state.status = "interrupted"
        for logger in trainer.loggers:  # rank 0's copy may have ended with its process
            with contextlib.suppress(Exception):
                logger.finalize("failed")
        if desk is not None and desk.gave_up and isinstance(error, Exception):
            raise desk.outcome(trainer.global_step) from error  # type: ignore[misc]
        raise
    luggage = outcomes[0]  # of the first process that is there
    assert isinstance(luggage, Luggage)
    result = unpack(trainer, job, luggage)
    stopped = luggage.stopped
    if stopped is None and desk is not None:
        stopped = desk.outcome(trainer.global_step)
    if stopped is not None:
        raise stopped
    if job.fn == "predict" and job.return_predictions:
        return interleave([result, *outcomes[1:]])
    return result


def _end_if_it_leaves(group: WorkerGroup, desk: GroupDesk) -> None:
    """End a group whose machines are about to go."""
    if desk.leaves:
        group.shutdown()


def _again(trainer: Trainer, job: Job, standing: list[Standing]) -> Job:
    """Return the job to run after one that could not go on: from its newest checkpoint, or from the start."""
    from orchestrator.checkpoint.newest import first_usable, newest_first
    from orchestrator.homecoming import checkpoints_of

    attempt = None if job.attempt is None else new_attempt()
    found = newest_first(checkpoints_of(trainer, job, standing[-1]) if standing else ())
    newest = first_usable(found, job.fn, trains=True, stacklevel=3) if job.fn == "fit" else None
    if newest is None:
        _say(f"{job.fn} starts again: what a lost worker alone knew is in no checkpoint.")
        return replace(job, attempt=attempt)
    _say(f"{job.fn} goes on from {newest}.")
    return replace(job, ckpt_path=newest, is_verified=True, attempt=attempt)


def run_on_worker(
    context: WorkerContext,
    trainer: Trainer,
    job: Job,
    variables: dict[str, str],
    state: dict[str, Any],
    shows: bool,
) -> Any:
    """Run the job on one worker; rank 0 returns its `Luggage`, the others their predictions."""
    from ray import cloudpickle

    from orchestrator.homecoming import pack, take_standing

    elastic = isinstance(trainer.settings.strategy_spec, ElasticStrategy) and job.fn == "fit"
    comes = elastic and context.joining  # it makes itself ready, and meets the others then
    if context.joining and not comes:
        context.rejoin()
    for name in rng.SEED_VARIABLES:  # Ray's processes have the seed of the time when Ray was started
        os.environ.pop(name, None)
    os.environ.update(variables)
    rng.restore(state)
    place = Place(
        rank=1 if comes else context.members.index(context.rank),
        world_size=len(context.members),
        local_rank=context.local_rank,
        node_rank=context.node_rank,
        num_nodes=context.num_nodes,
        device=torch.device(context.device),
        emit=context.emit,
        ask=context.ask,
        told=context.signals,
        standing=take_standing,
        pickler=cloudpickle.CloudPickler,
        peers=context if context.recovers else None,
        joins=context.joining,
    )
    context.where = lambda: f"epoch {trainer.state.epoch}, step {trainer.state.global_step}"
    context.hidden = ("orchestrator", "modules")
    show = context.emit if shows and (elastic or context.rank == 0) else None
    stopped: BaseException | None = None
    result = None
    engine = Engine(trainer, job, place, show)
    position = context.position = engine.stopping.position
    context.show_progress(
        lambda: (trainer.state.stage, trainer.state.windows, trainer.state.epoch_batches, position())
    )
    context.heeds_notices = job.fn == "fit"
    try:
        result = engine.run()
    except (TrialStopped, AgreedStop) as reason:  # on all ranks at once, so the workers stay warm
        stopped = reason.with_traceback(None)
    if engine.is_global_zero:
        return pack(trainer, job, result, stopped)
    return result if job.fn == "predict" else None


def _watch_over(settings: Settings) -> StandstillPolicy | None:
    """Return when a standstill is looked into; None where the user wants none of it."""
    from cluster.standstill import StandstillPolicy

    if settings.autopsy_after_s is None:
        return None
    return StandstillPolicy(patience_s=settings.autopsy_after_s, slow=_SLOW, tell=_log.warning)


def _say_sent(sent: dict[str, str]) -> str | None:
    """Return which environment variables go to the workers of a cluster; one of our own has them anyway."""
    from cluster import session

    return (
        f"Environment variables sent to the workers: {', '.join(sent)}."
        if sent and not session.owned()
        else None
    )


def _hearing(trainer: Trainer) -> Callable[[object], None]:
    """Return what takes rank 0's words: for the run's record, or for the user."""

    def hear(event: object) -> None:
        if not isinstance(event, RunEvent):
            _say(event)
        elif trainer.record is not None:
            trainer.record.take(event)

    return hear


def _say(event: object) -> None:
    """Pass on what rank 0 wants the user to know."""
    _log.info("%s", event)
