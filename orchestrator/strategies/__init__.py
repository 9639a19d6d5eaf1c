"""How ranks work together: alone, or data-parallel."""

from __future__ import annotations

from orchestrator.strategies.ddp import DDPStrategy
from orchestrator.strategies.single import SingleStrategy
from orchestrator.strategies.strategy import Strategy

__all__ = ["DDPStrategy", "SingleStrategy", "Strategy"]
