"""Callbacks: code of one's own at every point of training, and the ready ones.

Each is loaded on first use, so that importing this package loads neither torch nor a callback.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.callbacks.backbone_finetuning import BackboneFinetuning as BackboneFinetuning
    from orchestrator.callbacks.base_finetuning import BaseFinetuning as BaseFinetuning
    from orchestrator.callbacks.batch_size_finder import BatchSizeFinder as BatchSizeFinder
    from orchestrator.callbacks.callback import Callback as Callback
    from orchestrator.callbacks.checkpoint import Checkpoint as Checkpoint
    from orchestrator.callbacks.device_stats_monitor import DeviceStatsMonitor as DeviceStatsMonitor
    from orchestrator.callbacks.early_stopping import EarlyStopping as EarlyStopping
    from orchestrator.callbacks.early_stopping import EarlyStoppingReason as EarlyStoppingReason
    from orchestrator.callbacks.ema_weight_averaging import EMAWeightAveraging as EMAWeightAveraging
    from orchestrator.callbacks.gradient_accumulation_scheduler import (
        GradientAccumulationScheduler as GradientAccumulationScheduler,
    )
    from orchestrator.callbacks.gradient_hash import GradientHash as GradientHash
    from orchestrator.callbacks.lambda_callback import LambdaCallback as LambdaCallback
    from orchestrator.callbacks.learning_rate_monitor import LearningRateMonitor as LearningRateMonitor
    from orchestrator.callbacks.lr_finder import LearningRateFinder as LearningRateFinder
    from orchestrator.callbacks.model_checkpoint import ModelCheckpoint as ModelCheckpoint
    from orchestrator.callbacks.model_pruning import ModelPruning as ModelPruning
    from orchestrator.callbacks.model_summary import ModelSummary as ModelSummary
    from orchestrator.callbacks.on_exception_checkpoint import OnExceptionCheckpoint as OnExceptionCheckpoint
    from orchestrator.callbacks.prediction_writer import BasePredictionWriter as BasePredictionWriter
    from orchestrator.callbacks.progress_bar import ProgressBar as ProgressBar
    from orchestrator.callbacks.rich_model_summary import RichModelSummary as RichModelSummary
    from orchestrator.callbacks.rich_progress_bar import RichProgressBar as RichProgressBar
    from orchestrator.callbacks.rich_progress_bar import RichProgressBarTheme as RichProgressBarTheme
    from orchestrator.callbacks.spike_detection import SpikeDetection as SpikeDetection
    from orchestrator.callbacks.spike_detection import TrainingSpikeException as TrainingSpikeException
    from orchestrator.callbacks.stochastic_weight_averaging import (
        StochasticWeightAveraging as StochasticWeightAveraging,
    )
    from orchestrator.callbacks.throughput_monitor import ThroughputMonitor as ThroughputMonitor
    from orchestrator.callbacks.timer import Timer as Timer
    from orchestrator.callbacks.tqdm_progress_bar import TQDMProgressBar as TQDMProgressBar
    from orchestrator.callbacks.weight_averaging import WeightAveraging as WeightAveraging

_FILES = {
    "BackboneFinetuning": "backbone_finetuning",
    "BaseFinetuning": "base_finetuning",
    "BasePredictionWriter": "prediction_writer",
    "BatchSizeFinder": "batch_size_finder",
    "Callback": "callback",
    "Checkpoint": "checkpoint",
    "DeviceStatsMonitor": "device_stats_monitor",
    "EMAWeightAveraging": "ema_weight_averaging",
    "EarlyStopping": "early_stopping",
    "EarlyStoppingReason": "early_stopping",
    "GradientAccumulationScheduler": "gradient_accumulation_scheduler",
    "GradientHash": "gradient_hash",
    "LambdaCallback": "lambda_callback",
    "LearningRateFinder": "lr_finder",
    "LearningRateMonitor": "learning_rate_monitor",
    "ModelCheckpoint": "model_checkpoint",
    "ModelPruning": "model_pruning",
    "ModelSummary": "model_summary",
    "OnExceptionCheckpoint": "on_exception_checkpoint",
    "ProgressBar": "progress_bar",
    "RichModelSummary": "rich_model_summary",
    "RichProgressBar": "rich_progress_bar",
    "RichProgressBarTheme": "rich_progress_bar",
    "SpikeDetection": "spike_detection",
    "StochasticWeightAveraging": "stochastic_weight_averaging",
    "TQDMProgressBar": "tqdm_progress_bar",
    "ThroughputMonitor": "throughput_monitor",
    "Timer": "timer",
    "TrainingSpikeException": "spike_detection",
    "WeightAveraging": "weight_averaging",
}

__all__ = sorted(_FILES)


def __getattr__(name: str) -> Any:
    file = _FILES.get(name)
    if file is None:
        raise AttributeError(
            f"module 'orchestrator.callbacks' has no attribute {name!r}. Public names: {', '.join(__all__)}."
        )
    value = getattr(importlib.import_module(f"orchestrator.callbacks.{file}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
