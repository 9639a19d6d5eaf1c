"""Documents of any length in rows of one length, so that no token of a batch is wasted on padding.

Either documents follow on one another and are cut where a row ends, or they stay whole and are put together
so that rows fill up (best fit, the longest first). Which document is where follows from the documents alone,
so packed rows can be shuffled, shared among ranks and resumed like any others. Each token is in one row,
once; what is left of a row has document -1. Fails on documents that do not fit, and on tokens that are no
whole numbers.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from modules.data_error import DataError
from modules.permutation import Ids
from modules.row_data import Batch, RowData


class PackedTokens(RowData):
    """Rows: ``tokens`` (int64), ``documents`` and ``positions`` (int32), each of shape (rows, length).

    ``documents`` numbers the documents of a row from 0, for attention that stays inside one; ``positions``
    counts from the start of each document, or of its part in the row.

    Args:
        documents: Lists, arrays or tensors of token numbers, or an Arrow column of lists.
        length: Tokens of a row.
        separator: A token that is put behind each document.
        whole: Keep documents whole; else they are cut at the end of a row.
        padding: The token that fills what is left of a row.

    Raises:
        DataError: There are no tokens, they are no whole numbers, or a document that shall stay whole is
            longer than a row.
    """

    def __init__(
        self,
        documents: Any,
        length: int,
        *,
        separator: int | None = None,
        whole: bool = False,
        padding: int = 0,
    ) -> None:
        if isinstance(length, bool) or not isinstance(length, int) or length < 1:
            raise DataError(
                f"PackedTokens(length={length!r}): not a number of tokens. Use an int of at least 1."
            )
        tokens, lengths = _flattened(documents)
        if separator is not None:
            tokens, lengths = np.insert(tokens, np.cumsum(lengths), separator), lengths + 1
        if not len(tokens):
            raise DataError(
                "PackedTokens(documents=...): there is no token. Give at least one document with some."
            )
        numbers = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
        if whole:
            places, rows = _best_fit(lengths, length)
            starts = np.cumsum(lengths) - lengths
            target = np.arange(len(tokens)) + np.repeat(places - starts, lengths)
        else:
            rows, target = -(-len(tokens) // length), np.arange(len(tokens))
        packed = np.full(rows * length, padding, tokens.dtype)
        owners = np.full(rows * length, -1, np.int32)
        packed[target], owners[target] = tokens, numbers
        self.length = length
        self._tokens = torch.from_numpy(packed.reshape(rows, length))
        self._owners = torch.from_numpy(owners.reshape(rows, length))
        digest = hashlib.blake2b(packed.tobytes(), digest_size=8)
        digest.update(owners.tobytes())
        self._identity = f"{rows} x {length} {digest.hexdigest()}"

    def __len__(self) -> int:
        return len(self._tokens)

    def identity(self) -> str:
        """Return what tells these rows from others."""
        return self._identity

    @property
    def filled(self) -> float:
        """The share of places that have a token of a document."""
        return float((self._owners >= 0).double().mean())

    def take_rows(self, ids: Ids) -> Batch:
        """Return the rows `ids`."""
        index = torch.from_numpy(ids)
        owners = self._owners.index_select(0, index)
        begins = torch.ones_like(owners, dtype=torch.bool)
        begins[:, 1:] = owners[:, 1:] != owners[:, :-1]
        places = torch.arange(self.length, dtype=torch.int32).expand_as(owners)
        starts = torch.where(begins, places, torch.zeros_like(places)).cummax(1).values
        inside = owners >= 0
        documents = torch.where(inside, begins.cumsum(1, dtype=torch.int32) - 1, owners)
        positions = torch.where(inside, places - starts, torch.zeros_like(places))
        return {
            "tokens": self._tokens.index_select(0, index).long(),
            "documents": documents,
            "positions": positions,
        }


def _flattened(documents: Any) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return all tokens in a row, and the length of each document."""
    if hasattr(documents, "combine_chunks"):  # a chunked Arrow column
        documents = documents.combine_chunks()
    if hasattr(documents, "offsets"):
        if documents.null_count:
            raise DataError(f"PackedTokens(documents=...) has {documents.null_count} nulls. Leave them out.")
        tokens = documents.flatten().to_numpy(zero_copy_only=False)
        lengths = np.diff(documents.offsets.to_numpy())
    else:
        arrays = [np.asarray(item).reshape(-1) for item in documents]
        lengths = np.array([len(item) for item in arrays], np.int64)
        filled = [item for item in arrays if len(item)]
        tokens = np.concatenate(filled) if filled else np.empty(0, np.int64)
    if tokens.dtype.kind not in "iu":
        raise DataError(
            f"PackedTokens(documents=...) has values of type {tokens.dtype}. Give token numbers; text "
            "becomes numbers by a tokenizer, or by Vocabulary."
        )
    return tokens, lengths.astype(np.int64)


def _best_fit(lengths: Sequence[int] | NDArray[np.int64], room: int) -> tuple[NDArray[np.int64], int]:
    """Return where each document starts, counted over all rows of `room` tokens, and the number of rows.

    The longest document comes first, and each goes into the row that it leaves fullest (best fit decreasing,
    which needs at most 11/9 of the fewest rows possible, and one more).
    """
    sizes = np.asarray(lengths, np.int64)
    if len(sizes) and sizes.max() > room:
        number = int(sizes.argmax())
        raise DataError(
            f"Document {number} has {int(sizes[number])} tokens with its separator, and "
            f"PackedTokens(length={room}, whole=True) keeps documents whole. Use a greater length, or "
            "whole=False."
        )
    places = np.zeros(len(sizes), np.int64)
    free: list[int] = []  # the sizes of free places that some row has, in order
    by_free: dict[int, list[int]] = {}
    rows = 0
    for number in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[number])
        at = bisect.bisect_left(free, size)
        if at < len(free):
            left = free[at]
            row = by_free[left].pop()
            if not by_free[left]:
                del by_free[left]
                free.pop(at)
        else:
            row, left = rows, room
            rows += 1
        places[number] = row * room + room - left
        rest = left - size
        if rest:
            if rest not in by_free:
                by_free[rest] = []
                bisect.insort(free, rest)
            by_free[rest].append(row)
    return places, rows
