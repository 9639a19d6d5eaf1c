"""The samplers that are put into a user's DataLoader on a group: each rank's share of one common order.

The order depends on (seed, epoch) and on nothing else: not on the rank, the process or what was drawn before.
A sampler that the user chose keeps its meaning: it is asked for its order while the process's random
generators, and the torch generators that it keeps itself, are set from (seed, epoch), alike on all ranks;
afterwards they are as they were. Randomness of other kinds that a sampler keeps must be seeded alike on all
ranks. Fails when a sampler yields less than its length says.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Sampler

from modules import rng
from modules.order import ListedPlan, StridedPlan, deal, epoch_order


class ShardSampler(Sampler[Any]):
    """Yields one rank's sample ids of one epoch.

    Args:
        plan: How samples are dealt to ranks. Its length is that of the data, or of `source`.
        rank: This rank, 0 <= rank < plan.world_size.
        shuffle: Draw a new permutation each epoch; ignored when `source` is given.
        seed: The seed of the permutation.
        source: A sampler with a length whose order is dealt instead; it may yield ids of any kind.
    """

    def __init__(self, plan: StridedPlan, *, rank: int, shuffle: bool, seed: int, source: Any = None) -> None:
        self.plan = plan
        self.rank = rank
        self.shuffle = shuffle
        self.seed = seed
        self.source = source
        self.epoch = 0

    @property
    def world_size(self) -> int:
        """Ranks that the order is dealt to."""
        return self.plan.world_size

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration yields; the source is told, and may change its length."""
        self.epoch = epoch
        if self.source is not None:
            tell_epoch(self.source, epoch)
            self.plan = dataclasses.replace(self.plan, length=len(self.source))

    def __len__(self) -> int:
        return self.plan.samples(self.rank)

    def __iter__(self) -> Iterator[Any]:
        length = self.plan.length
        if self.source is None:
            order = epoch_order(length, seed=self.seed, epoch=self.epoch, shuffle=self.shuffle)
            return iter(deal(order, self.plan, self.rank).tolist())
        with _seeded(self.source, self.seed, self.epoch):
            ids = list(itertools.islice(self.source, length))
        if len(ids) < length:
            raise ValueError(
                f"{type(self.source).__qualname__} has length {length} and yielded {len(ids)} ids, so ranks "
                "cannot know what each of them has. Make its __len__ true."
            )
        return iter([ids[place] for place in deal(torch.arange(length), self.plan, self.rank).tolist()])


class ShardBatchSampler(Sampler[list[Any]]):
    """Yields every W-th batch of a batch sampler of the user's own, which must come to an end.

    The epoch is drawn once, when it is first needed after `set_epoch`, so `plan` and the batches agree.

    Args:
        source: The user's batch sampler.
        rank: This rank.
        world_size: Ranks.
        seed: Seed of the generators under which `source` is asked, with the epoch.
    """

    def __init__(self, source: Any, *, rank: int, world_size: int, seed: int) -> None:
        self.source = source
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        self.epoch = 0
        self._drawn: tuple[ListedPlan, list[list[Any]]] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration yields; the source is told."""
        self.epoch = epoch
        self._drawn = None
        for target in (self.source, getattr(self.source, "sampler", None)):
            tell_epoch(target, epoch)

    def plan(self) -> ListedPlan:
        """Return the sizes of all batches of the epoch."""
        return self._draw()[0]

    def __len__(self) -> int:
        return len(self._draw()[1])

    def __iter__(self) -> Iterator[list[Any]]:
        return iter(self._draw()[1])

    def _draw(self) -> tuple[ListedPlan, list[list[Any]]]:
        if self._drawn is None:
            with _seeded(self.source, self.seed, self.epoch):
                batches = [list(batch) for batch in self.source]
            plan = ListedPlan(batch_lengths=tuple(map(len, batches)), world_size=self.world_size)
            self._drawn = plan, batches[self.rank :: self.world_size]
        return self._drawn


class SkipBatches(Sampler[Any]):
    """Yields what another sampler yields after the first `skip`: resuming without loading what was used.

    Args:
        source: The batch sampler, or the sampler of a loader that does not batch.
        skip: Batches to leave out.
    """

    def __init__(self, source: Any, skip: int) -> None:
        self.source = source
        self.skip = skip
        self._rest: Iterator[Any] | None = None

    def __len__(self) -> int:
        return max(0, len(self.source) - self.skip)

    def __iter__(self) -> Iterator[Any]:
        yield from self.prime()

    def prime(self) -> Iterator[Any]:
        """Skip now, so that whatever the source draws at its start is drawn before the caller goes on; one
        pass only.
        """
        if self._rest is None:
            self._rest = iter(self.source)
            for _ in itertools.islice(self._rest, self.skip):
                pass
        return self._rest


def own_generators(*owners: Any) -> list[torch.Generator]:
    """Return the torch generators that samplers or loaders keep in their attributes, each once.

    Those of samplers inside samplers are included.
    """
    found: list[torch.Generator] = []
    seen: set[int] = set()
    todo = list(owners)
    while todo:
        owner = todo.pop(0)
        if id(owner) in seen:
            continue
        seen.add(id(owner))
        for item in getattr(owner, "__dict__", {}).values():
            if isinstance(item, torch.Generator) and all(item is not other for other in found):
                found.append(item)
            elif isinstance(item, Sampler):
                todo.append(item)
    return found


def tell_epoch(target: Any, epoch: int) -> None:
    """Call ``target.set_epoch(epoch)`` if there is such a method."""
    if hasattr(target, "set_epoch"):
        target.set_epoch(epoch)


@contextlib.contextmanager
def _seeded(source: Any, seed: int, epoch: int) -> Iterator[None]:
    """Set the process's generators from (seed, epoch) and those of `source` from their own seed too; put all
    back.
    """
    generators = own_generators(source)
    states = [generator.get_state() for generator in generators]
    with rng.isolated(rng.fold(seed, epoch)):
        for generator in generators:
            generator.manual_seed(rng.fold(seed, epoch, generator.initial_seed()))
        try:
            yield
        finally:
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)
