"""Batch normalisation over the batches of all ranks, on GPUs and on CPUs.

On GPUs it is torch's own `SyncBatchNorm`, which has no CPU form; on CPUs sums of all ranks are taken by
differentiable all-reduces. Layers keep their identity, names and state: only their class changes, and changes
back. While a rank has no batch the others normalise by their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class SyncedOnGPU(nn.SyncBatchNorm):
    """Torch's layer over the default process group."""

    process_group = None


class _SumOverRanks(torch.autograd.Function):
    """The sum over ranks; its gradient is the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


class SyncedOnCPU(_BatchNorm):
    """Normalises by mean and variance over all ranks' samples; Ioffe and Szegedy 2015, algorithm 1."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``input`` of shape (N, C, ...), which may have another N on each rank."""
        if not self.training:
            return super().forward(input)
        dims = [dim for dim in range(input.dim()) if dim != 1]
        shape = [1, -1] + [1] * (input.dim() - 2)
        size = input.new_full((1,), input.numel() / input.size(1))
        sums = _sum(torch.cat([input.sum(dims), size]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = input - mean.view(shape)
        variance = _sum((centred * centred).sum(dims)) / count
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            unbiased = variance.detach() * (count / (count - 1))
            self.running_mean.lerp_(mean.detach(), share)
            self.running_var.lerp_(unbiased, share)
        result = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            result = result * self.weight.view(shape) + self.bias.view(shape)
        return result

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(
                f"Batch normalisation got an input of shape {tuple(input.shape)}: it needs (N, C)."
            )


def _sum(value: Tensor) -> Tensor:
    summed: Tensor = _SumOverRanks.apply(value)  # type: ignore[no-untyped-call]
    return summed


def synchronize(module: nn.Module, device: torch.device) -> dict[nn.Module, type]:
    """Make all batch normalisation of `module` that of all ranks; return what `revert` needs."""
    synced = SyncedOnGPU if device.type == "cuda" else SyncedOnCPU
    changed: dict[nn.Module, type] = {}
    for layer in module.modules():
        if isinstance(layer, _BatchNorm) and not isinstance(layer, nn.SyncBatchNorm):
            changed[layer] = type(layer)
            layer.__class__ = synced
    return changed


def revert(changed: dict[nn.Module, type]) -> None:
    """Give the layers that `synchronize` changed their own class back."""
    for layer, kind in changed.items():
        layer.__class__ = kind


@contextmanager
def apart(changed: dict[nn.Module, type], device: torch.device) -> Iterator[None]:
    """A context in which layers normalise by their own rank's batch."""
    revert(changed)
    try:
        yield
    finally:
        for layer in changed:
            layer.__class__ = SyncedOnGPU if device.type == "cuda" else SyncedOnCPU
