"""Makes what the ranks of a run work together by, from what the user asked for.

One process has nothing to deal or to average, whatever was asked for.
"""

from __future__ import annotations

from orchestrator.place import Place
from orchestrator.precision import Precision
from orchestrator.settings import Settings
from orchestrator.strategies.ddp import DataParallel
from orchestrator.strategies.single import Alone
from orchestrator.strategies.specs import DDPStrategy, DeepSpeedStrategy, FSDPStrategy
from orchestrator.strategies.strategy import Strategy


def make_strategy(settings: Settings, place: Place, precision: Precision) -> Strategy:
    """Return the strategy of one rank."""
    spec = settings.strategy_spec
    if place.logical_ranks is not None:
        from orchestrator.strategies.elastic import Elastic

        return Elastic(
            place.device,
            logical_ranks=place.logical_ranks,
            grouped=place.grouped,
            threads=settings.threads_per_worker or 1,
        )
    if place.world_size == 1:
        return Alone(place.device)
    if isinstance(spec, FSDPStrategy):
        from orchestrator.strategies.fsdp import FullySharded

        return FullySharded(place.device, spec, precision.compute_dtype, keeps=place.keeps)
    if isinstance(spec, DeepSpeedStrategy):
        from orchestrator.strategies.deepspeed import Zero

        clip = settings.gradient_clip_val or 0.0
        return Zero(place.device, spec, precision.name, clip=clip, keeps=place.keeps)
    ddp = spec if isinstance(spec, DDPStrategy) else None
    return DataParallel(place.device, ddp, sync_batchnorm=settings.sync_batchnorm, joins=place.joins)
