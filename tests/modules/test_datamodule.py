"""The LightningDataModule by itself: hooks that do nothing, and hyperparameters."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

from modules import LightningDataModule


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
