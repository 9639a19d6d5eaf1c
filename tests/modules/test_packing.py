"""Documents packed into rows of one length: each token once, rows that say where documents are."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modules.data_error import DataError
from modules.packing import PackedTokens

DOCUMENTS = st.lists(st.lists(st.integers(1, 9), max_size=8), min_size=1, max_size=20).filter(any)


def unpacked(data: PackedTokens) -> list[list[int]]:
    """The pieces of documents in all rows, in order; checks their positions."""
    found = []
    for row in range(len(data)):
        item = data[row]
        for number in range(int(item["documents"].max()) + 1):
            inside = item["documents"] == number
            found.append(item["tokens"][inside].tolist())
            assert item["positions"][inside].tolist() == list(range(int(inside.sum())))
        assert (item["tokens"][item["documents"] < 0] == 0).all()
    return found


@given(documents=DOCUMENTS, length=st.integers(1, 12))
def test_a_stream_is_cut_at_row_ends(documents: list[list[int]], length: int) -> None:
    """Without `whole`, rows are the documents one after the other, and only the last is padded."""
    data = PackedTokens(documents, length)
    tokens = [token for document in documents for token in document]
    assert [token for piece in unpacked(data) for token in piece] == tokens
    assert len(data) == -(-len(tokens) // length)
    assert data.filled == len(tokens) / (len(data) * length)


@given(documents=DOCUMENTS, room=st.integers(9, 20))
def test_whole_documents_stay_whole(documents: list[list[int]], room: int) -> None:
    """With `whole`, each document is in one row, once, with its separator, and few rows are needed."""
    data = PackedTokens(documents, room, whole=True, separator=77)
    expected = sorted([*document, 77] for document in documents)
    assert sorted(unpacked(data)) == expected
    fewest = -(-sum(map(len, expected)) // room)
    assert len(data) <= max(fewest * 2, 1)


def test_arrow_lists() -> None:
    """An Arrow column of lists gives what lists give, also in chunks and slices."""
    documents = [[1, 2], [3], [], [4, 5, 6]]
    expected = PackedTokens(documents, 4)
    for column in (
        pa.array(documents, pa.list_(pa.int32())),
        pa.chunked_array([documents[:2], documents[2:]]),
        pa.array([[9], *documents]).slice(1),
    ):
        found = PackedTokens(column, 4)
        for name, rows in found.take([0, 1]).items():
            assert torch.equal(rows, expected.take([0, 1])[name])


def test_rows_are_shuffled_like_any_others() -> None:
    """A shuffled loader has each row once, and rows of other documents are other data."""
    data = PackedTokens([list(range(100))], 7)
    rows = torch.cat([batch["tokens"] for batch in data.loader(4, shuffle=True, seed=1)])
    assert sorted(rows[:, 0].tolist()) == list(range(0, 100, 7))
    assert data.fingerprint != PackedTokens([list(range(1, 101))], 7).fingerprint


@pytest.mark.parametrize(
    ("documents", "arguments", "message"),
    [
        ([[1]], {"length": 0}, "not a number of tokens"),
        ([[]], {"length": 2}, "there is no token"),
        ([[1.5]], {"length": 2}, "values of type float64"),
        ([[1], [1, 2, 3]], {"length": 2, "whole": True}, "Document 1 has 3 tokens"),
        (pa.array([[1], None]), {"length": 2}, "has 1 nulls"),
    ],
)
def test_what_cannot_be_packed(documents: Any, arguments: dict[str, Any], message: str) -> None:
    """Documents without tokens, of other values, or too long to stay whole are refused."""
    with pytest.raises(DataError, match=message):
        PackedTokens(documents, **arguments)
