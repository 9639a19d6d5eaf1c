"""The ledger tells which samples were used, and its audit finds every one that was not used exactly once."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset

import orchestrator as pl
from orchestrator.callbacks import ModelCheckpoint
from orchestrator.cli import main
from orchestrator.ledger_audit import Attempt, Audit, audit, judge
from tests.orchestrator.tiny import Tiny, loader, points, quiet_trainer


def fit(root: Path, epochs: int = 2, data: Any = None, *callbacks: Any, **arguments: Any) -> pl.Trainer:
    trainer = quiet_trainer(
        *callbacks, max_epochs=epochs, default_root_dir=root, ledger=True,
        **{"enable_checkpointing": bool(callbacks), **arguments},
    )  # fmt: skip
    trainer.fit(Tiny(), loader(18, shuffle=True) if data is None else data)
    return trainer


def ids_of(root: Path) -> list[list[int]]:
    """The samples of each batch, as the only file says."""
    (file,) = (root / "ledger").iterdir()
    return [json.loads(line)["ids"] for line in file.read_text().splitlines()[1:]]


@pytest.mark.parametrize(
    "options", [{"shuffle": True}, {"num_workers": 2, "shuffle": True}, {"drop_last": True}], ids=str
)
def test_it_holds_what_was_read(options: dict[str, Any], tmp_path: Path) -> None:
    """In the order of the batches, on the batched path and with loader processes, and it changes no batch."""
    seen: list[torch.Tensor] = []

    class Sees(pl.Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            seen.append(batch[0].clone())

    torch.manual_seed(1)
    fit(tmp_path, 2, loader(18, **options), Sees(), logger=False)
    inputs = points(18).tensors[0]
    assert all(torch.equal(inputs[ids], batch) for ids, batch in zip(ids_of(tmp_path), seen, strict=True))
    found = audit(tmp_path)
    assert found.is_right and [epoch.is_complete for epoch in found.epochs] == [True, True]
    assert [epoch.used for epoch in found.epochs] == [16 if "drop_last" in options else 18] * 2
    recorded, seen[:] = seen[:], []
    torch.manual_seed(1)
    quiet_trainer(Sees(), max_epochs=2).fit(Tiny(), loader(18, **options))
    assert all(torch.equal(one, other) for one, other in zip(recorded, seen, strict=True))


class Stops(Exception):
    """Stands for a kill."""


class Dies(pl.Callback):
    """Ends the run in the middle of a batch."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.at:
            raise Stops


def test_attempts_that_went_on_from_each_other_are_one_run(tmp_path: Path) -> None:
    """What an attempt used beyond the checkpoint that the next began from does not count."""
    for at in (3, 8, 9):
        saver = ModelCheckpoint(tmp_path, every_n_train_steps=2, save_top_k=-1)
        with pytest.raises(Stops):
            fit(tmp_path, 3, None, Dies(at), saver, resume="auto")
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=2, save_top_k=-1)
    trainer = fit(tmp_path, 3, None, saver, resume="auto")
    found = audit(tmp_path)
    assert trainer.global_step == 15
    # The third saved nothing, so the fourth went on from the second's checkpoint.
    assert len(found.attempts) == 3 and found.discarded == 2 + 1
    assert [(epoch.used, epoch.missing, epoch.doubled) for epoch in found.epochs] == [(18, 0, 0)] * 3


class Reads(Tiny):
    """Remembers the inputs of each batch of each logical rank, in the order in which they are read."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        inputs = batch["x"] if isinstance(batch, dict) else batch[0]
        self.seen.append(inputs)
        return self.net(inputs).square().mean()


def rows_of(kind: str) -> Any:
    """A loader of 22 samples, read in one of several ways, and the inputs by number."""
    inputs = points(22).tensors[0]
    if kind == "arrow":
        flat = pa.FixedSizeListArray.from_arrays(pa.array(inputs.flatten().numpy()), inputs.shape[1])
        return pl.ArrowDataset(pa.table({"x": flat})).loader(3, shuffle=True), inputs
    data: Any = points(22) if kind == "in memory" else [(row, row) for row in inputs]
    options: dict[str, Any] = {"num_workers": 2} if kind == "workers" else {}
    return DataLoader(data, batch_size=3, shuffle=True, **options), inputs


@pytest.mark.parametrize("kind", ["samples", "in memory", "workers", "arrow"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_logical_ranks_have_each_batch_written_down(kind: str, accumulate: int, tmp_path: Path) -> None:
    """What each logical rank read, whichever process hosts it, through failures too."""
    module = Reads()
    data, inputs = rows_of(kind)
    quiet_trainer(
        strategy=pl.strategies.ElasticStrategy(logical_ranks=3), ledger=True, default_root_dir=tmp_path,
        max_epochs=2, accumulate_grad_batches=accumulate,
    ).fit(module, data)  # fmt: skip
    written = ids_of(tmp_path)
    assert all(torch.equal(inputs[ids], seen) for ids, seen in zip(written, module.seen, strict=True))
    found = audit(tmp_path)
    assert [(epoch.used, epoch.missing, epoch.doubled) for epoch in found.epochs] == [(22, 0, 0)] * 2
    assert found.is_right and all(epoch.is_complete for epoch in found.epochs)


def test_attempts_of_logical_ranks_are_one_run(tmp_path: Path) -> None:
    """One that goes on from the middle of an epoch begins where the checkpoint was written."""
    for at in (2, 5, None):
        saver = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1)
        callbacks = [saver] if at is None else [Dies(at), saver]
        trainer = quiet_trainer(
            *callbacks, max_epochs=3, ledger=True, default_root_dir=tmp_path, enable_checkpointing=True,
            strategy=pl.strategies.ElasticStrategy(logical_ranks=3), resume="auto",
        )  # fmt: skip
        with pytest.raises(Stops) if at is not None else contextlib.nullcontext():
            trainer.fit(Tiny(), loader(22, 3, shuffle=True))
    found = audit(tmp_path)
    assert len(found.attempts) == 3 and found.discarded == 2
    assert [(epoch.used, epoch.missing, epoch.doubled) for epoch in found.epochs] == [(22, 0, 0)] * 3


def test_another_run_in_the_same_place_is_another(tmp_path: Path) -> None:
    """The newest is judged, from its own beginning; where none was kept, that is said."""
    fit(tmp_path, 1)
    fit(tmp_path, 2)
    assert len(audit(tmp_path).attempts) == 1 and len(audit(tmp_path / "ledger").epochs) == 2
    with pytest.raises(FileNotFoundError, match=r"no ledger in .*Trainer\(ledger=True\)"):
        audit(tmp_path / "elsewhere")


def test_what_a_search_tries_is_not_training(tmp_path: Path) -> None:
    """Batches on which a learning rate is tried are not in the ledger."""
    from orchestrator.callbacks import LearningRateFinder

    search = LearningRateFinder(num_training_steps=3, update_attr=False)
    fit(tmp_path, 1, None, search, enable_model_summary=False)
    assert [(epoch.used, epoch.doubled) for epoch in audit(tmp_path).epochs] == [(18, 0)]


def test_samples_without_numbers_are_not_written_down(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A stream has none, which is said; training goes on."""

    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            data = points(8)
            return iter([data[index] for index in range(8)])

    with caplog.at_level("INFO", logger="orchestrator"):
        fit(tmp_path, 1, DataLoader(Stream(), batch_size=4))
    assert "Trainer(ledger=True): the samples of this training data have no numbers" in caplog.text
    assert not (tmp_path / "ledger").exists()


# ---------------------------------------------------------------- the judge


def attempt(name: str, batches: dict[tuple[int, int], list[int]], **others: Any) -> Attempt:
    """An attempt of one rank over 6 samples."""
    rows = {(place, 0): ids for place, ids in batches.items()}
    return Attempt(name=name, **{"samples": 6, "length": 6, "batches": rows, "ends": {0}, **others})


def test_missing_and_doubled_samples_are_found() -> None:
    """With a few of their numbers; of an epoch that is not complete nothing is missing."""
    found = judge([attempt("a", {(0, 0): [0, 1, 1], (0, 1): [3, 5]})])
    (epoch,) = found.epochs
    assert (epoch.doubled, epoch.missing, epoch.examples) == (1, 2, (1, 2, 4))
    assert not found.is_right
    assert judge([attempt("a", {(0, 0): [0, 1]}, ends=set())]).is_right


@given(st.lists(st.integers(0, 12), min_size=1, max_size=6), st.data())
def test_any_history_of_kills_is_judged_rightly(stops: list[int], data: st.DataObject) -> None:
    """Attempts that stop anywhere and go on from any checkpoint before: exactly once; a batch that is left
    out or repeated is found."""
    chain, start = [], 0
    for index, stop in enumerate(stops):
        reached = min(12, start + stop)
        rows = {((0, batch), 0): [batch] for batch in range(start, reached)}
        chain.append(Attempt(name=str(index), start=(0, start), samples=12, length=12, batches=rows))
        start = data.draw(st.integers(start, reached))
    rows = {((0, batch), 0): [batch] for batch in range(start, 12)}
    chain.append(Attempt(name="end", start=(0, start), samples=12, length=12, batches=rows, ends={0}))
    found = judge(chain)
    assert found.epochs[0].used == 12 and found.is_right
    if start < 12:
        wrong = data.draw(st.integers(start, 11))
        rows[(0, wrong), 0] = [(wrong + 1) % 12]
        assert not judge(chain).is_right


# ---------------------------------------------------------------- the command


def write_run(root: Path, rows: int, batch: int, kills: int) -> None:
    """The ledger of a run over `rows` samples by two ranks that was killed so many times."""
    folder = root / "ledger"
    folder.mkdir()
    order = torch.randperm(rows).tolist()
    batches = -(-rows // (2 * batch))
    for index in range(kills + 1):
        start = 0 if index == 0 else batches * index // (kills + 1)
        stop = batches if index == kills else batches * (index + 1) // (kills + 1) + 2
        for rank in range(2):
            header = {
                "attempt": f"{index:03d}", "parent": f"{index - 1:03d}" if index else None,
                "time": float(index), "rank": rank, "world_size": 2, "joins": False, "start": [0, start],
                "samples": rows, "length": rows,
            }  # fmt: skip
            lines = [json.dumps(header)]
            for number in range(start, stop):
                ids = order[(number * 2 + rank) * batch : (number * 2 + rank + 1) * batch]
                line = {"e": 0, "b": number, "ids": ids, **({"last": True} if number == batches - 1 else {})}
                lines.append(json.dumps(line))
            text = "\n".join(lines) + ("\n" if index == kills else '\n{"e":0,"b":99999,"ids":[1,')
            (folder / f"{index:03d}-rank-{rank:05d}.jsonl").write_text(text)


def test_a_million_rows_through_twenty_kills(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command finds none doubled, and returns 0; 1 where one is, 2 without a ledger."""
    write_run(tmp_path, 1_000_000, 512, 20)
    assert main(["audit", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "Epoch 0: 1000000 samples, 0 missing, 0 doubled (complete)." in told
    assert "21 attempts, 80 batches discarded with lost processes. Each sample was used exactly once." in told
    file = tmp_path / "ledger" / "020-rank-00001.jsonl"
    lines = file.read_text().splitlines()
    lines[-1] = lines[-2].replace(f'"b": {json.loads(lines[-2])["b"]}', f'"b": {json.loads(lines[-1])["b"]}')
    file.write_text("\n".join(lines) + "\n")
    assert main(["audit", str(tmp_path), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["epochs"][0]["doubled"] == 512
    assert main(["audit", str(tmp_path / "nowhere")]) == 2
    assert "no ledger" in capsys.readouterr().err


def test_the_text_of_a_wrong_run() -> None:
    """It says how many, and which for example."""
    from orchestrator.cli.audit import format_text

    found: Audit = judge([attempt("a", {(0, 0): [0, 1, 1], (0, 1): [3, 5]})])
    assert format_text(found).splitlines() == [
        "Epoch 0: 5 samples, 2 missing, 1 doubled (complete; such as 1, 2, 4).",
        "1 attempt. Samples are missing or doubled.",
    ]
