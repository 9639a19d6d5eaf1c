"""What ``strategy="elastic"`` cannot be combined with: refused from the arguments alone.

Pure. What only the module or the data can tell is refused by `orchestrator.logical_ranks`.
"""

from __future__ import annotations

from orchestrator.errors import MisconfigurationError
from orchestrator.settings import Settings
from orchestrator.strategies.specs import ElasticStrategy


def check_elastic(settings: Settings, spec: ElasticStrategy, processes: int) -> None:
    """Refuse arguments that contradict logical ranks.

    Args:
        settings: The Trainer's arguments.
        spec: The strategy.
        processes: How many there are at the start.

    Raises:
        MisconfigurationError: Some do.
    """
    total = processes if spec.logical_ranks is None else spec.logical_ranks
    if processes > total:
        raise MisconfigurationError(
            f"ElasticStrategy(logical_ranks={total}) and {processes} workers: a worker hosts at least one "
            f"logical rank. Use at most {total} workers, or logical_ranks={processes}."
        )
    for name in ("min_workers", "max_workers"):
        value = getattr(spec, name)
        if value is not None and value > total:
            raise MisconfigurationError(
                f"ElasticStrategy({name}={value}) with {total} logical ranks: a worker hosts at least one. "
                f"Use at most {total}, or more logical_ranks."
            )
    if spec.min_workers > processes:
        raise MisconfigurationError(
            f"ElasticStrategy(min_workers={spec.min_workers}) and {processes} workers at the start. Use at "
            "least as many devices x num_nodes."
        )
    if spec.max_workers is not None and spec.max_workers < processes:
        raise MisconfigurationError(
            f"ElasticStrategy(max_workers={spec.max_workers}) and {processes} workers at the start. Use at "
            "most as many devices x num_nodes."
        )
    if settings.sync_batchnorm:
        raise MisconfigurationError(
            "Trainer(strategy='elastic', sync_batchnorm=True): synchronised layers meet other processes "
            "within a step. Leave sync_batchnorm out: statistics are logical rank 0's; or use strategy='ddp'."
        )
    if not settings.use_distributed_sampler:
        raise MisconfigurationError(
            "Trainer(strategy='elastic', use_distributed_sampler=False): samples are dealt to logical ranks, "
            "which move between processes, so a sampler of your own cannot know for whom it is. Leave it out."
        )
    if settings.join_uneven:
        raise MisconfigurationError(
            "Trainer(strategy='elastic', join_uneven=True) is about data whose length is not known, which "
            "logical ranks cannot read. Leave join_uneven out."
        )
