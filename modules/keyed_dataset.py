"""A data set whose samples draw the same random numbers wherever and whenever they are read.

Each sample is read under generators that are set from (seed, epoch, index), so augmentation depends neither
on worker processes, batches and ranks nor on what was read before. The process's own streams go on as if
nothing had been drawn. Streams of a data set's own, and of CUDA, are left alone. Setting and putting back
three generators costs a fraction of a millisecond a sample.
"""

from __future__ import annotations

import random
import sys
from typing import Any

import torch
from torch.utils.data import Dataset

from modules import rng


class KeyedDataset(Dataset[Any]):
    """A map-style data set, read sample by sample.

    Args:
        dataset: What is read.
        seed: 0 to 2**32 - 1.
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # worker processes see it change

    def set_epoch(self, epoch: int) -> None:
        """Draw other numbers from here on, in worker processes too."""
        self._epoch.fill_(epoch)

    @property
    def epoch(self) -> int:
        """The epoch that is read, in worker processes too."""
        return int(self._epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        numpy = sys.modules.get("numpy")
        before = random.getstate(), torch.get_rng_state()
        arrays = None if numpy is None else numpy.random.get_state()
        key = rng.fold(self.seed, "sample", self.epoch, repr(index))
        random.seed(key)
        torch.default_generator.manual_seed(key)
        if numpy is not None:
            numpy.random.seed(key)
        try:
            return self.dataset[index]
        finally:
            random.setstate(before[0])
            torch.set_rng_state(before[1])
            if numpy is not None:
                numpy.random.set_state(arrays)

    def __getattr__(self, name: str) -> Any:
        if name == "dataset" or name.startswith(
            "__"
        ):  # not there yet, or a protocol that must not be passed on
            raise AttributeError(name)
        return getattr(self.dataset, name)
