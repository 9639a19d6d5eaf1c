"""What DeepSpeed is told, made from what the user asked the Trainer for.

The Trainer decides batch sizes, accumulation, clipping, precision and the optimizer; a configuration that
decides them too is refused rather than overruled, as is what DeepSpeed cannot do. Nothing here needs the
package, so everything is checked before a worker starts.
"""

from __future__ import annotations

import copy
import importlib.util
import json
from collections.abc import Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import MisconfigurationError

if TYPE_CHECKING:
    from orchestrator.settings import Settings

_OURS = {
    "train_batch_size": "the loader's batch_size",
    "train_micro_batch_size_per_gpu": "the loader's batch_size",
    "gradient_accumulation_steps": "Trainer(accumulate_grad_batches=...)",
    "gradient_clipping": "Trainer(gradient_clip_val=...)",
    "optimizer": "configure_optimizers",
    "scheduler": "configure_optimizers",
    "fp16": "Trainer(precision=...)",
    "bf16": "Trainer(precision=...)",
    "torch_autocast": "Trainer(precision=...)",
}
_PRECISIONS = ("32-true", "bf16-mixed")


def read_config(value: Mapping[str, Any] | str | PathLike[str] | None, stage: int) -> dict[str, Any]:
    """Return ``DeepSpeedStrategy(config=value)`` as a dictionary without what says "auto".

    Raises:
        MisconfigurationError: It cannot be read, or decides what the Trainer does.
    """
    if value is None:
        return {}
    found: Any = value
    if isinstance(value, str | PathLike):
        try:
            found = json.loads(Path(fspath(value)).read_text())
        except (OSError, ValueError) as error:
            raise MisconfigurationError(
                f"DeepSpeedStrategy(config={fspath(value)!r}) cannot be read: {error}. Give the path of a "
                "JSON file, or a dictionary."
            ) from error
    if not isinstance(found, Mapping):
        raise MisconfigurationError(
            f"DeepSpeedStrategy(config=...) is a {type(found).__name__}. Give a dictionary, or the path of a "
            "JSON file that holds one."
        )
    config: dict[str, Any] = _without_auto(found)
    for name, place in _OURS.items():
        if name in config:
            raise MisconfigurationError(
                f"DeepSpeedStrategy(config={{{name!r}: {config[name]!r}}}): the Trainer decides that. Leave "
                f"it out, and use {place}."
            )
    zero = config.get("zero_optimization", {})
    if not isinstance(zero, dict) or zero.get("stage", stage) != stage:
        raise MisconfigurationError(
            f"DeepSpeedStrategy(stage={stage}, config={{'zero_optimization': {zero!r}}}) contradict each "
            f"other. Leave the stage out of config, or use 'zero_optimization': {{'stage': {stage}}}."
        )
    return config


def _without_auto(value: Any) -> Any:
    """Return a copy of `value` in which no dictionary has a value that is "auto"."""
    if isinstance(value, Mapping):
        return {key: _without_auto(item) for key, item in value.items() if item != "auto"}
    return copy.deepcopy(value)


def check_deepspeed(settings: Settings) -> None:
    """Refuse what DeepSpeed cannot do, or a DeepSpeed that is not there.

    Raises:
        MisconfigurationError: The run cannot be.
    """
    if importlib.util.find_spec("deepspeed") is None:
        raise MisconfigurationError(
            "Trainer(strategy='deepspeed') needs DeepSpeed, which is not installed. Run: "
            "pip install 'ray-training-orchestrator[deepspeed]'"
        )
    if settings.precision not in _PRECISIONS:
        raise MisconfigurationError(
            f"Trainer(strategy='deepspeed', precision={settings.precision!r}): only weights of 32 bits are "
            "dealt. Use 32 or 'bf16-mixed', or strategy='fsdp'."
        )
    if settings.gradient_clip_val and settings.gradient_clip_algorithm == "value":
        raise MisconfigurationError(
            "Trainer(strategy='deepspeed', gradient_clip_algorithm='value'): DeepSpeed clips gradients by "
            "their norm only. Use 'norm', or strategy='fsdp'."
        )
    if settings.sync_batchnorm:
        raise MisconfigurationError(
            "Trainer(strategy='deepspeed', sync_batchnorm=True) is not supported. Use strategy='ddp', or "
            "normalisation that does not look at the batch."
        )
    if settings.compile is not None:
        raise MisconfigurationError(
            "Trainer(strategy='deepspeed', compile=...): DeepSpeed's hooks cannot be compiled with the step. "
            "Leave compile out, or use strategy='fsdp'."
        )


def full_config(
    config: Mapping[str, Any],
    *,
    stage: int,
    clip: float,
    precision: str,
    offload_optimizer: bool,
    offload_parameters: bool,
) -> dict[str, Any]:
    """Return all that DeepSpeed is told.

    Args:
        config: The user's part, as `read_config` returns it.
        stage: ZeRO's.
        clip: The largest norm of all gradients together; 0 for any.
        precision: As `orchestrator.precision.parse_precision` returns it.
        offload_optimizer: Keep the optimizer's state in the host's memory.
        offload_parameters: Keep weights there too.
    """
    made = copy.deepcopy(dict(config))
    zero = {**made.get("zero_optimization", {}), "stage": stage}
    if offload_optimizer:
        zero.setdefault("offload_optimizer", {"device": "cpu"})
    if offload_parameters:
        zero.setdefault("offload_param", {"device": "cpu"})
    if stage < 3 and not clip and not zero.get("offload_optimizer"):
        zero.setdefault("compute_grad_norm", False)  # computing it waits for the device in each step
    made["zero_optimization"] = zero
    made.setdefault("zero_allow_untested_optimizer", True)
    made.setdefault("zero_force_ds_cpu_optimizer", False)
    made.setdefault("steps_per_print", None)
    made["train_micro_batch_size_per_gpu"] = 1  # it only counts with it
    made["gradient_accumulation_steps"] = 1  # the loop divides the loss and says where windows end
    made["gradient_clipping"] = float(clip)
    if precision == "bf16-mixed":
        made["torch_autocast"] = {
            "enabled": True,
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],  # whose gradients it would reduce in bf16
        }
    return made
