"""How ranks work together: alone, data-parallel, with everything dealt to them, or elastic.

The names here are what a user passes as ``Trainer(strategy=...)``; the classes that do the work are in the
files named after them.
"""

from __future__ import annotations

from orchestrator.strategies.specs import (
    DDPStrategy,
    DeepSpeedStrategy,
    ElasticStrategy,
    FSDPStrategy,
    SingleDeviceStrategy,
)

__all__ = ["DDPStrategy", "DeepSpeedStrategy", "ElasticStrategy", "FSDPStrategy", "SingleDeviceStrategy"]
