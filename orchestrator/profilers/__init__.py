"""Profilers: where the time of a run goes.

Nothing is measured, and nothing is slower, unless ``Trainer(profiler=...)`` asks for it.
"""

from __future__ import annotations

from orchestrator.profilers.advanced import AdvancedProfiler
from orchestrator.profilers.profiler import PassThroughProfiler, Profiler
from orchestrator.profilers.pytorch import PyTorchProfiler
from orchestrator.profilers.simple import SimpleProfiler

__all__ = ["AdvancedProfiler", "PassThroughProfiler", "Profiler", "PyTorchProfiler", "SimpleProfiler"]
