"""The forms in which users pass data, what each step gets of them, and which are refused, in process."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import orchestrator as pl
from orchestrator import MisconfigurationError
from orchestrator.utilities import CombinedLoader
from tests.orchestrator.tiny import Tiny, assert_equal_weights, loader, points, quiet_trainer

ENTRIES = ["validate", "test"]


def numbers(length: int, batch_size: int = 2, **options: Any) -> DataLoader[Any]:
    """A loader of the numbers from 0."""
    return DataLoader(range(length), batch_size=batch_size, **options)  # type: ignore[arg-type]


def plain(batch: Any) -> Any:
    """A batch with lists for tensors."""
    if isinstance(batch, dict):
        return {key: plain(item) for key, item in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(map(plain, batch))
    return batch.tolist() if isinstance(batch, torch.Tensor) else batch


class Looks(pl.LightningModule):
    """Writes down every batch that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.seen: list[Any] = []

    def look(self, *what: Any) -> None:
        self.seen.append(plain(what))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.look("train", batch_idx, batch)
        return self.weight * 1.0

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.look("val", dataloader_idx, batch_idx, batch)
        self.log("x", float(batch_idx), batch_size=1)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.validation_step(batch, batch_idx, dataloader_idx)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return batch

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def batches(self, what: str) -> list[Any]:
        """The batches of training or validation."""
        return [item[-1] for item in self.seen if item[0] == what]


# -------------------------------------------------------------------- training


@pytest.mark.parametrize("given", ["argument", "hook", "data module"])
def test_a_dictionary_of_loaders_gives_dictionaries(given: str) -> None:
    """However it is passed, a training step gets a batch of each loader, the shorter ones beginning again."""
    source = {"a": numbers(3), "b": [numbers(5), numbers(2)]}
    module, trainer = Looks(), quiet_trainer()
    if given == "argument":
        trainer.fit(module, source)
    elif given == "hook":
        module.train_dataloader = lambda: source  # type: ignore[method-assign]
        trainer.fit(module)
    else:
        data = pl.LightningDataModule()
        data.train_dataloader = lambda: source  # type: ignore[method-assign]
        trainer.fit(module, datamodule=data)
    assert module.batches("train") == [
        {"a": [0, 1], "b": [[0, 1], [0, 1]]},
        {"a": [2], "b": [[2, 3], [0, 1]]},
        {"a": [0, 1], "b": [[4], [0, 1]]},
    ]
    assert trainer.num_training_batches == 3
    assert trainer.train_dataloader is source
    assert (trainer.batches_seen, trainer.samples_seen) == (3, 5 + 5 + 6)


@pytest.mark.parametrize(("mode", "length"), [("min_size", 2), ("max_size_cycle", 3), ("max_size", 3)])
def test_a_combined_loader_trains_in_its_mode(mode: str, length: int) -> None:
    """The mode decides how many batches an epoch has; limits count those."""
    for limit, expected in ((None, length), (1, 1), (0.7, int(length * 0.7))):
        module, trainer = Looks(), quiet_trainer(limit_train_batches=limit)
        trainer.fit(module, CombinedLoader([numbers(3), numbers(5)], mode))
        assert trainer.num_training_batches == trainer.global_step == expected
    module = Looks()
    quiet_trainer().fit(module, CombinedLoader((numbers(3), numbers(5)), mode))
    last = {"min_size": ([2], [2, 3]), "max_size_cycle": ([0, 1], [4]), "max_size": (None, [4])}
    assert module.batches("train")[-1] == last[mode]


def test_several_loaders_train_to_the_bits_of_a_plain_loop() -> None:
    """Shuffled loaders draw from the global generator in the order in which a plain loop over them does."""

    class Both(Tiny):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch["a"], 0) + super().training_step(batch["b"], 0)

    def make() -> Any:
        return {"a": loader(8, shuffle=True), "b": loader(20, shuffle=True)}

    pl.seed_everything(3, verbose=False)
    module = Both(dropout=0.3)
    quiet_trainer(max_epochs=2).fit(module, make())

    pl.seed_everything(3, verbose=False)
    plainly, data = Both(dropout=0.3), make()
    optimizer = plainly.configure_optimizers()
    for _ in range(2):
        for batch, index, _ in CombinedLoader(data, "max_size_cycle"):
            optimizer.zero_grad()
            plainly.training_step(batch, index).backward()
            optimizer.step()
    assert_equal_weights(module, plainly)


@pytest.mark.parametrize("mode", ["min_size", "max_size_cycle", "max_size"])
def test_a_run_over_several_loaders_goes_on_exactly(tmp_path: Path, mode: str) -> None:
    """A checkpoint of the middle of an epoch, behind a pass of the shorter one, leads to equal weights."""

    class Both(Tiny):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            parts = [part for part in batch.values() if part is not None]
            return sum(super(Both, self).training_step(part, 0) for part in parts)

    def fit(module: Any, *callbacks: Any, **options: Any) -> pl.Trainer:
        data = {"a": loader(13, 2, shuffle=True), "b": loader(27, 2, shuffle=True)}
        trainer = quiet_trainer(*callbacks, max_epochs=2)
        trainer.fit(module, CombinedLoader(data, mode), **options)
        return trainer

    class Saves(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if trainer.global_step in (5, 9, 13):
                trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")

    pl.seed_everything(5, verbose=False)
    whole = Both(dropout=0.3)
    seen = fit(whole, Saves()).samples_seen
    files = sorted(tmp_path.iterdir())
    assert len(files) == 3
    for file in files:
        module = Both(dropout=0.3)
        trainer = fit(module, ckpt_path=file)
        assert_equal_weights(module, whole)
        assert trainer.samples_seen == seen


def test_a_run_goes_on_only_with_the_same_loaders(tmp_path: Path) -> None:
    """In the middle of an epoch other members, or another mode, are refused."""

    class Sums(Tiny):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch[0], 0)

    class Saves(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            trainer.save_checkpoint(tmp_path / "a.ckpt")
            trainer.should_stop = True

    quiet_trainer(Saves()).fit(Sums(), [loader(8), loader(12)])
    for other in ([loader(8), loader(16)], CombinedLoader([loader(8), loader(12)], "max_size")):
        with pytest.raises(MisconfigurationError, match="in the middle of an epoch of max_size_cycle"):
            quiet_trainer().fit(Sums(), other, ckpt_path=tmp_path / "a.ckpt")


# -------------------------------------------------------------------- evaluation


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("wrap", [lambda item: item, lambda item: CombinedLoader(item, "sequential")])
@pytest.mark.parametrize("keyed", [False, True])
def test_evaluation_runs_one_loader_after_the_other(entry: str, wrap: Any, keyed: bool) -> None:
    """Of a list or dictionary of loaders each step gets the number, and each loader has its metrics."""
    source: Any = {"a": numbers(3), "b": numbers(5)} if keyed else [numbers(3), numbers(5)]
    module, trainer = Looks(), quiet_trainer()
    results = getattr(trainer, entry)(module, wrap(source), verbose=False)
    assert results == [{"x/dataloader_idx_0": 0.5}, {"x/dataloader_idx_1": 1.0}]
    assert [item[1:3] for item in module.seen] == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    name = "val" if entry == "validate" else entry
    assert getattr(trainer, f"num_{name}_batches") == [2, 3]
    assert getattr(trainer, f"{name}_dataloaders") is source


@pytest.mark.parametrize(("mode", "length"), [("min_size", 2), ("max_size_cycle", 3), ("max_size", 3)])
def test_evaluation_may_read_loaders_together(mode: str, length: int) -> None:
    """A CombinedLoader of another mode is one loader whose batches are collections."""
    module, trainer = Looks(), quiet_trainer()
    results = trainer.validate(
        module, CombinedLoader({"a": numbers(3), "b": numbers(5)}, mode), verbose=False
    )
    assert results == [{"x": (length - 1) / 2}]
    assert [item[1:3] for item in module.seen] == [(0, index) for index in range(length)]
    assert trainer.num_val_batches == [length]
    assert module.batches("val")[0] == {"a": [0, 1], "b": [0, 1]}


def test_predictions_come_by_loader() -> None:
    """A dictionary of loaders gives a list each; loaders read together are refused."""
    found = quiet_trainer().predict(Looks(), {"a": numbers(3), "b": numbers(2)})
    assert plain(found) == [[[0, 1], [2]], [[0, 1]]]
    trainer = quiet_trainer()
    with pytest.raises(MisconfigurationError, match=r'mode=\'min_size\'\).*Use mode="sequential"'):
        trainer.predict(Looks(), CombinedLoader([numbers(3)], "min_size"))
    assert trainer.num_predict_batches == []


def test_no_validation_loaders_are_no_validation() -> None:
    """An empty list, or a hook that returns None, skips validation; validate of nothing returns nothing."""
    for given in ([], {}):
        module, trainer = Looks(), quiet_trainer(num_sanity_val_steps=2)
        trainer.fit(module, numbers(4), given)
        assert (len(module.batches("train")), module.batches("val")) == (2, [])
        assert trainer.num_val_batches == []
        assert trainer.validate(module, given, verbose=False) == []
    module = Looks()
    module.val_dataloader = lambda: None  # type: ignore[method-assign]
    quiet_trainer(num_sanity_val_steps=2).fit(module, numbers(4))
    assert module.batches("val") == []


def test_a_loader_without_batches_can_be_allowed() -> None:
    """With the data module's attribute an empty loader is run over without a word, in fit too."""

    class Empty(pl.LightningDataModule):
        allow_zero_length_dataloader_with_multiple_devices = True
        length = 4

        def train_dataloader(self) -> Any:
            return numbers(self.length)

        def val_dataloader(self) -> Any:
            return [numbers(2), numbers(0)]

    module, trainer = Looks(), quiet_trainer()
    data = Empty()
    trainer.fit(module, datamodule=data)
    assert (module.batches("train"), module.batches("val")) == ([[0, 1], [2, 3]], [[0, 1]])
    assert trainer.num_val_batches == [1, 0]
    data.length = 0
    trainer = quiet_trainer()
    trainer.fit(Looks(), datamodule=data)
    assert (trainer.global_step, trainer.current_epoch) == (0, 0)


# -------------------------------------------------------------------- other iterables


def test_a_list_of_batches_is_one_loader() -> None:
    """Tensors in a list are batches, in training and in evaluation."""
    module, trainer = Looks(), quiet_trainer()
    batches = [torch.arange(2), torch.arange(3)]
    trainer.fit(module, batches, batches)
    assert module.batches("train") == module.batches("val") == [[0, 1], [0, 1, 2]]


def test_a_generator_trains_one_epoch() -> None:
    """A generator is read as it comes; an epoch that finds it used up is the last, with a warning."""
    module, trainer = Looks(), quiet_trainer(max_epochs=1)
    trainer.fit(module, (torch.tensor([index]) for index in range(3)))
    assert module.batches("train") == [[0], [1], [2]]
    trainer = quiet_trainer(max_epochs=-1)
    with pytest.warns(UserWarning, match="is a generator, which can be read once: epoch 1 has no batches"):
        trainer.fit(Looks(), (torch.tensor([index]) for index in range(3)))
    assert trainer.current_epoch == 2


def test_data_sets_hear_of_epochs() -> None:
    """An iterable data set with set_epoch, as Hugging Face's have, is told each epoch before it is read."""

    class Told(IterableDataset[Any]):
        epochs: list[int]

        def __init__(self) -> None:
            self.epochs = []

        def set_epoch(self, epoch: int) -> None:
            self.epochs.append(epoch)

        def __iter__(self) -> Iterator[Any]:
            return iter(torch.full((2,), self.epochs[-1]))

    data, module = Told(), Looks()
    quiet_trainer(max_epochs=3).fit(module, {"a": DataLoader(data, batch_size=2), "b": numbers(2)})
    assert data.epochs == [0, 1, 2]
    assert [batch["a"] for batch in module.batches("train")] == [[0, 0], [1, 1], [2, 2]]


class Counting:
    """A loader that keeps its place itself, and yields it with how often it was asked since it was made."""

    def __init__(self, length: int, sized: bool) -> None:
        self.length = length
        self.place = 0
        self.asked = 0
        if sized:
            self.__class__ = _SizedCounting

    def __iter__(self) -> Iterator[Any]:
        while self.place < self.length:
            self.place += 1
            self.asked += 1
            yield torch.tensor([self.place])
        self.place = 0

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.place = state["place"]


class _SizedCounting(Counting):
    def __len__(self) -> int:
        return self.length


@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize("several", [True, False])
def test_a_stateful_loader_goes_on_by_its_own_state(tmp_path: Path, sized: bool, several: bool) -> None:
    """Its state in a checkpoint is that behind the last batch used, and nothing used is read again."""

    def source() -> tuple[Counting, Any]:
        own = Counting(5, sized)
        return own, {"a": own, "b": numbers(20)} if several else own

    class Saves(pl.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
            if trainer.global_step == 3:
                trainer.save_checkpoint(tmp_path / "a.ckpt")

    whole = Looks()
    quiet_trainer(Saves(), limit_train_batches=5).fit(whole, source()[1])
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    own = content["orchestrator"]["ranks"][0]["reading"]["own"]
    assert (own["members"][0]["own"] if several else own) == {"state": {"place": 3}}
    rest, (counting, given) = Looks(), source()
    quiet_trainer(limit_train_batches=5).fit(rest, given, ckpt_path=tmp_path / "a.ckpt")
    assert rest.batches("train") == whole.batches("train")[3:]
    assert counting.asked == 2


# -------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("kind", "source", "message"),
    [
        ("train", CombinedLoader([numbers(2)], "sequential"), r'mode="sequential"\), and a training step'),
        (
            "train",
            {"a": numbers(2), "b": points(2)},
            r"train data at \['b'\] is a TensorDataset, not an",
        ),
        ("train", [numbers(2), 3], r"train data at \[1\] is a int, not an iterable of batches"),
        ("train", {"a": torch.zeros(2)}, r"train data at \['a'\] is a Tensor, not an iterable of batches"),
        ("train", [CombinedLoader([numbers(2)])], r"at \[0\] is a CombinedLoader inside a collection"),
        ("train", {"a": numbers(2), "b": numbers(0)}, r"The train loader at \['b'\] has 0 batches"),
        ("train", [], "The train loader has 0 batches"),
        ("train", {}, "The train loader has 0 batches"),
        ("val", [numbers(2), TensorDataset(torch.zeros(2))], r"val data at \[1\] is a TensorDataset"),
        ("val", [numbers(2), numbers(0)], r"The val loader at \[1\] has 0 batches"),
    ],
)
@pytest.mark.parametrize("given", [True, False])
def test_what_is_no_data_is_named(kind: str, source: Any, message: str, given: bool) -> None:
    """What cannot be read is refused with its place in the collection, given or returned by a hook."""
    module, trainer = Looks(), quiet_trainer()
    loaders: dict[str, Any] = {"train": numbers(2), "val": numbers(2)}
    if given:
        loaders[kind] = source
    else:
        del loaders[kind]
        setattr(module, f"{kind}_dataloader", lambda: source)
    with pytest.raises(MisconfigurationError, match=message):
        trainer.fit(module, loaders.get("train"), loaders.get("val"))
    assert module.seen == []


def test_a_generator_cannot_be_sent_to_a_group() -> None:
    """It is refused before any worker starts, with what to give instead."""
    trainer = quiet_trainer()
    several = pl.Trainer(accelerator="cpu", devices=2, logger=False)
    for source in ((item for item in range(3)), {"a": numbers(2), "b": iter([1])}):
        with pytest.raises(MisconfigurationError, match="read once and in one process, and there"):
            several.fit(Looks(), source)
    assert trainer.global_step == 0


# -------------------------------------------------------------------- Lightning


@pytest.mark.extras
@pytest.mark.parametrize("limit", [None, 1, 2, 0.7, 10])
@pytest.mark.parametrize("mode", ["min_size", "max_size_cycle", "max_size", "sequential"])
def test_steps_get_what_lightnings_get(mode: str, limit: Any) -> None:
    """Batches, indices, metrics and weights equal Lightning's for every mode, shuffled, with limits."""
    lightning = pytest.importorskip("lightning.pytorch")
    combined = pytest.importorskip("lightning.pytorch.utilities").CombinedLoader

    def data(make: Any) -> Any:
        return make({"a": numbers(7, shuffle=True), "b": [numbers(11, shuffle=True)]}, mode)

    def run(framework: Any, make: Any) -> tuple[list[Any], Any]:
        class Own(framework.LightningModule):  # type: ignore[misc]
            pass

        for name, item in vars(Looks).items():
            if not name.startswith("__"):
                setattr(Own, name, item)
        torch.manual_seed(0)
        module = Own()
        module.weight, module.seen = torch.nn.Parameter(torch.ones(())), []
        trainer = framework.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=2,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            limit_train_batches=limit,
            limit_val_batches=limit,
            **({"enable_model_summary": False} if framework is lightning else {}),
        )
        if mode != "sequential":
            trainer.fit(module, data(make), data(make))
        results = trainer.validate(module, data(make), verbose=False)
        return module.seen, results

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = run(lightning, combined)
    ours = run(pl, CombinedLoader)
    assert ours == theirs
