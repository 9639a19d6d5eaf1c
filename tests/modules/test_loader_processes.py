"""Loader processes on a group: not forked, and given what the user's script defines."""

from __future__ import annotations

import os
import pickle
import threading
from typing import Any

import pytest
from torch.utils.data import DataLoader, Dataset

from modules.loader import RankLoader
from tests.modules.datasets import InSharedMemory, Numbers
from tests.modules.reading import batches


def of_a_script() -> type[Dataset[int]]:
    """A data set class as it arrives in a rank's process: of a `__main__` that does not have it."""
    names: dict[str, Any] = {"__name__": "__main__", "Dataset": Dataset}
    exec(
        "class Script(Dataset):\n"
        "    def __len__(self): return 6\n"
        "    def __getitem__(self, index): return scaled(index)\n"
        "def scaled(index): return 10 * index\n",
        names,
    )
    found: type[Dataset[int]] = names["Script"]
    return found


def on_a_group(source: DataLoader[Any], pickler: type[Any] | None = None) -> RankLoader:
    return RankLoader(source, rank=1, world_size=2, pickler=pickler)


def test_classes_of_the_script_reach_loader_processes() -> None:
    """With a pickler that takes classes by value, a data set and functions of the user's script arrive."""
    from ray.cloudpickle import CloudPickler

    source = DataLoader(of_a_script()(), batch_size=2, num_workers=1, collate_fn=lambda samples: samples)
    assert batches(on_a_group(source, CloudPickler)) == [[10, 30], [50]]


def test_what_cannot_be_sent_is_an_error_that_says_what_to_do() -> None:
    """What no pickler takes fails before a process reads, with the cause and a way out."""
    data = Numbers(4)
    data.lock = threading.Lock()  # type: ignore[attr-defined]
    loader = on_a_group(DataLoader(data, num_workers=1))
    with (
        pytest.warns(UserWarning, match="pickle error"),  # torch's own
        pytest.raises(pickle.PicklingError, match=r"cannot pickle '_thread.lock'.*num_workers=0"),
    ):
        loader.iterate()


def test_processes_are_not_forked_from_a_rank() -> None:
    """On a group the processes come from a fork server, and tensors of the data set lie in shared memory."""
    (rows,) = batches(on_a_group(DataLoader(InSharedMemory(), batch_size=4, num_workers=1)))
    assert rows["value"].tolist() == [1, 3]
    assert rows["is_shared"].tolist() == [True, True]
    assert os.getpid() not in rows["started_by"].tolist()


@pytest.mark.parametrize("shard", [False, True])
def test_unshared_loaders_do_not_fork_either(shard: bool) -> None:
    """However a loader is shared, it gets the fork server; without processes it needs no context."""
    source = DataLoader(Numbers(4), num_workers=1)
    loader = RankLoader(source, rank=0, world_size=2, shard=shard)
    assert loader._reader.multiprocessing_context._name == "forkserver"  # type: ignore[attr-defined]
    assert source.multiprocessing_context is None
    bare = RankLoader(DataLoader(Numbers(4)), rank=0, world_size=2, shard=shard)
    assert bare._reader.multiprocessing_context is None  # type: ignore[attr-defined]


def test_the_users_choice_of_processes_stands() -> None:
    """A context that the user gave is not replaced, and in one process none is chosen."""
    chosen = DataLoader(Numbers(4), num_workers=1, multiprocessing_context="fork")
    reader: Any = on_a_group(chosen)._reader
    assert reader.multiprocessing_context is chosen.multiprocessing_context
    alone = DataLoader(Numbers(4), num_workers=1)
    assert RankLoader(alone)._reader is alone
