"""The batch-size search: which sizes it tries, what it finds, and that a run does not notice it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import orchestrator as pl
from orchestrator.callbacks import BatchSizeFinder
from orchestrator.errors import MisconfigurationError
from orchestrator.tuner import Tuner
from orchestrator.tuner.batch_size_search import is_out_of_memory, search
from tests.orchestrator.groups import Net, group_trainer
from tests.orchestrator.groups import loader as group_loader
from tests.orchestrator.tiny import Tiny, Validated, assert_equal_weights, loader, quiet_trainer


def sizes(room: int, longest: int | None = None, **arguments: Any) -> tuple[list[int], int]:
    """The sizes that are tried where `room` samples fit, and the one that is found."""
    given = {"mode": "power", "init_val": 2, "max_trials": 25, "max_val": 8192, "margin": 0.0, **arguments}
    searching = search(**given)
    tried = [next(searching)]
    try:
        while True:
            tried.append(searching.send((tried[-1] <= room, longest)))
    except StopIteration as end:
        return tried, end.value


@pytest.mark.parametrize(
    ("arguments", "tried", "found"),
    [
        ({"room": 20}, [2, 4, 8, 16, 32], 16),
        ({"room": 20, "mode": "binsearch"}, [2, 4, 8, 16, 32, 24, 20, 22, 21], 20),
        ({"room": 20, "mode": "binsearch", "margin": 0.1}, [2, 4, 8, 16, 32, 24, 20, 22, 21], 18),
        ({"room": 10**9, "max_val": 50}, [2, 4, 8, 16, 32, 50], 50),
        ({"room": 10**9, "longest": 20}, [2, 4, 8, 16, 20], 20),
        ({"room": 10**9, "longest": 20, "mode": "binsearch", "margin": 0.5}, [2, 4, 8, 16, 20], 20),
        ({"room": 10**9, "longest": 3, "init_val": 64}, [64], 3),
        ({"room": 20, "max_trials": 3}, [2, 4, 8], 8),
        ({"room": 3, "init_val": 64}, [64, 32, 16, 8, 4, 2], 2),
        ({"room": 3, "init_val": 64, "mode": "binsearch"}, [64, 32, 16, 8, 4, 2, 3], 3),
    ],
)
def test_sizes_that_are_tried(arguments: dict[str, Any], tried: list[int], found: int) -> None:
    """Doubling, then halving the gap, within the largest size and the data's length."""
    assert sizes(**arguments) == (tried, found)


@given(st.integers(1, 3000), st.integers(1, 64), st.sampled_from(["power", "binsearch"]))
def test_what_is_found_fits(room: int, first: int, mode: str) -> None:
    """The result fits; binary search finds the largest that does; no size is tried twice."""
    tried, found = sizes(room, init_val=first, mode=mode, max_trials=100, max_val=4096)
    assert found <= room
    assert len(set(tried)) == len(tried)
    assert found == room if mode == "binsearch" else 2 * found > min(room, first)


def test_nothing_that_fits_is_an_error() -> None:
    """When not even one sample fits, that is said."""
    with pytest.raises(MisconfigurationError, match="Batch size 1 does not fit into memory"):
        sizes(0)


def test_out_of_memory_is_told_from_other_errors() -> None:
    """Devices, the host's allocator and Python say it in different words; other errors are not it."""
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    assert not is_out_of_memory(ValueError("out of memory"))


class Sized(Validated):
    """Has a batch size, and runs out of memory above `room` samples."""

    def __init__(self, batch_size: int = 4, room: int = 20) -> None:
        super().__init__(dropout=0.3)
        self.save_hyperparameters()
        self.batch_size = batch_size
        self.room = room
        self.order = torch.Generator().manual_seed(4)

    def _load(self, batch: Any) -> None:
        if len(batch[0]) > self.room:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self._load(batch)
        return super().training_step(batch, batch_idx)

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        self._load(batch)
        return super().test_step(batch, batch_idx)

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        self._load(batch)
        return super().predict_step(batch, batch_idx)

    def train_dataloader(self) -> Any:
        return loader(64, self.batch_size, shuffle=True, generator=self.order)

    def test_dataloader(self) -> Any:
        return loader(64, self.batch_size)

    predict_dataloader = val_dataloader = test_dataloader


def test_the_search_sets_the_attribute_and_nothing_else() -> None:
    """Attribute and hyperparameter hold the size; weights, streams and generators are as before."""
    module, trainer = Sized(), quiet_trainer()
    before = {name: item.clone() for name, item in module.state_dict().items()}
    streams = torch.get_rng_state(), module.order.get_state()
    assert Tuner(trainer).scale_batch_size(module, mode="binsearch", margin=0) == 20
    assert module.batch_size == module.hparams.batch_size == 20
    assert all(torch.equal(before[name], item) for name, item in module.state_dict().items())
    assert torch.equal(streams[0], torch.get_rng_state())
    assert torch.equal(streams[1], module.order.get_state())
    assert trainer.global_step == 0


@pytest.mark.parametrize(("method", "found"), [("fit", 16), ("validate", 64), ("test", 16), ("predict", 16)])
def test_each_call_can_be_searched_for(method: str, found: int) -> None:
    """The step of that call decides; without an end in sight the data's length does."""
    assert Tuner(quiet_trainer()).scale_batch_size(Sized(), method=method) == found


def test_the_callback_changes_the_call_and_nothing_else() -> None:
    """A fit with a BatchSizeFinder is a fit with the size that it finds, to the bit; testing likewise."""

    def fitted(module: Sized, *callbacks: pl.Callback) -> Sized:
        torch.manual_seed(7)
        quiet_trainer(*callbacks).fit(module)
        return module

    callback = BatchSizeFinder()
    module = fitted(Sized(), callback)
    assert (callback.optimal_batch_size, module.batch_size) == (16, 16)
    assert_equal_weights(module, fitted(Sized(16)))

    seen: list[int] = []

    class Sees(pl.Callback):
        def on_test_batch_start(
            self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
        ) -> None:
            seen.append(len(batch[0]))

    quiet_trainer(BatchSizeFinder(), Sees()).test(Sized(), verbose=False)
    assert seen == [16] * 4


def test_a_data_modules_size_is_found() -> None:
    """The attribute may be the data module's; its trainer afterwards is what it was."""

    class Data(pl.LightningDataModule):
        batch_size = 2

        def train_dataloader(self) -> Any:
            return loader(30, self.batch_size)

    data = Data()
    assert Tuner(quiet_trainer()).scale_batch_size(Tiny(), datamodule=data) == 30
    assert data.batch_size == 30
    assert data.trainer is None


def test_other_errors_end_the_search_as_they_are() -> None:
    """An error that is not about memory comes through, and the size is what it was."""

    class Broken(Sized):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if len(batch[0]) > 4:
                raise RuntimeError("shape mismatch")
            return super().training_step(batch, batch_idx)

    module = Broken(batch_size=3)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        Tuner(quiet_trainer()).scale_batch_size(module)
    assert module.batch_size == 3


def test_data_that_cannot_follow_is_refused() -> None:
    """Given loaders, a missing attribute, and a loader that ignores it are errors that say what to do."""

    class Ignores(Sized):
        def train_dataloader(self) -> Any:
            return loader(64, 4)

    tuner = Tuner(quiet_trainer())
    with pytest.raises(MisconfigurationError, match=r"cannot change loaders that were given to fit\(\)"):
        tuner.scale_batch_size(Sized(), loader(8))
    with pytest.raises(MisconfigurationError, match=r"have no 'size'\. Set self\.size"):
        tuner.scale_batch_size(Sized(), batch_arg_name="size")
    with pytest.raises(MisconfigurationError, match=r"batches of 4 whatever self.batch_size is: \[2, 4\]"):
        tuner.scale_batch_size(Ignores())
    with pytest.raises(MisconfigurationError, match="has BatchSizeFinder among its callbacks"):
        Tuner(quiet_trainer(BatchSizeFinder())).scale_batch_size(Sized())


def test_it_must_come_before_the_data() -> None:
    """Called when training has begun, it says where to call it."""

    class Late(BatchSizeFinder):
        def on_fit_start(self, *args: Any) -> None:
            """Not yet."""

        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            self.scale_batch_size(trainer, pl_module)

    with pytest.raises(MisconfigurationError, match="called after the training data was loaded"):
        quiet_trainer(Late()).fit(Sized())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "double"}, r"mode='double'\) is unknown"),
        ({"steps_per_trial": 0}, r"steps_per_trial=0\)"),
        ({"init_val": 1.5}, r"init_val=1.5\)"),
        ({"init_val": 9, "max_val": 8}, "starts above its end"),
        ({"margin": 1}, r"margin=1\)"),
        ({"batch_arg_name": ""}, r"batch_arg_name=''\)"),
        ({"method": "tune"}, r"method='tune'\) is unknown"),
    ],
)
def test_arguments_are_checked_before_anything_runs(arguments: dict[str, Any], message: str) -> None:
    """What cannot work is refused by name."""
    with pytest.raises(MisconfigurationError, match=message):
        Tuner(quiet_trainer()).scale_batch_size(Sized(), **arguments)


def test_fast_dev_run_leaves_it_out() -> None:
    """Under fast_dev_run nothing is tried, and None comes back."""
    module = Sized()
    assert Tuner(quiet_trainer(fast_dev_run=True)).scale_batch_size(module) is None
    assert module.batch_size == 4


class SizedNet(Net):
    """The group tests' module, whose second rank has room for fewer samples."""

    def __init__(self) -> None:
        super().__init__()
        self.batch_size = 1

    def train_dataloader(self) -> Any:
        return group_loader(200, self.batch_size)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        import torch.distributed as dist

        if len(batch[0]) > (40, 10)[dist.get_rank()]:
            raise RuntimeError("CUDA out of memory.")
        return super().training_step(batch, batch_idx)


@pytest.mark.ray
def test_a_group_takes_what_fits_everywhere(tmp_path: Any) -> None:
    """A rank that runs out of memory ends no group: all take the size that fits on each of them."""
    module = SizedNet()
    assert Tuner(group_trainer(tmp_path)).scale_batch_size(module) == 8
    assert module.batch_size == 8
    trainer = group_trainer(tmp_path, max_epochs=1)
    trainer.fit(module)
    assert trainer.global_step == 13


def test_a_schedule_over_the_length_of_training_is_no_hindrance() -> None:
    """A module that plans its schedule by the estimated steps can be searched, by either way."""

    class Cycling(Sized):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            steps = self.trainer.estimated_stepping_batches
            cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=steps)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}

    assert Tuner(quiet_trainer()).scale_batch_size(Cycling()) == 16
    module, trainer = Cycling(), quiet_trainer(BatchSizeFinder())
    trainer.fit(module)
    assert (module.batch_size, trainer.global_step) == (16, 4)
