"""Several data sets in one stream, each with its share of the samples, in an order that is computed.

Of every 4096 samples in a row each source has its share, as exactly as whole numbers allow, and a keyed
permutation says which comes when. Each source is read in keyed orders of its own, one after the other, so
all of its samples come once before any comes again, over epochs too. Which sample stands at a place follows
from (seed, epoch, place), so a mixture is shared among ranks and resumed like any other data. Fails on
sources whose batches differ in form.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from modules import rng
from modules.arrow_rows import join
from modules.data_error import DataError
from modules.keyed_loader import KeyedLoader
from modules.permutation import Ids, KeyedPermutation, order_key
from modules.row_data import Batch, RowData

CYCLE = 4096


class Mixture:
    """A weighted mixture; batches have a ``source`` (int64: its place in `sources`) beside other entries.

    Args:
        sources: Data sets whose batches have the same names, types and shapes.
        weights: The share of each; they need not sum to 1.
        rows: Samples of an epoch. None takes as many as have every sample of some source once.

    Raises:
        DataError: A weight is negative, all are 0, or sources differ in form.
    """

    def __init__(
        self, sources: Sequence[RowData], weights: Sequence[float] | None = None, *, rows: int | None = None
    ) -> None:
        self.sources = list(sources)
        given = [1.0] * len(self.sources) if weights is None else [float(weight) for weight in weights]
        if not self.sources or len(given) != len(self.sources):
            raise DataError(
                f"Mixture: {len(self.sources)} sources and weights={weights!r}. Give one for each."
            )
        if not all(0 <= weight < float("inf") for weight in given) or not sum(given):
            raise DataError(f"Mixture(weights={weights!r}): use numbers of at least 0, and not all 0.")
        for number, source in enumerate(self.sources):
            if not isinstance(source, RowData):
                raise DataError(
                    f"Mixture: source {number} is a {type(source).__qualname__}. Give ParquetDataset, "
                    "ArrowDataset, TextDataset or PackedTokens."
                )
        self.counts = _shares(given)
        _check_forms(self.sources)
        if rows is not None and (isinstance(rows, bool) or not isinstance(rows, int) or rows < 1):
            raise DataError(f"Mixture(rows={rows!r}): not a number of samples. Use an int of at least 1.")
        pairs = zip(self.sources, self.counts.tolist(), strict=True)
        self._rows = rows or max(1, min(len(source) * CYCLE // count for source, count in pairs if count))

    def __len__(self) -> int:
        return self._rows

    @property
    def fingerprint(self) -> str:
        """What tells this mixture from others."""
        parts = [
            f"{source.fingerprint}:{count}" for source, count in zip(self.sources, self.counts, strict=True)
        ]
        return f"Mixture[{self._rows}]-{rng.fold(*parts):08x}"

    def loader(
        self,
        batch_size: int,
        *,
        drop_last: bool = False,
        seed: int | None = None,
        transform: Callable[[Batch], Any] | None = None,
        pin_memory: bool = False,
    ) -> KeyedLoader:
        """Return a loader of batches, which is always shuffled; arguments as of `RowData.loader`."""
        return KeyedLoader(
            MixtureReading(self),
            self._rows,
            data=self.fingerprint,
            batch_size=batch_size,
            drop_last=drop_last,
            seed=seed,
            transform=transform,
            pin_memory=pin_memory,
        )


class MixtureReading:
    """Reads a mixture.

    Args:
        mixture: What is read.
    """

    def __init__(self, mixture: Mixture) -> None:
        self._mixture = mixture
        self._epoch: int | None = None
        shares = ", ".join(
            f"{count / CYCLE:.3g} {type(source).__name__}({len(source):,} rows)"
            for source, count in zip(mixture.sources, mixture.counts.tolist(), strict=True)
        )
        self.description = f"Mixture({len(mixture):,} rows an epoch): {shares}"
        self.identity = "mixed"

    def in_order(self) -> MixtureReading:
        """Return a reading whose epochs are all the first."""
        clone = copy.copy(self)
        clone._epoch, clone.identity = 0, "mixed, first epoch"
        return clone

    def ids(self, places: Ids, seed: int, epoch: int) -> Ids:
        """Return the samples at `places`: row numbers, counted over all sources one after the other."""
        sources, rows = self.locate(places, seed, epoch)
        starts = np.cumsum([0, *(len(source) for source in self._mixture.sources)])
        return starts[sources] + rows

    def locate(self, places: Ids, seed: int, epoch: int) -> tuple[Ids, Ids]:
        """Return the source of each sample at `places`, and its row there."""
        mixture = self._mixture
        epoch = epoch if self._epoch is None else self._epoch
        draws = places + epoch * len(mixture)
        cycles, slots = np.divmod(draws, CYCLE)
        sources, turns = np.empty_like(draws), np.empty_like(draws)
        for cycle in np.unique(cycles).tolist():
            inside = cycles == cycle
            owner, before = _cycle(tuple(mixture.counts.tolist()), seed, cycle)
            sources[inside] = owner[slots[inside]]
            turns[inside] = before[slots[inside]] + cycle * mixture.counts[owner[slots[inside]]]
        rows = np.empty_like(draws)
        for number in np.unique(sources).tolist():
            length = len(mixture.sources[number])
            passes, turn = np.divmod(turns, length)
            for one in np.unique(passes[sources == number]).tolist():
                inside = (sources == number) & (passes == one)
                rows[inside] = _pass(length, seed, number, one)(turn[inside])
        return sources, rows

    def batches(self, places: Iterable[range], seed: int, epoch: int) -> Iterator[Batch]:
        """Return the batches that have the samples at `places`."""
        for part in places:
            wanted = np.arange(part.start, part.stop, part.step) % len(self._mixture)
            yield self._take(*self.locate(wanted, seed, epoch))

    def _take(self, sources: Ids, rows: Ids) -> Batch:
        order = np.argsort(sources, kind="stable")
        present = np.unique(sources).tolist()
        joined = join(
            [
                self._mixture.sources[number].take_rows(rows[order][sources[order] == number])
                for number in present
            ]
        )
        inverse = np.empty_like(order)
        inverse[order] = np.arange(len(order))
        index = torch.from_numpy(inverse)
        batch = {
            name: value.index_select(0, index)
            if isinstance(value, torch.Tensor)
            else [value[place] for place in inverse.tolist()]
            for name, value in joined.items()
        }
        return {**batch, "source": torch.from_numpy(sources)}


def _shares(weights: Sequence[float]) -> NDArray[np.int64]:
    """Return how many of `CYCLE` samples each source has: the largest remainders are rounded up."""
    exact = np.array(weights, np.float64) / sum(weights) * CYCLE
    counts = np.floor(exact).astype(np.int64)
    missing = CYCLE - int(counts.sum())
    counts[np.argsort(counts - exact, kind="stable")[:missing]] += 1
    lost = [number for number, weight in enumerate(weights) if weight and not counts[number]]
    if lost:
        raise DataError(
            f"Mixture(weights={list(weights)!r}): source {lost[0]} has less than 1 of {CYCLE} samples. Give "
            "it more."
        )
    return counts


@lru_cache(maxsize=8)
def _cycle(counts: tuple[int, ...], seed: int, cycle: int) -> tuple[Ids, Ids]:
    """Return the source of each of `CYCLE` samples, and how many of that source come before it."""
    owner = np.repeat(np.arange(len(counts)), counts)
    owner = owner[KeyedPermutation(CYCLE, order_key(seed, "mixture", cycle))(np.arange(CYCLE))]
    before = np.empty(CYCLE, np.int64)
    for number, count in enumerate(counts):
        before[owner == number] = np.arange(count)
    return owner, before


@lru_cache(maxsize=32)
def _pass(length: int, seed: int, number: int, turn: int) -> KeyedPermutation:
    return KeyedPermutation(length, order_key(seed, "source", number, turn))


def _check_forms(sources: Sequence[RowData]) -> None:
    forms = []
    for source in sources:
        batch = source.take([0])
        forms.append(
            {
                name: f"{value.dtype} {list(value.shape[1:])}" if isinstance(value, torch.Tensor) else "text"
                for name, value in batch.items()
            }
        )
        if forms[-1] != forms[0] or "source" in batch:
            raise DataError(
                f"Mixture: source {len(forms) - 1} has {forms[-1]}, and source 0 has {forms[0]}. Give all "
                "the same columns, types and shapes, and none named 'source'."
            )
