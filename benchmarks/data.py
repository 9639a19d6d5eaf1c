"""How fast rows become shuffled batches, and what an epoch over tensors costs, beside hand-written peers.

2 million rows of 32 float32 columns and a label, in Parquet (8 files of 4 row groups) and Arrow files,
batches of 1024. Rates count from the first batch on. The peers are what a careful engineer writes with
pyarrow and NumPy for this one table: a row-group reader with two kept buffers and a thread, a gather from
memory, and a gather from mapped files. Last, an epoch over 60,000 x 784 tensors against the plain loop over
a DataLoader.
"""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from harness import measure, parse_arguments, report, summarize
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import orchestrator as pl

ROWS, COLUMNS, FILES, GROUPS, BATCH, ROUNDS = 2_000_000, 32, 8, 4, 1024, 5
WINDOW = 4 * ROWS // FILES // GROUPS
NAMES = [f"f{index}" for index in range(COLUMNS)]
Batches = Iterator[tuple[Tensor, Tensor]]


def write(folder: Path) -> None:
    """Write the table as Parquet with a column a feature, and as Arrow with one column of lists."""
    generator = np.random.default_rng(0)
    rows = ROWS // FILES
    for index in range(FILES):
        values = generator.standard_normal((rows, COLUMNS), dtype=np.float32)
        label = pa.array(generator.integers(0, 10, rows))
        columns = {name: np.ascontiguousarray(values[:, place]) for place, name in enumerate(NAMES)}
        wide = pa.table({**columns, "label": label})
        pq.write_table(wide, folder / f"{index}.parquet", row_group_size=rows // GROUPS)
        lists = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), COLUMNS)
        table = pa.table({"x": lists, "label": label})
        with pa.ipc.new_file(str(folder / f"{index}.arrow"), table.schema) as file:
            file.write_table(table, max_chunksize=rows // GROUPS)


def tuned_reader(folder: Path) -> Batches:
    """Windows of 4 row groups, columns interleaved into two kept buffers, decoded in a thread."""
    files = [pq.ParquetFile(path, memory_map=True) for path in sorted(folder.glob("*.parquet"))]
    groups = [(file, group) for file in files for group in range(GROUPS)]
    order = [groups[place] for place in torch.randperm(len(groups)).tolist()]
    windows = [order[start : start + 4] for start in range(0, len(order), 4)]
    buffers = [(torch.empty(WINDOW, COLUMNS), torch.empty(WINDOW, dtype=torch.int64)) for _ in range(2)]

    def load(index: int) -> tuple[Tensor, Tensor, Tensor]:
        values, labels = (tensor.numpy() for tensor in buffers[index % 2])
        start = 0
        for file, group in windows[index]:
            table = file.read_row_group(group)
            columns = [column.to_numpy() for column in table.columns[:COLUMNS]]
            for piece in range(0, table.num_rows, 4096):
                target = values[start + piece : start + min(piece + 4096, table.num_rows)]
                for place, column in enumerate(columns):
                    target[:, place] = column[piece : piece + 4096]
            labels[start : start + table.num_rows] = table.column("label").to_numpy()
            start += table.num_rows
        return *buffers[index % 2], torch.randperm(start)

    with ThreadPoolExecutor(1) as pool:
        task = pool.submit(load, 0)
        for index in range(len(windows)):
            values, labels, rows = task.result()
            if index + 1 < len(windows):
                task = pool.submit(load, index + 1)
            for ids in rows.split(BATCH):
                yield values.index_select(0, ids), labels.index_select(0, ids)


def arrow_arrays(folder: Path) -> list[tuple[Any, Any]]:
    """The record batches of the mapped Arrow files as arrays."""
    found = []
    for path in sorted(folder.glob("*.arrow")):
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        for index in range(reader.num_record_batches):
            batch = reader.get_batch(index)
            values = batch.column("x").flatten().to_numpy().reshape(-1, COLUMNS)
            found.append((values, batch.column("label").to_numpy()))
    return found


def memory_gather(folder: Path) -> Batches:
    """Rows of tensors in memory by a permutation of all."""
    arrays = arrow_arrays(folder)
    values = torch.from_numpy(np.concatenate([item[0] for item in arrays]))
    labels = torch.from_numpy(np.concatenate([item[1] for item in arrays]))
    for ids in torch.randperm(ROWS).split(BATCH):
        yield values.index_select(0, ids), labels.index_select(0, ids)


def mapped_gather(folder: Path) -> Batches:
    """Rows of mapped files by a permutation of all, batch by batch with NumPy."""
    arrays = arrow_arrays(folder)
    size = len(arrays[0][0])
    for ids in np.array_split(torch.randperm(ROWS).numpy(), -(-ROWS // BATCH)):
        owner, local = ids // size, ids % size
        order = np.argsort(owner, kind="stable")
        cuts = np.searchsorted(owner[order], np.arange(len(arrays) + 1))
        values, labels = np.empty((len(ids), COLUMNS), np.float32), np.empty(len(ids), np.int64)
        for index, (source, source_labels) in enumerate(arrays):
            here = order[cuts[index] : cuts[index + 1]]
            values[here], labels[here] = source[local[here]], source_labels[local[here]]
        yield torch.from_numpy(values), torch.from_numpy(labels)


def parquet(folder: Path, shuffle: str) -> Batches:
    """This project, from Parquet."""
    data = pl.ParquetDataset(f"{folder}/*.parquet", columns={"x": NAMES, "label": "label"})
    for batch in data.loader(BATCH, shuffle=shuffle, window_rows=WINDOW):
        yield batch["x"], batch["label"]


def arrow(folder: Path) -> Batches:
    """This project, from mapped Arrow files."""
    for batch in pl.ArrowDataset(f"{folder}/*.arrow").loader(BATCH, shuffle=True):
        yield batch["x"], batch["label"]


def rate(batches: Batches) -> Mapping[str, float]:
    """Read an epoch."""
    begun = time.perf_counter()
    next(batches)
    first, cpu = time.perf_counter(), time.process_time()
    rows = sum(len(labels) for _, labels in batches)
    took = time.perf_counter() - first
    cpu_ns = (time.process_time() - cpu) / rows * 1e9
    return {"M_rows_a_s": rows / took / 1e6, "cpu_ns_a_row": cpu_ns, "first_batch_s": first - begun}


class Classifier(pl.LightningModule):
    """784-128-10."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
        self.clock: list[float] = []

    def on_train_epoch_start(self) -> None:
        """Take the time."""
        self.clock.append(time.process_time())

    def on_train_epoch_end(self) -> None:
        """Take the time."""
        self.clock.append(time.process_time())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def plain_epoch(data: TensorDataset) -> Mapping[str, float]:
    """The loop that a user of plain PyTorch writes."""
    module = Classifier()
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    begun = time.process_time()
    for index, batch in enumerate(DataLoader(data, batch_size=64, shuffle=True)):
        optimizer.zero_grad()
        module.training_step(batch, index).backward()
        optimizer.step()
    return {"cpu_s": time.process_time() - begun}


def our_epoch(data: TensorDataset) -> Mapping[str, float]:
    """The same DataLoader in our Trainer."""
    module = Classifier()
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(accelerator="cpu", devices=1, max_epochs=1, enable_model_summary=False, **quiet)
    trainer.fit(module, DataLoader(data, batch_size=64, shuffle=True))
    return {"cpu_s": module.clock[1] - module.clock[0]}


def main() -> None:
    """Run all contenders, each kind against its own peer."""
    question = "How fast do rows become shuffled batches?"
    arguments = parse_arguments(question)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("orchestrator").setLevel(logging.ERROR)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(60_000, 784, generator=generator)
    tensors = TensorDataset(images, torch.randint(0, 10, (60_000,), generator=generator))
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder)
        pairs: list[tuple[str, dict[str, Callable[[], Mapping[str, float]]]]] = [
            (
                "tuned row-group reader",
                {
                    "tuned row-group reader": lambda: rate(tuned_reader(folder)),
                    "Parquet, windows": lambda: rate(parquet(folder, "block")),
                },
            ),
            (
                "memory gather",
                {
                    "memory gather": lambda: rate(memory_gather(folder)),
                    "Parquet, all rows": lambda: rate(parquet(folder, "global")),
                },
            ),
            (
                "mapped gather",
                {
                    "mapped gather": lambda: rate(mapped_gather(folder)),
                    "Arrow, mapped": lambda: rate(arrow(folder)),
                },
            ),
            (
                "plain epoch",
                {"plain epoch": lambda: plain_epoch(tensors), "our epoch": lambda: our_epoch(tensors)},
            ),
        ]
        for peer, contenders in pairs:
            rows += summarize(measure(contenders, ROUNDS), peer)
    report("data", question, rows, "the peer before it", arguments.json)


if __name__ == "__main__":
    main()
