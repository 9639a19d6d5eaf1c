"""Which part of each sharded tensor a rank has: what a sharded checkpoint says of it.

``fully_shard`` cuts one dimension of a tensor into as many pieces as there are ranks, as `torch.chunk` does;
the last ranks may have less, or nothing. Nothing here communicates. A tensor that a module has dealt in
another way is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from modules.checkpoint.shards import Part
from orchestrator.errors import MisconfigurationError

if TYPE_CHECKING:
    from orchestrator.strategies.fsdp import FullySharded


class FullyShardedParts:
    """Takes the parts of one rank.

    Args:
        strategy: The rank's strategy.
    """

    def __init__(self, strategy: FullySharded) -> None:
        self._strategy = strategy

    def state(self, module: nn.Module) -> dict[str, Any]:
        """Return the module's state dict, of sharded tensors."""
        self._strategy.release()
        return module.state_dict()

    def part_of(self, item: Tensor) -> Part | None:
        """Return this rank's part; None of a tensor that every rank has.

        Raises:
            MisconfigurationError: The tensor is not dealt along one dimension over all ranks.
        """
        if not isinstance(item, DTensor):
            return None
        place = item.placements[0]
        if len(item.placements) != 1 or type(place) is not Shard or item.device_mesh.ndim != 1:
            raise MisconfigurationError(
                f"FSDPStrategy(state_dict_type='sharded') cannot save a tensor placed as {item.placements}: "
                "only those that one dimension deals to all ranks. Use state_dict_type='full'."
            )
        local = item.to_local().detach()
        offset = [0] * item.ndim
        offset[place.dim] = begin_of(item.shape[place.dim], self._strategy.rank, self._strategy.world_size)
        return local, tuple(item.shape), offset


def begin_of(length: int, rank: int, world_size: int) -> int:
    """Return where the piece of `rank` begins in a dimension of `length`, cut as `torch.chunk` does.

    >>> [begin_of(5, rank, 4) for rank in range(4)]
    [0, 2, 4, 5]
    """
    return min(length, rank * -(-length // world_size))
