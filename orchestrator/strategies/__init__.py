"""How ranks work together: alone, data-parallel, or with everything dealt to them.

The names here are what a user passes as ``Trainer(strategy=...)``; the classes that do the work are in the
files named after them.
"""

from __future__ import annotations

from orchestrator.strategies.specs import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, SingleDeviceStrategy

__all__ = ["DDPStrategy", "DeepSpeedStrategy", "FSDPStrategy", "SingleDeviceStrategy"]
