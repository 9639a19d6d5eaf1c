"""The names that ``Trainer(strategy=...)`` understands, each with the spec that it stands for.

All of Lightning's names are known: those that differ only in how it starts processes mean the same here,
because processes are Ray workers; those that cannot run are refused in one line that says what to write.
"""

from __future__ import annotations

from typing import Any

from orchestrator.errors import MisconfigurationError, suggest
from orchestrator.strategies.specs import (
    DDPStrategy,
    DeepSpeedStrategy,
    ElasticStrategy,
    FSDPStrategy,
    SingleDeviceStrategy,
    Spec,
)

_LAUNCHES = ("ddp", "ddp_spawn", "ddp_fork", "ddp_notebook")
_CHOICES = {"": False, "_find_unused_parameters_true": True, "_find_unused_parameters_false": False}
NAMES: dict[str, Spec | None] = {
    "auto": None,
    "single": SingleDeviceStrategy(),
    "single_device": SingleDeviceStrategy(),
    **{
        launch + choice: DDPStrategy(find_unused_parameters=unused)
        for launch in _LAUNCHES
        for choice, unused in _CHOICES.items()
    },
    "fsdp": FSDPStrategy(),
    "fsdp_cpu_offload": FSDPStrategy(cpu_offload=True),
    "deepspeed": DeepSpeedStrategy(),
    "deepspeed_stage_1": DeepSpeedStrategy(stage=1),
    "deepspeed_stage_1_offload": DeepSpeedStrategy(stage=1, offload_optimizer=True),
    "deepspeed_stage_2": DeepSpeedStrategy(stage=2),
    "deepspeed_stage_2_offload": DeepSpeedStrategy(stage=2, offload_optimizer=True),
    "deepspeed_stage_3": DeepSpeedStrategy(stage=3),
    "deepspeed_stage_3_offload": DeepSpeedStrategy(stage=3, offload_optimizer=True, offload_parameters=True),
    "elastic": ElasticStrategy(),
}
_XLA = "XLA devices are not supported. Leave strategy out."
_REFUSED = {
    "dp": "One process for several GPUs is not supported. Use strategy='ddp'.",
    "ddp2": "It is not supported. Use strategy='ddp'.",
    "ddp_cpu": "Use strategy='ddp' and accelerator='cpu'.",
    "horovod": "It is not supported. Use strategy='ddp'.",
    "fairscale": "It is not supported. Use strategy='fsdp'.",
    "colossalai": "It is not supported. Use strategy='fsdp'.",
    "modelparallel": "It is not supported. Use strategy='fsdp'.",
    "deepspeed_stage_3_offload_nvme": "Files are not supported. Use strategy='deepspeed_stage_3_offload'.",
    "xla": _XLA,
    "tpu": _XLA,
    "hpu": "HPUs are not supported. Leave strategy out.",
    "ipu": "IPUs are not supported. Leave strategy out.",
    "ddp_sharded": "It is not supported. Use strategy='fsdp'.",
}


def parse_strategy(value: Any) -> tuple[str, Spec | None, str]:
    """Return what ``Trainer(strategy=value)`` means: (name, spec, note).

    The name is auto, single, ddp, fsdp, deepspeed or elastic; the spec is None for auto; the note is what the
    plan adds about a name that means something else in Lightning, or an empty string.

    Raises:
        MisconfigurationError: There is no such strategy, or it cannot run.
    """
    if isinstance(value, Spec):
        return value.name, value, ""
    if isinstance(value, str) and value in NAMES:
        spec = NAMES[value]
        launch = next((item for item in _LAUNCHES[1:] if value.startswith(item)), "")
        note = f"strategy={value!r} means 'ddp': processes are Ray workers" if launch else ""
        return ("auto" if spec is None else spec.name), spec, note
    refused = _refused(value)
    if refused:
        raise MisconfigurationError(f"Trainer(strategy={value!r}): {refused}")
    if isinstance(value, type):
        raise MisconfigurationError(
            f"Trainer(strategy={value.__name__}) is a class. Give an instance: {value.__name__}()."
        )
    foreign = not isinstance(value, str) and type(value).__module__.partition(".")[0] in (
        "lightning",
        "pytorch_lightning",
    )
    if foreign:
        raise MisconfigurationError(
            f"Trainer(strategy={type(value).__name__}(...)) is Lightning's own, which starts its own "
            f"processes. Use one of orchestrator.strategies, such as DDPStrategy(...)."
        )
    raise MisconfigurationError(
        f"Trainer(strategy={value!r}) is unknown.{suggest(value, NAMES)} "
        "Use 'auto', 'single', 'ddp', 'fsdp', 'deepspeed', 'elastic', or one of orchestrator.strategies, "
        "such as DDPStrategy(...)."
    )


def _refused(value: Any) -> str:
    """Return why a known name cannot run, or an empty string."""
    if not isinstance(value, str):
        return ""
    if value in _REFUSED:
        return _REFUSED[value]
    first = value.partition("_")[0]
    return _REFUSED.get(first, "") if first in ("xla", "tpu", "hpu", "ipu", "horovod") else ""
