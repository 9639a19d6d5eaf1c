"""Text as rows of numbers."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from modules.data_error import DataError
from modules.text import TextDataset, Vocabulary


@pytest.mark.parametrize("vocabulary", [Vocabulary.of("größer\U0001f600 ab"), Vocabulary()])
def test_encoding_and_decoding_are_inverse(vocabulary: Vocabulary) -> None:
    """A text comes back from its numbers, as characters and as bytes."""
    text = "aber größer \U0001f600"
    numbers = vocabulary.encode(text)
    assert vocabulary.decode(numbers) == vocabulary.decode(numbers.tolist()) == text
    assert int(numbers.max()) < len(vocabulary)


def test_unknown_characters() -> None:
    """A character that the vocabulary lacks is named, and none may be there twice."""
    with pytest.raises(DataError, match="has 'z', which is not among the 2 characters"):
        Vocabulary("ab").encode("abz")
    with pytest.raises(DataError, match="a character twice"):
        Vocabulary("aba")


def test_targets_are_what_follows() -> None:
    """Each row's targets are its inputs one token later, and each token is an input once."""
    text = "the quick brown fox"
    data = TextDataset(text, 4)
    batch = next(iter(data.loader(10)))
    assert batch["inputs"].shape == batch["targets"].shape == (4, 4)
    assert data.vocabulary.decode(batch["inputs"].flatten()) == text[:16]
    assert data.vocabulary.decode(batch["targets"].flatten()) == text[1:17]
    assert len(TextDataset(text, 4, stride=1)) == len(text) - 4


def test_files(tmp_path: Path) -> None:
    """The text of several files is read one after the other, and a file that is no text is named."""
    (tmp_path / "a.txt").write_text("ab" * 4)
    (tmp_path / "b.txt").write_text("cd" * 4)
    data = TextDataset.from_files([tmp_path / "a.txt", tmp_path / "b.txt"], 3)
    assert len(data) == 5
    assert data.vocabulary.characters == "abcd"
    assert len(TextDataset.from_files(tmp_path / "a.txt", 3)) == 2
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"c\.txt cannot be read as UTF-8"):
        TextDataset.from_files(tmp_path / "c.txt", 3)


def test_a_text_travels() -> None:
    """A pickled data set gives the same rows and is known to be the same; another text is not."""
    data = TextDataset("hello world", 3)
    again = pickle.loads(pickle.dumps(data))
    assert again[1]["inputs"].tolist() == data[1]["inputs"].tolist()
    assert again.fingerprint == data.fingerprint != TextDataset("hello worlt", 3).fingerprint


@pytest.mark.parametrize("arguments", [{"length": 0}, {"length": 2, "stride": 0}, {"length": 5}])
def test_sizes_are_checked(arguments: dict[str, Any]) -> None:
    """Lengths and strides that give no row are refused."""
    with pytest.raises(DataError, match="TextDataset"):
        TextDataset("hello", **arguments)
