"""The bytes of a text file as sequences to learn from; without a file, a text that comes with Python.

A sample is a tensor of `context` + 1 bytes (uint8): a model predicts each from those before it. Training
sequences begin at every `stride`-th byte of the file's first part, validation and test sequences follow one
another in its last parts, so nothing is both learned and judged. A file that is too short is refused.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from modules.datamodule import LightningDataModule


class Windows(Dataset[Tensor]):
    """Sequences of `length` bytes that begin `stride` bytes apart."""

    def __init__(self, text: Tensor, length: int, stride: int) -> None:
        self.text, self.length, self.stride = text, length, stride

    def __len__(self) -> int:
        return max(0, (len(self.text) - self.length) // self.stride + 1)

    def __getitem__(self, index: int) -> Tensor:
        start = index * self.stride
        return self.text[start : start + self.length]


class TextBytes(LightningDataModule):
    """A text, to be continued.

    Args:
        path: The file; None takes the help texts of Python's own language reference (about 700 kB).
        context: Bytes that a prediction may look back on; as the model's.
        batch_size: Sequences a batch, for each worker.
        stride: Bytes between the beginnings of training sequences; `context` when None, each byte once an
            epoch.
        val_share: Share of the text, at its end, that chooses the model.
        test_share: Share of the text, after that, that judges it.

    Raises:
        ValueError: The shares leave nothing; in `setup`, the file is missing or too short.
    """

    def __init__(
        self,
        path: Path | None = None,
        context: int = 128,
        batch_size: int = 32,
        stride: int | None = None,
        val_share: float = 0.05,
        test_share: float = 0.05,
    ) -> None:
        super().__init__()
        if min(val_share, test_share) <= 0 or val_share + test_share >= 1:
            raise ValueError(
                f"TextBytes(val_share={val_share}, test_share={test_share}): one part is empty. "
                "Use shares above 0 that are together less than 1."
            )
        self.save_hyperparameters()
        self.path = None if path is None else Path(path)
        self.context, self.batch_size, self.stride = context, batch_size, stride or context
        self.val_share, self.test_share = val_share, test_share
        self.parts: dict[str, Windows] = {}

    def setup(self, stage: str) -> None:
        """Read the text, once."""
        if self.parts:
            return
        path = self._file()
        if not path.is_file():
            raise ValueError(f"TextBytes(path={str(path)!r}) is not a file. Correct the path.")
        text = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
        length = self.context + 1
        val, test = int(len(text) * self.val_share), int(len(text) * self.test_share)
        train = len(text) - val - test
        if min(train, val, test) < length:
            raise ValueError(
                f"TextBytes({str(path)!r}, context={self.context}): of {len(text)} bytes, training gets "
                f"{train}, validation {val} and test {test}, and a sequence has {length}. Lower context, or "
                "take a longer text."
            )
        self.parts = {
            "train": Windows(text[:train], length, self.stride),
            "val": Windows(text[train : train + val], length, self.context),
            "test": Windows(text[train + val :], length, self.context),
        }

    def _file(self) -> Path:
        if self.path is not None:
            return self.path
        spec = importlib.util.find_spec("pydoc_data.topics")
        return Path("" if spec is None or spec.origin is None else spec.origin)

    def train_dataloader(self) -> DataLoader[Any]:
        """The first part, in another order each epoch."""
        return DataLoader(self.parts["train"], batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """The part that chooses the model."""
        return DataLoader(self.parts["val"], batch_size=self.batch_size)

    def test_dataloader(self) -> DataLoader[Any]:
        """The part that judges it."""
        return DataLoader(self.parts["test"], batch_size=self.batch_size)

    def predict_dataloader(self) -> DataLoader[Any]:
        """The test part."""
        return self.test_dataloader()
