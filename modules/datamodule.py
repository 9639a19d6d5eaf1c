"""The base class for data: where it comes from, how it is split, and the loaders that serve it.

``prepare_data`` runs once per node (download, write files); ``setup`` runs in every process; the
``*_dataloader`` methods return DataLoaders as for one process. Sharding over ranks is the trainer's business.
`from_datasets` makes a data module of datasets that are there already; it fails with a `TypeError` that names
what is no dataset.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from typing import IO, Any, Self

from torch.utils.data import DataLoader, Dataset, IterableDataset

from modules.hyperparameters import HyperparametersMixin
from modules.saving import class_only_method, load_data_from_checkpoint


class LightningDataModule(HyperparametersMixin):
    """Override what is needed; methods that are not overridden are never called.

    Attributes:
        prepare_data_per_node: Run ``prepare_data`` on each node, else only on the first.
        allow_zero_length_dataloader_with_multiple_devices: Accept loaders without a batch; nothing is run on
            them. A rank that gets none of the data is fine in any case.
        name: A name of one's own.
        trainer: The trainer that uses this data module; None before.
    """

    prepare_data_per_node: bool = True
    allow_zero_length_dataloader_with_multiple_devices: bool = False
    name: str | None = None
    trainer: Any = None

    @class_only_method
    def from_datasets(
        cls,
        train_dataset: Dataset[Any] | Iterable[Dataset[Any]] | None = None,
        val_dataset: Dataset[Any] | Iterable[Dataset[Any]] | None = None,
        test_dataset: Dataset[Any] | Iterable[Dataset[Any]] | None = None,
        predict_dataset: Dataset[Any] | Iterable[Dataset[Any]] | None = None,
        batch_size: int = 1,
        num_workers: int = 0,
        **datamodule_kwargs: Any,
    ) -> Self:
        """Return a data module that serves these datasets; training shuffles those that have an order.

        Args:
            train_dataset: A dataset, or several, in a list or by name.
            val_dataset: Likewise.
            test_dataset: Likewise.
            predict_dataset: Likewise.
            batch_size: Samples of a batch.
            num_workers: Processes that load them.
            **datamodule_kwargs: Arguments of this class's constructor, which also gets `batch_size` and
                `num_workers` where it has arguments of these names.

        Raises:
            TypeError: Something is no dataset, or the constructor does not take an argument.
        """
        found: Self = _of_datasets(
            cls,
            {
                "train": train_dataset,
                "val": val_dataset,
                "test": test_dataset,
                "predict": predict_dataset,
            },
            {"batch_size": batch_size, "num_workers": num_workers},
            datamodule_kwargs,
        )
        return found

    @class_only_method
    def load_from_checkpoint(
        cls,
        checkpoint_path: str | os.PathLike[str] | IO[bytes],
        map_location: Any = None,
        hparams_file: str | os.PathLike[str] | None = None,
        weights_only: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """Build an instance from a checkpoint's data hyperparameters and state; see `modules.saving`."""
        return load_data_from_checkpoint(
            cls, checkpoint_path, map_location, hparams_file, weights_only, **kwargs
        )

    def prepare_data(self) -> None:
        """Download or write what all processes will read. Do not assign to ``self`` here: it runs in one
        process.
        """

    def setup(self, stage: str) -> None:
        """Build data sets in every process; `stage` is fit, validate, test or predict."""

    def teardown(self, stage: str) -> None:
        """Clean up at the end of a stage."""

    def train_dataloader(self) -> Any:
        """Return the loader for training."""

    def val_dataloader(self) -> Any:
        """Return the loader, or a list of loaders, for validation."""

    def test_dataloader(self) -> Any:
        """Return the loader, or a list of loaders, for testing."""

    def predict_dataloader(self) -> Any:
        """Return the loader, or a list of loaders, for prediction."""

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Change a batch before it goes to the device."""
        return batch

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        """Move a batch of a type of one's own to the device."""
        return batch

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Change a batch on the device."""
        return batch

    def on_exception(self, exception: BaseException) -> None:
        """Called when a stage ends by an exception."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of this data module."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""

    def __str__(self) -> str:
        """Return a line for each kind of loader, with the lengths of its datasets."""
        return "\n".join(
            f"{{{title} dataloader: {_sizes(self, kind)}}}"
            for kind, title in (
                ("train", "Train"),
                ("val", "Validation"),
                ("test", "Test"),
                ("predict", "Predict"),
            )
        )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "trainer"}


_Datasets = Dataset[Any] | Iterable[Dataset[Any]] | None


class _ServedDatasets:
    """A method that serves datasets as loaders; an object, so that data modules that hold it pickle.

    Args:
        datasets: One, a list or a dictionary of them.
        options: Of each DataLoader.
        shuffles: Draw the samples of datasets that have an order in another one each epoch.
    """

    def __init__(self, datasets: Any, options: dict[str, Any], shuffles: bool) -> None:
        self.datasets = datasets
        self.options = options
        self.shuffles = shuffles

    def __call__(self) -> Any:
        if isinstance(self.datasets, Mapping):
            return {name: self._loader(item) for name, item in self.datasets.items()}
        if isinstance(self.datasets, list):
            return [self._loader(item) for item in self.datasets]
        return self._loader(self.datasets)

    def _loader(self, dataset: Any) -> DataLoader[Any]:
        shuffle = self.shuffles and not isinstance(dataset, IterableDataset)
        return DataLoader(dataset, shuffle=shuffle, **self.options)


def _of_datasets(
    cls: type[Any], datasets: dict[str, _Datasets], options: dict[str, Any], arguments: dict[str, Any]
) -> Any:
    parameters = inspect.signature(cls).parameters
    takes_all = any(item.kind is item.VAR_KEYWORD for item in parameters.values())
    shared = {name: value for name, value in options.items() if takes_all or name in parameters}
    datamodule = cls(**{**shared, **arguments})
    for kind, given in datasets.items():
        if given is not None:
            served = _ServedDatasets(_checked(f"{kind}_dataset", given), options, shuffles=kind == "train")
            setattr(datamodule, f"{kind}_dataloader", served)
    return datamodule


def _checked(argument: str, given: Any) -> Any:
    """Return the datasets as one, a list or a dictionary."""
    found = given
    if isinstance(given, Mapping):
        items = list(given.values())
    elif isinstance(given, Dataset) or (
        hasattr(given, "__getitem__") and not isinstance(given, (list, tuple))
    ):
        return given
    elif isinstance(given, Iterable) and not isinstance(given, (str, bytes)):
        found = items = list(given)
    else:
        items = [given]
    for item in items:
        if not _is_dataset(item):
            raise TypeError(
                f"from_datasets({argument}=...) has {item!r}, which is no dataset. Give a "
                "torch.utils.data.Dataset, or several in a list."
            )
    return found


def _is_dataset(item: Any) -> bool:
    ordered = hasattr(item, "__getitem__") and not isinstance(item, (list, tuple, str, bytes, Mapping))
    return isinstance(item, Dataset) or ordered


def _sizes(datamodule: LightningDataModule, kind: str) -> str:
    """Return the lengths of the datasets of a kind of loader, as text."""
    method: Callable[[], Any] = getattr(datamodule, f"{kind}_dataloader")
    if getattr(method, "__func__", None) is getattr(LightningDataModule, f"{kind}_dataloader"):
        return "None"
    try:
        loaders = method()
    except Exception:  # what setup makes is not there yet
        return "not set up"
    if isinstance(loaders, Mapping):
        return " ; ".join(f"{name}. {_size(item)}" for name, item in loaders.items())
    if isinstance(loaders, (list, tuple)):
        return " ; ".join(f"{place}. {_size(item)}" for place, item in enumerate(loaders, start=1))
    return _size(loaders)


def _size(loader: Any) -> str:
    if loader is None:
        return "None"
    try:
        return f"size={len(getattr(loader, 'dataset', loader))}"
    except TypeError:
        return "size=unknown"
