"""A sealed file is recognised as damaged whatever bit of it is another."""

from __future__ import annotations

import random
import zipfile
from pathlib import Path

import pytest
import torch

from modules.checkpoint import CheckpointError, read
from modules.checkpoint.seal import damaged_part, read_seal, seal

CONTENT = {"state_dict": {"weight": torch.arange(300.0), "bias": torch.ones(3)}, "epoch": 3}


def sealed(path: Path) -> Path:
    """A small checkpoint with a seal."""
    torch.save(CONTENT, path)
    with open(path, "rb+", buffering=0) as file:
        seal(file)  # type: ignore[arg-type]
    return path


def is_recognised(path: Path) -> bool:
    """Whether reading refuses the file."""
    try:
        read(path)
    except CheckpointError:
        return True
    return False


def test_a_sealed_file_is_an_ordinary_one(tmp_path: Path) -> None:
    """torch, zip tools and we read it, memory-mapped too."""
    path = sealed(tmp_path / "a.ckpt")
    for mmap in (False, True):
        found = torch.load(path, weights_only=True, mmap=mmap)
        assert torch.equal(found["state_dict"]["weight"], CONTENT["state_dict"]["weight"])  # type: ignore[index]
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    assert damaged_part(path) is None
    assert read(path)["epoch"] == 3


def test_every_flipped_bit_is_recognised(tmp_path: Path) -> None:
    """A bit in tensors, names, padding, offsets, or the seal itself."""
    data = sealed(tmp_path / "a.ckpt").read_bytes()
    damaged = tmp_path / "b.ckpt"
    draw = random.Random(1)
    places = sorted({*draw.sample(range(len(data)), 300), *range(len(data) - 60, len(data)), 0, 1, 4, 26, 28})
    missed = []
    for place in places:
        flipped = bytearray(data)
        flipped[place] ^= 1 << draw.randrange(8)
        damaged.write_bytes(flipped)
        if not is_recognised(damaged):
            missed.append(place)
    assert missed == []


def test_every_cut_is_recognised(tmp_path: Path) -> None:
    """A file that ends early, or goes on behind its end."""
    data = sealed(tmp_path / "a.ckpt").read_bytes()
    damaged = tmp_path / "b.ckpt"
    for length in (0, 1, 3, 10, len(data) // 2, len(data) - 40, len(data) - 29, len(data) - 1):
        damaged.write_bytes(data[:length])
        assert is_recognised(damaged), length
    damaged.write_bytes(data + b"x")
    assert is_recognised(damaged)


def test_a_seal_stands_for_the_content(tmp_path: Path) -> None:
    """Files of other content have other seals; one without a seal is judged by its members."""
    first = sealed(tmp_path / "a.ckpt")
    other = tmp_path / "b.ckpt"
    torch.save({**CONTENT, "epoch": 4}, other)
    assert read_seal(other) is None
    assert damaged_part(other) is None
    with open(other, "rb+", buffering=0) as file:
        assert seal(file) == read_seal(other) != read_seal(first)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="has a comment already"):
            seal(file)  # type: ignore[arg-type]


def test_large_files_are_compared_by_several_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same verdict: the first of the damaged members."""
    monkeypatch.setattr("modules.checkpoint.seal._APART", 1)
    path = sealed(tmp_path / "a.ckpt")
    assert damaged_part(path, threads=3) is None
    data = bytearray(path.read_bytes())
    place = data.find(torch.arange(300.0).numpy().tobytes()[8:])
    data[place + 400] ^= 4
    path.write_bytes(data)
    assert str(damaged_part(path, threads=3)).endswith("data/0")
