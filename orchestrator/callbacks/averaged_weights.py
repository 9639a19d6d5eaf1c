"""A second set of a module's weights that follows the first: the average that weight-averaging callbacks
keep.

Tensors are kept beside the module, in its order; nothing of the module itself is copied or wrapped. The first
update copies, later ones average, with torch's own functions where none is given. Updates and swaps change
tensors in place, so optimizers, gradients and the module's identity stay. Ranks whose weights are equal keep
equal averages without asking each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_swa_avg_fn, get_swa_multi_avg_fn

AverageOne = Callable[[Tensor, Tensor, int], Tensor]
AverageMany = Callable[[list[Tensor], list[Tensor], int], None]


class AveragedWeights:
    """The average of a module's parameters, and of its buffers if asked for.

    Args:
        module: The module that is followed; its tensors must stay the same objects until `follow` is called.
        use_buffers: Average buffers too.
        device: Where the average lives; where the module does when None.
        avg_fn: Returns the new average from the old one, the new weights and how many were averaged.
        multi_avg_fn: The same for many tensors of one device and dtype at once, in place. Where both are
            given, it serves devices other than the CPU. By default both are torch's mean of all.

    Attributes:
        count: Updates so far; with none, the average is the module's first weights.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        use_buffers: bool,
        device: torch.device | str | int | None = None,
        avg_fn: AverageOne | None = None,
        multi_avg_fn: AverageMany | None = None,
    ) -> None:
        self.use_buffers = use_buffers
        self.device = device
        self.count = 0
        given = avg_fn is not None or multi_avg_fn is not None
        self._average_one: AverageOne | None = avg_fn if given else get_swa_avg_fn()
        self._average_many: AverageMany | None = multi_avg_fn if given else get_swa_multi_avg_fn()
        self.tensors: dict[str, Tensor] = {}
        self.followed: dict[str, Tensor] = {}
        self.follow(module)
        self.tensors = {
            name: item.detach().clone().to(item.device if device is None else device)
            for name, item in self.followed.items()
        }

    def follow(self, module: nn.Module) -> None:
        """Look up the module's tensors anew; one that has another name now, as while it is pruned, stays."""
        found: dict[str, Tensor] = dict(module.named_parameters())
        if self.use_buffers:
            found |= dict(module.named_buffers())
        kept = self.tensors or found
        self.followed = {name: found[name] if name in found else self.followed[name] for name in kept}
        self._groups: list[tuple[list[Tensor], list[Tensor]]] | None = None

    @torch.no_grad()
    def update(self) -> None:
        """Take the module's present weights into the average; of whole numbers, say counts, the newest."""
        for averages, weights in self._by_kind():
            on_cpu = averages[0].device.type == "cpu"
            news = [
                new.detach().to(average.device, non_blocking=not on_cpu)
                for average, new in zip(averages, weights, strict=True)
            ]
            if self.count == 0 or not (averages[0].is_floating_point() or averages[0].is_complex()):
                torch._foreach_copy_(averages, news)
            elif self._average_many is not None and not (self._average_one and on_cpu):
                self._average_many(averages, news, self.count)
            elif self._average_one is not None:
                for average, new in zip(averages, news, strict=True):
                    average.copy_(self._average_one(average, new, self.count))
        self.count += 1

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the module's weights and the average; a second call changes them back."""
        for name, average in self.tensors.items():
            weight = self.followed[name]
            kept = weight.detach().clone()
            weight.copy_(average)
            average.copy_(kept)

    @torch.no_grad()
    def copy_to_module(self) -> None:
        """Give the module the average."""
        for name, average in self.tensors.items():
            self.followed[name].copy_(average)

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], count: int) -> None:
        """Take an average of `count` updates from elsewhere; names that are not there stay as they are."""
        for name, average in self.tensors.items():
            if name in tensors:
                average.copy_(tensors[name])
        self.count = count

    def move(self) -> None:
        """Bring the average to its device, where the module's has changed."""
        for name, item in self.followed.items():
            self.tensors[name] = self.tensors[name].to(item.device if self.device is None else self.device)
        self._groups = None

    def _by_kind(self) -> list[tuple[list[Tensor], list[Tensor]]]:
        """Return averages and weights in groups of one device and dtype."""
        if self._groups is None:
            names = sorted(self.tensors, key=self._kind)
            self._groups = [
                ([self.tensors[name] for name in group], [self.followed[name] for name in group])
                for group in (list(members) for _, members in groupby(names, key=self._kind))
            ]
        return self._groups

    def _kind(self, name: str) -> str:
        average = self.tensors[name]
        return f"{average.device} {average.dtype} {self.followed[name].device}"
