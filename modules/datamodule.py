"""The base class for data: where it comes from, how it is split, and the loaders that serve it.

``prepare_data`` runs once per node (download, write files); ``setup`` runs in every process; the
``*_dataloader`` methods return DataLoaders as for one process. Sharding over ranks is the trainer's business.
"""

from __future__ import annotations

from typing import Any

from modules.hyperparameters import HyperparametersMixin


class LightningDataModule(HyperparametersMixin):
    """Override what is needed; methods that are not overridden are never called.

    Attributes:
        prepare_data_per_node: Run ``prepare_data`` on each node, else only on the first.
        allow_zero_length_dataloader_with_multiple_devices: Accept loaders without a batch; nothing is run on
            them. A rank that gets none of the data is fine in any case.
        trainer: The trainer that uses this data module; None before.
    """

    prepare_data_per_node: bool = True
    allow_zero_length_dataloader_with_multiple_devices: bool = False
    trainer: Any = None

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

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "trainer"}
