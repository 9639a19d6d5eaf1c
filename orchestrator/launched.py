"""Runs a call in processes that torchrun or srun has started: each is one rank, and keeps the result itself.

All processes run the same script, so all make the same calls in the same order. Where a group of workers
starts as a copy of the driver, these have started apart: so rank 0's random state and log directories become
everybody's first. The process group lasts until the process ends. A rank that fails leaves the others to the
launcher, which ends them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from modules import rng
from orchestrator import environments
from orchestrator.engine import Engine
from orchestrator.interleaving import interleave
from orchestrator.place import Place
from orchestrator.preemption import desk_of_rank, run_heeding
from orchestrator.progress import ProgressRecord
from orchestrator.strategies.ranks import GroupOfRanks

if TYPE_CHECKING:
    from orchestrator.job import Job
    from orchestrator.plan import Plan
    from orchestrator.requeue import Requeue
    from orchestrator.trainer import Trainer


def run_launched(
    trainer: Trainer,
    job: Job,
    plan: Plan,
    show: Callable[[ProgressRecord], None] | None,
    say: Callable[[object], None],
    requeue: Requeue | None,
) -> Any:
    """Run the job as this process's rank and return what its entry point returns, the same on all ranks."""
    launched = plan.launched
    assert launched is not None
    device = torch.device(plan.device)
    environments.join(
        launched, backend=plan.backend, timeout_s=trainer.settings.collective_timeout_s, device=device
    )
    ranks = GroupOfRanks(device)
    _begin_alike(trainer, ranks)
    place = Place(
        rank=launched.rank,
        world_size=launched.world_size,
        local_rank=launched.local_rank,
        node_rank=launched.node_rank,
        num_nodes=launched.num_nodes,
        device=device,
        keeps=True,
        emit=say,
    )
    loggers = trainer.loggers
    try:
        engine = Engine(trainer, job, place, show if launched.rank == 0 else None)
        engine.requeue = requeue
        result = run_heeding(engine, desk_of_rank)
    finally:
        trainer.loggers = loggers
    if job.fn == "predict" and job.return_predictions:
        return interleave(ranks.gather(result))
    return result


def _begin_alike(trainer: Trainer, ranks: GroupOfRanks) -> None:
    """Make rank 0's random state, seed and log directories everybody's. Communicates."""
    for logger in trainer.loggers:
        if ranks.rank == 0:
            logger.claim()
    versions = [getattr(logger, "_version", None) for logger in trainer.loggers]
    state = rng.capture()
    state.pop("cuda", None)
    state, versions = ranks.broadcast((state, versions))
    rng.restore(state)
    for logger, version in zip(trainer.loggers, versions, strict=True):
        if hasattr(logger, "_version"):
            logger._version = version
