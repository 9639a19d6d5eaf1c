"""Text as training data for language models: characters or bytes as numbers, cut into rows of one length.

A `Vocabulary` numbers the characters of a text, or takes its UTF-8 bytes as they are. `TextDataset` gives
rows of `length` tokens, and as targets the tokens that follow each. It holds the text once, one number per
token; rows are cut when they are taken. Fails on characters that the vocabulary lacks, and on texts that are
too short.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from modules import rng
from modules.data_error import DataError
from modules.permutation import Ids
from modules.row_data import Batch, RowData


class Vocabulary:
    """Numbers for characters; plain data, so it can be kept as a hyperparameter (`characters`).

    Args:
        characters: All that may occur, each once; its place is its number. None stands for the 256 bytes of
            UTF-8.

    >>> letters = Vocabulary.of("banana")
    >>> letters.encode("nab").tolist(), letters.decode([1, 0])
    ([2, 0, 1], 'ba')
    >>> len(Vocabulary()), Vocabulary().decode(Vocabulary().encode("é"))
    (256, 'é')
    """

    def __init__(self, characters: str | None = None) -> None:
        if characters is not None and len(set(characters)) < len(characters):
            raise DataError(f"Vocabulary(characters={characters!r}) has a character twice. Give each once.")
        self.characters = characters
        self._numbers = {} if characters is None else {item: place for place, item in enumerate(characters)}

    @classmethod
    def of(cls, text: str) -> Vocabulary:
        """Return the characters of `text` in the order of their code points."""
        return cls("".join(sorted(set(text))))

    def __len__(self) -> int:
        return 256 if self.characters is None else len(self.characters)

    def encode(self, text: str) -> Tensor:
        """Return the numbers of a text: uint8 of shape (bytes,), or int32 of shape (characters,).

        Raises:
            DataError: A character is not in the vocabulary.
        """
        if self.characters is None:
            return torch.from_numpy(np.frombuffer(text.encode(), np.uint8).copy())
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        known, places = np.unique(codes, return_inverse=True)
        strange = [chr(code) for code in known.tolist() if chr(code) not in self._numbers]
        if strange:
            raise DataError(
                f"The text has {strange[0]!r}, which is not among the {len(self)} characters of the "
                "vocabulary. Use Vocabulary.of() of all texts together, or bytes: Vocabulary()."
            )
        numbers = np.array([self._numbers[chr(code)] for code in known.tolist()], np.int32)
        return torch.from_numpy(numbers[places])

    def decode(self, numbers: Tensor | Sequence[int]) -> str:
        """Return the text of some numbers; bytes that are no UTF-8 become a replacement character."""
        listed: Iterable[int] = numbers.tolist() if isinstance(numbers, Tensor) else numbers
        if self.characters is None:
            return bytes(listed).decode(errors="replace")
        return "".join(self.characters[number] for number in listed)


class TextDataset(RowData):
    """Rows of a text and what follows them: ``inputs`` and ``targets``, int64 of shape (rows, length).

    Args:
        text: The text.
        length: Tokens of a row.
        vocabulary: How the text becomes numbers; None takes the characters that it has.
        stride: Tokens from the start of a row to that of the next. None takes `length`, so that each token is
            an input once; 1 gives every row there is.

    Attributes:
        vocabulary: As given, or that of the text.

    Raises:
        DataError: The text has fewer than ``length + 1`` tokens, or a number is not positive.
    """

    def __init__(
        self, text: str, length: int, *, vocabulary: Vocabulary | None = None, stride: int | None = None
    ) -> None:
        for name, value in (("length", length), ("stride", 1 if stride is None else stride)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise DataError(
                    f"TextDataset({name}={value!r}): not a number of tokens. Use an int of at least 1."
                )
        self.length = length
        self.stride = length if stride is None else stride
        self.vocabulary = vocabulary or Vocabulary.of(text)
        self._tokens = self.vocabulary.encode(text)
        if len(self._tokens) <= length:
            raise DataError(
                f"TextDataset(length={length}) needs {length + 1} tokens, and the text has "
                f"{len(self._tokens)}. Use a smaller length or more text."
            )
        self._rows = self._tokens.unfold(0, length + 1, self.stride)
        self._identity = f"{rng.fold(text)} {length} {self.stride} {self.vocabulary.characters}"

    @classmethod
    def from_files(
        cls,
        paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        length: int,
        *,
        vocabulary: Vocabulary | None = None,
        stride: int | None = None,
    ) -> TextDataset:
        """Return a data set of the text of UTF-8 files, one after the other; arguments as of the class."""
        several = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
        texts = []
        for path in several:
            try:
                texts.append(Path(path).read_text(encoding="utf-8"))
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"{path} cannot be read as UTF-8 text: {error}. Leave it out.") from error
        return cls("".join(texts), length, vocabulary=vocabulary, stride=stride)

    def __len__(self) -> int:
        return len(self._rows)

    def identity(self) -> str:
        """Return what tells this text from others."""
        return self._identity

    def take_rows(self, ids: Ids) -> Batch:
        """Return the rows `ids`."""
        rows = self._rows[torch.from_numpy(ids)].long()
        return {"inputs": rows[:, :-1].contiguous(), "targets": rows[:, 1:].contiguous()}

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_rows"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._rows = self._tokens.unfold(0, self.length + 1, self.stride)
