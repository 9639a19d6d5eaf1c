"""Judges a run by its ledger: was each sample used exactly once in each epoch, through failures?

Reads what `orchestrator.ledger` wrote. Of the attempts that went on from each other, each counts up to where
the next one began: what it had done beyond that was lost with it. Within an attempt a batch counts once,
however often it was read. A last line that a kill has cut off is no batch. A folder without a ledger is a
`FileNotFoundError`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = "ledger"
"""Where the ledger lies in the run's directory."""
Place = tuple[int, int]
"""An epoch, and a number of batches of it."""


@dataclass(slots=True, kw_only=True)
class Attempt:
    """What all ranks wrote in one call of fit.

    Attributes:
        name: The attempt.
        parent: The one it went on from, or None.
        began: When, in seconds since 1970.
        start: The place of its first batch.
        samples: Of an epoch, over all ranks, as planned; None where that was not known.
        length: Of the data set; None where that was not known.
        batches: The samples of each batch, by its place and the rank that used it, a logical one where ranks
            are.
        ends: Epochs whose last batch was used.
    """

    name: str
    parent: str | None = None
    began: float = 0.0
    start: Place = (0, 0)
    samples: int | None = None
    length: int | None = None
    batches: dict[tuple[Place, int], list[int]] = field(default_factory=dict)
    ends: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochAudit:
    """What came of one epoch.

    Attributes:
        epoch: From 0.
        is_complete: Its last batch was used.
        used: Samples, each as often as it was used.
        expected: Samples of a complete epoch; None where that is not known.
        doubled: Uses beyond the first, of all samples.
        missing: Samples that were not used, of a complete epoch that takes all of the data; else those by
            which it falls short of `expected`.
        examples: A few ids that are doubled or missing.
    """

    epoch: int
    is_complete: bool
    used: int
    expected: int | None
    doubled: int
    missing: int
    examples: tuple[int, ...] = ()

    @property
    def is_right(self) -> bool:
        """Whether no sample was used twice, and none is missing."""
        return not (self.doubled or self.missing)


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What came of a run.

    Attributes:
        attempts: Calls of fit that went on from each other, in order.
        epochs: Each epoch that was begun.
        discarded: Batches that were used and whose effect was lost with the process, and so do not count.
    """

    attempts: tuple[str, ...]
    epochs: tuple[EpochAudit, ...]
    discarded: int

    @property
    def is_right(self) -> bool:
        """Whether all epochs are."""
        return all(epoch.is_right for epoch in self.epochs)


def audit(folder: str | Path) -> Audit:
    """Return what came of the newest run whose ledger is in `folder`, or in ``ledger`` in it.

    Raises:
        FileNotFoundError: There is no ledger.
    """
    attempts = read(folder)
    chain = chain_of(attempts)
    return judge(chain)


def read(folder: str | Path) -> dict[str, Attempt]:
    """Return all attempts in `folder`, by name."""
    found = Path(folder)
    if (found / FOLDER).is_dir():
        found = found / FOLDER
    files = sorted(found.glob("*-rank-*.jsonl"))
    attempts: dict[str, Attempt] = {}
    for file in files:
        with open(file, "rb") as lines:
            _take_file(attempts, lines)
    if not attempts:
        raise FileNotFoundError(
            f"There is no ledger in {folder}. Train with Trainer(ledger=True), and give its default_root_dir."
        )
    return attempts


def _take_file(attempts: dict[str, Attempt], lines: Iterable[bytes]) -> None:
    attempt, rank = None, 0
    for data in lines:
        if not data.endswith(b"\n"):
            continue  # cut off by a kill; a replacement goes on behind it
        try:
            line = json.loads(data)
        except ValueError:
            continue
        if "attempt" in line:
            attempt, rank = _take_header(attempts, line), line["rank"]
        elif attempt is not None:
            attempt.batches[(line["e"], line["b"]), line.get("r", rank)] = line["ids"]
            if line.get("last"):
                attempt.ends.add(line["e"])


def _take_header(attempts: dict[str, Attempt], line: Mapping[str, Any]) -> Attempt:
    attempt = attempts.setdefault(line["attempt"], Attempt(name=line["attempt"]))
    start = (line["start"][0], line["start"][1])
    if not line["joins"]:
        attempt.start = min(attempt.start, start) if attempt.began else start
        attempt.parent, attempt.began = line["parent"], attempt.began or line["time"]
        attempt.samples, attempt.length = line["samples"], line["length"]
    return attempt


def chain_of(attempts: Mapping[str, Attempt]) -> list[Attempt]:
    """Return the newest attempt and those that it came from, the first one first."""
    chain = [max(attempts.values(), key=lambda item: (item.began, item.name))]
    while chain[0].parent is not None and chain[0].parent in attempts:
        chain.insert(0, attempts[chain[0].parent])
    return chain


def judge(chain: Sequence[Attempt]) -> Audit:
    """Decide from the attempts of one run, in order; pure."""
    epochs: dict[int, list[list[int]]] = {}
    ends: set[int] = set()
    discarded = 0
    for index, attempt in enumerate(chain):
        until = chain[index + 1].start if index + 1 < len(chain) else None
        for (place, _), ids in attempt.batches.items():
            if until is not None and place >= until:
                discarded += 1
            else:
                epochs.setdefault(place[0], []).append(ids)
        ends |= {epoch for epoch in attempt.ends if until is None or epoch < until[0]}
    last = chain[-1]
    return Audit(
        attempts=tuple(attempt.name for attempt in chain),
        epochs=tuple(
            _judge_epoch(epoch, parts, epoch in ends, last.samples, last.length)
            for epoch, parts in sorted(epochs.items())
        ),
        discarded=discarded,
    )


def _judge_epoch(
    epoch: int, parts: Sequence[Sequence[int]], is_complete: bool, expected: int | None, length: int | None
) -> EpochAudit:
    ids = np.fromiter((item for part in parts for item in part), dtype=np.int64)
    found, counts = np.unique(ids, return_counts=True)
    doubled = found[counts > 1]
    lacking = np.empty(0, dtype=np.int64)
    missing = 0
    if is_complete and length is not None and expected == length:
        lacking = np.setdiff1d(np.arange(length), found, assume_unique=True)
        missing = len(lacking)
    elif is_complete and expected is not None:
        missing = max(0, expected - len(ids))
    return EpochAudit(
        epoch=epoch,
        is_complete=is_complete,
        used=len(ids),
        expected=expected,
        doubled=int(counts.sum() - len(found)),
        missing=missing,
        examples=tuple(int(item) for item in (*doubled[:3], *lacking[:3])),
    )
