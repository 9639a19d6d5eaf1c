"""Writes down which samples each batch of training was made of, so that it can be proved afterwards.

One file for each attempt (a call of fit) and process, of one JSON line for each batch, which is in the file
before the batch is used: a process that is killed has written what it used. The first line says where the
attempt began and which one it went on from, so `orchestrator.ledger_audit` knows which lines count: a batch
behind the checkpoint that a later attempt began from does not, and one that was read again after a loss
counts once, whoever read it. Where logical ranks move between processes, each line says whose batch it is.
Data whose samples have no numbers is not written down, and that is said.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from modules.keyed_loader import KeyedLoader
from modules.loader import RankLoader
from orchestrator.feed import Feed
from orchestrator.ledger_audit import FOLDER, Place
from orchestrator.logical_feed import LogicalFeed


class Ledger:
    """One process's ledger of one attempt.

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
        name = f"{attempt}-rank-{rank:05d}-{uuid.uuid4().hex[:8]}.jsonl"  # a rank may be another's later
        self._path = os.path.join(root, FOLDER, name)
        self._rank, self._world_size, self._joins = rank, world_size, joins
        self._say = say
        self._file: int | None = None
        self._written: dict[int, Place] = {}

    def watch(self, feed: Feed) -> None:
        """Write down each batch that `feed` is asked for from here on."""
        loader = feed.loader
        if not isinstance(loader, RankLoader) or not loader.has_numbers:
            self._tell_that_nothing_is_written()
            return
        notes = loader.note_batches()

        def noting(advance: Callable[[], bool]) -> bool:
            if not advance():
                return False
            place = feed.epoch, feed.position - 1
            if feed.has_batch and self._is_new(self._rank, place):
                index = place[1] - loader.first_note(feed.began_at)
                ids, notes[index] = notes[index], []  # so that an epoch's need not be held
                self._note(feed, {}, place, ids, is_last=feed.is_last)
            return True

        feed.look_on(noting)

    def watch_logical(self, feed: LogicalFeed) -> None:
        """Write down each batch of each logical rank that `feed` reads from here on."""

        def note(rank: int, index: int, ids: list[Any]) -> None:
            place = feed.epoch, index
            if self._is_new(rank, place):
                self._note(feed, {"r": rank}, place, ids, is_last=index + 1 == feed.num_batches)

        if not feed.note_reads(note):
            self._tell_that_nothing_is_written()

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

    def _tell_that_nothing_is_written(self) -> None:
        self._say(
            "Trainer(ledger=True): the samples of this training data have no numbers, so none are written "
            "down. Use one DataLoader over a map-style data set."
        )

    def _is_new(self, rank: int, place: Place) -> bool:
        """Whether a batch was not read before; after a loss some are read again."""
        if self._written.get(rank, (-1, -1)) >= place:
            return False
        self._written[rank] = place
        return True

    def _note(
        self, feed: Feed, whose: dict[str, int], place: Place, ids: Sequence[Any], *, is_last: bool
    ) -> None:
        if self._file is None:
            self._open(feed, *place)
        line: dict[str, Any] = {"e": place[0], "b": place[1], **whose, "ids": [int(item) for item in ids]}
        if is_last:
            line["last"] = True
        self._write(line)

    def _open(self, feed: Feed, epoch: int, index: int) -> None:
        os.makedirs(os.path.dirname(self._path), exist_ok=True)
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        plan, source = feed.loader.plan, feed.loader.source
        dataset = getattr(source, "dataset", None)
        length = source.rows if isinstance(source, KeyedLoader) else None if dataset is None else len(dataset)
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
                "length": length,
            }
        )

    def _write(self, line: dict[str, Any]) -> None:
        assert self._file is not None
        data = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        while data:
            data = data[os.write(self._file, data) :]
