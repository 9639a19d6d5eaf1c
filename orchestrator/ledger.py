"""Writes down which samples each batch of training was made of, so that it can be proved afterwards.

One file for each attempt (a call of fit) and rank, of one JSON line for each batch, which is in the file
before the batch is used: a process that is killed has written what it used. The first line says where the
attempt began and which one it went on from, so `orchestrator.ledger_audit` knows which lines count: a batch
behind the checkpoint that a later attempt began from does not, and one that was read again after a loss
counts once. Data whose samples have no numbers is not written down, and that is said.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from typing import Any

from modules.loader import RankLoader
from orchestrator.feed import Feed
from orchestrator.ledger_audit import FOLDER


class Ledger:
    """One rank's ledger of one attempt.

    Args:
        root: The run's directory.
        attempt: Names the attempt; alike on all ranks.
        rank: This rank.
        world_size: Ranks.
        joins: The rank takes the place of one that was lost.
        say: Tells the user something.

    Attributes:
        parent: The attempt in which the checkpoint was written that this one goes on from, or None.
    """

    def __init__(
        self, root: str, attempt: str, rank: int, world_size: int, joins: bool, say: Callable[[str], None]
    ) -> None:
        self.attempt = attempt
        self.parent: str | None = None
        self._path = os.path.join(root, FOLDER, f"{attempt}-rank-{rank:05d}.jsonl")
        self._rank, self._world_size, self._joins = rank, world_size, joins
        self._say = say
        self._file: int | None = None
        self._written = (-1, -1)

    def watch(self, feed: Feed) -> None:
        """Write down each batch that `feed` is asked for from here on."""
        loader = feed.loader
        if not isinstance(loader, RankLoader) or not loader.has_numbers:
            self._say(
                "Trainer(ledger=True): the samples of this training data have no numbers, so none are "
                "written down. Use one DataLoader over a map-style data set."
            )
            return
        notes = loader.note_batches()
        advance, start = feed.advance, feed.start
        first = 0

        def starting(epoch: int, skip: int = 0, *rest: Any, **others: Any) -> None:
            nonlocal first
            first = loader.first_note(skip)
            start(epoch, skip, *rest, **others)

        def noting() -> bool:
            if not advance():
                return False
            if feed.has_batch:
                self._note(feed, notes, first)
            return True

        feed.__dict__.update(start=starting, advance=noting)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, so that a later attempt knows which one it goes on from."""
        return {"attempt": self.attempt}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what the checkpoint keeps that this attempt goes on from."""
        self.parent = state.get("attempt")

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _note(self, feed: Feed, notes: list[list[Any]], first: int) -> None:
        epoch, index = feed.epoch, feed.position - 1
        if self._written >= (epoch, index):
            return  # read again after a loss
        if self._file is None:
            self._open(feed, epoch, index)
        line: dict[str, Any] = {"e": epoch, "b": index, "ids": [int(item) for item in notes[index - first]]}
        if feed.is_last:
            line["last"] = True
        self._write(line)
        self._written = (epoch, index)

    def _open(self, feed: Feed, epoch: int, index: int) -> None:
        os.makedirs(os.path.dirname(self._path), exist_ok=True)
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        plan = feed.loader.plan
        dataset = getattr(feed.loader.source, "dataset", None)
        self._write(
            {
                "attempt": self.attempt,
                "parent": self.parent,
                "time": time.time(),
                "rank": self._rank,
                "world_size": self._world_size,
                "joins": self._joins,
                "start": [epoch, index],
                "samples": None if plan is None else plan.samples_before(feed.num_batches or 0),
                "length": None if dataset is None else len(dataset),
            }
        )

    def _write(self, line: dict[str, Any]) -> None:
        assert self._file is not None
        data = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        while data:
            data = data[os.write(self._file, data) :]
