"""Matrix products in 8-bit floats, by torchao: linear layers compute in fp8, their weights stay fp32.

Layers whose sizes are no multiples of 16 stay as they are, because the hardware has no such products. Names
in the state dict do not change, so checkpoints are those of ordinary layers. It needs torchao and a GPU of
compute capability 8.9 or later; both are checked before anything starts.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import nn

from orchestrator.errors import MisconfigurationError

_CAPABILITY = (8, 9)
_GRAIN = 16


def check(device_type: str) -> None:
    """Refuse fp8 where torchao is not installed or modules will not be on CUDA devices.

    Raises:
        MisconfigurationError: It cannot run.
    """
    if importlib.util.find_spec("torchao") is None:
        raise MisconfigurationError(
            "Trainer(precision='fp8-mixed') needs torchao, which is not installed. "
            "Run: pip install 'ray-training-orchestrator[fp8]'"
        )
    if device_type != "cuda":
        raise MisconfigurationError(
            f"Trainer(precision='fp8-mixed') runs on {device_type}, and fp8 needs NVIDIA GPUs of compute "
            "capability 8.9 or later (H100, L4, RTX 40). Use 'bf16-mixed'."
        )


def can_convert(layer: nn.Module, name: str = "") -> bool:
    """Whether a layer is a linear one whose sizes fp8 products can have."""
    return isinstance(layer, nn.Linear) and not (layer.in_features % _GRAIN or layer.out_features % _GRAIN)


def convert(module: nn.Module, device: torch.device, *, emulate: bool = False) -> None:
    """Make the module's linear layers compute in fp8, in place.

    Args:
        module: Whose layers.
        device: Where it will be.
        emulate: Compute in fp32 with fp8's rounding, on any device.

    Raises:
        MisconfigurationError: The GPU has no fp8 products, or no layer can use them.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    if not emulate and torch.cuda.get_device_capability(device) < _CAPABILITY:
        raise MisconfigurationError(
            f"Trainer(precision='fp8-mixed'): {torch.cuda.get_device_name(device)} has compute capability "
            f"{'.'.join(map(str, torch.cuda.get_device_capability(device)))}, and fp8 needs 8.9. "
            "Use 'bf16-mixed'."
        )
    if not any(can_convert(layer) for layer in module.modules()):
        raise MisconfigurationError(
            f"Trainer(precision='fp8-mixed'): {type(module).__qualname__} has no linear layer whose sizes "
            f"are multiples of {_GRAIN}, so nothing would run in fp8. Use 'bf16-mixed', or other sizes."
        )
    modes = {name: layer.training for name, layer in module.named_modules()}
    convert_to_float8_training(
        module, config=Float8LinearConfig(emulate=emulate), module_filter_fn=can_convert
    )
    for name, layer in module.named_modules():
        layer.training = modes.get(name, layer.training)


def revert(module: nn.Module) -> None:
    """Put ordinary linear layers with the same weights in the place of those that `convert` made."""
    for owner in list(module.modules()):
        for name, layer in list(owner.named_children()):
            if type(layer).__name__ == "Float8Linear":
                setattr(owner, name, _plain(layer))


def _plain(layer: Any) -> nn.Linear:
    found = nn.utils.skip_init(
        nn.Linear, layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta"
    )
    assert isinstance(found, nn.Linear)
    found.weight, found.bias = layer.weight, layer.bias
    found.train(layer.training)
    return found
