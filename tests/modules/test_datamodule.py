"""The LightningDataModule by itself: hooks that do nothing, and hyperparameters."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import IterableDataset, RandomSampler, SequentialSampler, TensorDataset

from modules import LightningDataModule
from modules.checkpoint.hyperparameters import content_of


class Digits(LightningDataModule):
    def __init__(self, batch_size: int, folder: str = "data") -> None:
        super().__init__()
        self.save_hyperparameters(ignore="folder")
        self.rows = [1, 2]


def through_a_pickle(data: Digits) -> Digits:
    found: Digits = pickle.loads(pickle.dumps(data))
    return found


def test_methods_that_are_not_overridden_do_nothing() -> None:
    """Preparing, setting up and tearing down do nothing, and there are no loaders and no state."""
    data = LightningDataModule()
    data.prepare_data()
    data.setup("fit")
    data.teardown("fit")
    data.on_exception(KeyError())
    data.load_state_dict({"a": 1})
    loaders = [data.train_dataloader, data.val_dataloader, data.test_dataloader, data.predict_dataloader]
    assert [loader() for loader in loaders] == [None] * 4
    assert data.state_dict() == {}
    assert data.trainer is None
    assert data.prepare_data_per_node


def test_transfer_hooks_return_the_batch() -> None:
    """Transfer hooks that are not overridden return the batch that they were given."""
    data, batch = LightningDataModule(), object()
    assert data.on_before_batch_transfer(batch, 0) is batch
    assert data.transfer_batch_to_device(batch, torch.device("cpu"), 0) is batch
    assert data.on_after_batch_transfer(batch, 0) is batch


def test_hyperparameters_are_kept_as_in_a_module() -> None:
    """The arguments of ``__init__`` are kept but for those to ignore."""
    assert Digits(32).hparams == {"batch_size": 32}


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, through_a_pickle])
def test_copies_are_without_the_trainer(duplicate: Callable[[Digits], Any]) -> None:
    """Copies and pickles keep everything but the trainer, which the data module itself keeps."""
    data = Digits(8)
    data.trainer = lambda: None  # does not pickle, as a trainer need not
    other = duplicate(data)
    assert (other.trainer, other.rows, other.hparams) == (None, [1, 2], {"batch_size": 8})
    assert data.trainer is not None


class Sized(LightningDataModule):
    """Takes what its loaders are made with, and keeps a state."""

    def __init__(self, batch_size: int = 1, folder: str = "data") -> None:
        self.save_hyperparameters()
        self.seen = 0

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seen = state_dict["seen"]


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(3))


def data(length: int) -> TensorDataset:
    return TensorDataset(torch.arange(float(length)))


def test_datasets_make_a_data_module() -> None:
    """One dataset gives a loader, a list or dictionary of them likewise; only training shuffles."""
    datamodule = LightningDataModule.from_datasets(
        data(6), [data(2), data(3)], predict_dataset={"a": data(4)}, batch_size=2
    )
    train = datamodule.train_dataloader()
    assert (train.batch_size, type(train.sampler)) == (2, RandomSampler)
    assert [type(loader.sampler) for loader in datamodule.val_dataloader()] == [SequentialSampler] * 2
    assert list(datamodule.predict_dataloader()) == ["a"]
    assert datamodule.test_dataloader() is None
    assert len(pickle.loads(pickle.dumps(datamodule)).train_dataloader().dataset) == 6
    stream = LightningDataModule.from_datasets(Stream(), batch_size=3)
    assert [batch.tolist() for batch in stream.train_dataloader()] == [[0, 1, 2]]


def test_subclasses_get_their_arguments() -> None:
    """A subclass's constructor gets its own arguments, and those of the loaders that it has."""
    datamodule = Sized.from_datasets(data(2), batch_size=2, num_workers=0, folder="here")
    assert datamodule.hparams == {"batch_size": 2, "folder": "here"}


def test_other_objects_are_no_datasets() -> None:
    """What is no dataset is an error that names the argument."""
    with pytest.raises(TypeError, match=r"from_datasets\(val_dataset=...\) has 3, which is no dataset"):
        LightningDataModule.from_datasets(val_dataset=[3])  # type: ignore[list-item]


def test_it_prints_its_datasets() -> None:
    """A line for each kind says how long the datasets are."""
    datamodule = LightningDataModule.from_datasets(data(6), [data(2), data(3)], Stream())
    assert str(datamodule).splitlines() == [
        "{Train dataloader: size=6}",
        "{Validation dataloader: 1. size=2 ; 2. size=3}",
        "{Test dataloader: size=unknown}",
        "{Predict dataloader: None}",
    ]

    class Unready(LightningDataModule):
        def train_dataloader(self) -> Any:
            return self.made_by_setup

    assert str(Unready()).startswith("{Train dataloader: not set up}")


def test_it_comes_back_from_a_checkpoint(tmp_path: Path) -> None:
    """Hyperparameters and state are taken from the file; keyword arguments win."""
    datamodule, dropped = Sized(batch_size=4), list[str]()
    content = {"state_dict": {}, **content_of(datamodule, "datamodule_", dropped), "Sized": {"seen": 7}}
    torch.save(content, tmp_path / "a.ckpt")
    loaded = Sized.load_from_checkpoint(tmp_path / "a.ckpt", folder="there")
    assert (loaded.hparams, loaded.seen) == ({"batch_size": 4, "folder": "there"}, 7)
    with pytest.raises(TypeError, match="on an instance of Sized"):
        datamodule.load_from_checkpoint(tmp_path / "a.ckpt")
