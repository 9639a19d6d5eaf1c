"""A shuffled order that is computed place by place: which sample comes at a place, without a list of all.

``KeyedPermutation(length, key)`` takes each of 0 .. length - 1 exactly once, in an order that depends on the
key alone, on any machine. A place is answered by itself, so going on at place 10**9 costs what starting
costs, and the only state is the place. Short orders are a list drawn by ``torch.randperm``. Longer ones go
through a Feistel network over the two digits of the place (M. Luby and C. Rackoff, 1988), whose round
functions are random tables of about sqrt(length) entries; places that fall outside are walked on (J. Black
and P. Rogaway, 2002). Fails on places outside the order.

Entropy: the key has 64 bits. Up to `LISTED` samples each order is equally likely as far as torch's generator
goes; beyond, an order is one of the Feistel network's, in which each sample is equally likely at each place
and pairs are as good as independent, but which are fewer than length!.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from modules import rng

LISTED = 65536
"""Up to this length the order is kept as a list: at most 512 KiB."""
_ROUNDS = 6

Ids = NDArray[np.int64]
"""Places or sample ids, int64 of shape (n,)."""


def order_key(*keys: int | str) -> int:
    """Return a 64-bit key that depends on every one of `keys` and its place."""
    return rng.fold("high", *keys) << 32 | rng.fold("low", *keys)


class KeyedPermutation:
    """A permutation of 0 .. length - 1.

    Args:
        length: Samples, at least 0.
        key: 0 to 2**64 - 1; `order_key` makes one.
    """

    def __init__(self, length: int, key: int) -> None:
        self.length = length
        generator = torch.Generator().manual_seed(key)
        if length <= LISTED:
            self._listed: Ids | None = torch.randperm(length, generator=generator).numpy()
            return
        self._listed = None
        self._high = math.isqrt(length - 1) + 1
        self._low = -(-length // self._high)
        ranges = [
            (self._low, self._high) if turn % 2 == 0 else (self._high, self._low) for turn in range(_ROUNDS)
        ]
        self._tables: list[Ids] = [
            torch.randint(values, (places,), generator=generator).numpy() for places, values in ranges
        ]

    def __len__(self) -> int:
        return self.length

    def __call__(self, places: Ids) -> Ids:
        """Return the sample ids at `places`, each 0 <= place < length."""
        if self._listed is not None:
            return self._listed[places]
        ids = self._walk(places)
        outside = np.flatnonzero(ids >= self.length)
        while len(outside):
            ids[outside] = self._walk(ids[outside])
            outside = outside[ids[outside] >= self.length]
        return ids

    def _walk(self, places: Ids) -> Ids:
        """Permute 0 .. high * low - 1, which is at most isqrt(length) + 1 more than `length`."""
        high, low = np.divmod(places, self._low)
        for turn, table in enumerate(self._tables):
            changed, other, modulus = (high, low, self._high) if turn % 2 == 0 else (low, high, self._low)
            changed += table[other]
            # Minus the modulus where that is not negative: as unsigned numbers the lesser of the two.
            unsigned = changed.view(np.uint64)
            np.minimum(unsigned, unsigned - np.uint64(modulus), out=unsigned)
        high *= self._low
        high += low
        return high
