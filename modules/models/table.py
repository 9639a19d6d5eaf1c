"""Columns of a CSV or Parquet file as training data: numbers in, a class or a number out.

Features are standardised by mean and deviation of the training rows and have shape (n, columns), float32. A
target of whole numbers, truth values or words becomes the classes 0, 1, ... in sorted order (`labels` holds
them); one of floats stays numbers. Rows are dealt to training, validation and test by a permutation
of their number and the seed, the same in every process. What is not a number, or missing, is refused with
the columns' names.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from modules.datamodule import LightningDataModule


class Table(LightningDataModule):
    """Rows of a table.

    Args:
        path: A ``.csv`` file with a line of names, or a ``.parquet`` file.
        target: The column to predict.
        features: The columns to predict it from; all others when None.
        batch_size: Rows a batch, for each worker.
        val_share: Share of the rows that choose the model.
        test_share: Share of the rows that judge it.
        seed: Of the dealing.

    Attributes:
        labels: The classes' names in their order; empty for a target of floats. Known after `setup`.

    Raises:
        ValueError: Shares leave no row to train on; in `setup`, the file has not what was asked for.
    """

    def __init__(
        self,
        path: Path,
        target: str,
        features: Sequence[str] | None = None,
        batch_size: int = 64,
        val_share: float = 0.1,
        test_share: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if min(val_share, test_share) < 0 or val_share + test_share >= 1:
            raise ValueError(
                f"Table(val_share={val_share}, test_share={test_share}) leaves no rows to train on. "
                "Use shares that are together less than 1."
            )
        self.save_hyperparameters()
        self.path, self.target, self.features = Path(path), target, features
        self.batch_size, self.val_share, self.test_share, self.seed = batch_size, val_share, test_share, seed
        self.labels: list[Any] = []
        self.parts: dict[str, TensorDataset] = {}

    def setup(self, stage: str) -> None:
        """Read the file, once."""
        if self.parts:
            return
        table = self._read()
        names = [name for name in table.column_names if name != self.target]
        if self.features is not None:
            names = list(self.features)
        for name in [self.target, *names]:
            _check_column(table, name, self.path)
        words = [name for name in names if not _is_number(table.schema.field(name).type)]
        if words or not names:
            raise ValueError(
                f"Table({str(self.path)!r}): {', '.join(words) or 'no column'} cannot be used as a number. "
                "Name the columns that can: features=[...]."
            )
        columns = [torch.from_numpy(table[name].to_numpy().astype("float32")) for name in names]
        target = self._target(table)
        rows = table.num_rows
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(self.seed))
        test, val = round(rows * self.test_share), round(rows * self.val_share)
        if rows - test - val < 1:
            raise ValueError(
                f"Table({str(self.path)!r}) has {rows} rows, which leaves none to train on. Lower val_share "
                "and test_share."
            )
        inputs = torch.stack(columns, dim=1)
        train = order[test + val :]
        mean, deviation = inputs[train].mean(dim=0), inputs[train].std(dim=0, unbiased=False)
        inputs = (inputs - mean) / torch.where(deviation > 0, deviation, 1.0)
        for name, chosen in {"test": order[:test], "val": order[test : test + val], "train": train}.items():
            self.parts[name] = TensorDataset(inputs[chosen], target[chosen])

    def _read(self) -> Any:
        import pyarrow.csv
        import pyarrow.parquet

        if not self.path.is_file():
            raise ValueError(f"Table(path={str(self.path)!r}) is not a file. Correct the path.")
        if self.path.suffix == ".parquet":
            return pyarrow.parquet.read_table(self.path)
        if self.path.suffix == ".csv":
            return pyarrow.csv.read_csv(self.path)
        raise ValueError(f"Table(path={str(self.path)!r}) is neither .csv nor .parquet. Convert it.")

    def _target(self, table: Any) -> Tensor:
        import pyarrow as pa

        column = table[self.target]
        if pa.types.is_floating(column.type) or pa.types.is_decimal(column.type):
            return torch.from_numpy(column.to_numpy().astype("float32"))
        values = column.to_pylist()
        self.labels = sorted(set(values))
        number = {label: index for index, label in enumerate(self.labels)}
        return torch.tensor([number[value] for value in values])

    def train_dataloader(self) -> DataLoader[Any]:
        """The training rows, in another order each epoch."""
        return DataLoader(self.parts["train"], batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """The rows that choose the model; none without a share."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Any] | list[Any]:
        """The rows that judge it; none without a share."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[Any] | list[Any]:
        """The test rows."""
        return self._loader("test")

    def _loader(self, name: str) -> DataLoader[Any] | list[Any]:
        part = self.parts[name]
        return DataLoader(part, batch_size=self.batch_size) if len(part) else []


def _check_column(table: Any, name: str, path: Path) -> None:
    if name not in table.column_names:
        near = difflib.get_close_matches(name, table.column_names, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"It has {', '.join(table.column_names)}."
        raise ValueError(f"Table({str(path)!r}) has no column {name!r}. {hint}")
    missing = table[name].null_count
    if missing:
        raise ValueError(
            f"Table({str(path)!r}): {missing} of {table.num_rows} rows have no {name!r}. Fill or drop "
            f"them first."
        )


def _is_number(kind: Any) -> bool:
    import pyarrow as pa

    return bool(
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_decimal(kind)
    )
