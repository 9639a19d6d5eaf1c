"""A directory of parts is one checkpoint: whole for any reader, or refused with what is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from modules.checkpoint import CheckpointError, read, shards
from modules.checkpoint.format import check
from modules.checkpoint.shards import CONTENT, MANIFEST, Parts, describe, rank_file
from orchestrator.checkpoint.writer import write

WEIGHT = torch.arange(35.0).reshape(5, 7)


def dealt(tensor: Tensor, rank: int, world_size: int) -> tuple[Tensor, tuple[int, ...], list[int]]:
    """A rank's rows, as torch.chunk cuts them."""
    step = -(-len(tensor) // world_size)
    begin = min(len(tensor), rank * step)
    return tensor[begin : begin + step], tuple(tensor.shape), [begin, *[0] * (tensor.dim() - 1)]


def write_sharded(folder: Path, content: dict[str, Any], world_size: int) -> Path:
    """Write `content`, whose tensors of two dimensions are dealt by rows."""
    folder.mkdir()
    for rank in reversed(range(world_size)):
        parts = Parts()
        marked = parts.without(
            content,
            lambda item, rank=rank: dealt(item, rank, world_size) if item.dim() == 2 else None,  # type: ignore[misc]
        )
        write({"state_dict": {}, **parts.content()}, folder / rank_file(rank))
    write(marked, folder / CONTENT)
    names = [CONTENT, *map(rank_file, range(world_size))]
    (folder / MANIFEST).write_text(describe(str(folder), names))
    return folder


@given(rows=st.integers(0, 9), world_size=st.integers(1, 5))
def test_parts_become_the_whole(tmp_path_factory: pytest.TempPathFactory, rows: int, world_size: int) -> None:
    """However many ranks there were, and wherever in the content the tensors stand."""
    tensor = torch.randn(rows, 3)
    content = {
        "state_dict": {"weight": tensor, "scale": torch.ones(2)},
        "optimizer_states": [{"state": {0: {"exp_avg": tensor * 2, "step": torch.tensor(3.0)}}}],
        "notes": ["a", ("b", None)],
    }
    folder = write_sharded(tmp_path_factory.mktemp("s") / "x.ckpt", content, world_size)
    found = read(folder)
    assert torch.equal(found["state_dict"]["weight"], tensor)
    assert torch.equal(found["optimizer_states"][0]["state"][0]["exp_avg"], tensor * 2)
    assert torch.equal(found["state_dict"]["scale"], torch.ones(2))
    assert found["notes"] == ["a", ("b", None)]


def test_tensors_can_be_put_together_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one reader needs them so, nothing is put together before it is asked for, or kept behind."""
    made: list[int] = []
    put_together = shards._put_together
    monkeypatch.setattr(shards, "_put_together", lambda parts: (made.append(1), put_together(parts))[1])
    content = {
        "state_dict": {"weight": WEIGHT},
        "optimizer_states": [{"state": {0: {"exp_avg": WEIGHT + 1, "step": torch.tensor(3.0)}}}],
    }
    folder = write_sharded(tmp_path / "x.ckpt", content, 3)
    found = read(folder, later=frozenset({"optimizer_states"}))
    assert len(made) == 1 and torch.equal(found["state_dict"]["weight"], WEIGHT)
    entry = found["optimizer_states"][0]["state"][0]
    assert isinstance(entry["exp_avg"], shards.Dealt) and entry["step"] == 3
    first, second = entry["exp_avg"].whole(), entry["exp_avg"].whole()
    assert torch.equal(first, WEIGHT + 1) and first.data_ptr() != second.data_ptr()


def without_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def without_a_rank(folder: Path) -> None:
    (folder / rank_file(1)).unlink()


def cut_off(folder: Path) -> None:
    path = folder / rank_file(0)
    path.write_bytes(path.read_bytes()[:-7])


def flipped(folder: Path) -> None:
    path = folder / rank_file(0)
    data = bytearray(path.read_bytes())
    data[data.find(WEIGHT[:1].numpy().tobytes()) + 5] ^= 1
    path.write_bytes(data)


def of_another_save(folder: Path) -> None:
    other = write_sharded(folder.with_name("other.ckpt"), {"state_dict": {"weight": WEIGHT + 1}}, 2)
    shutil.copy(other / rank_file(0), folder / rank_file(0))


def changed_manifest(folder: Path) -> None:
    body = json.loads((folder / MANIFEST).read_text())
    body["files"].pop()
    (folder / MANIFEST).write_text(json.dumps(body))


def of_a_later_version(folder: Path) -> None:
    from modules.checkpoint import shards

    body = {"format": 2, "files": []}
    (folder / MANIFEST).write_text(json.dumps({**body, "checksum": shards._checksum(body)}))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (without_manifest, "no manifest.json, which is written last"),
        (without_a_rank, "lacks rank-00001.ckpt"),
        (cut_off, "bytes instead of"),
        (flipped, r"checksum of .*data/0 is wrong"),
        (of_another_save, "its seal is another"),
        (changed_manifest, "its checksum is wrong"),
        (of_a_later_version, "is of format 2"),
    ],
)
def test_damage_is_named(tmp_path: Path, damage: Callable[[Path], None], reason: str) -> None:
    """What is missing, cut off, flipped, mixed up or too new is refused with the reason."""
    folder = write_sharded(tmp_path / "x.ckpt", {"state_dict": {"weight": WEIGHT}}, 2)
    damage(folder)
    with pytest.raises(CheckpointError, match=reason):
        read(folder)


def test_a_check_reads_no_tensor_and_finds_the_same(tmp_path: Path) -> None:
    """It says whether training can go on, and refuses what reading refuses."""
    weights = {"state_dict": {"weight": WEIGHT}}
    assert not check(str(write_sharded(tmp_path / "a.ckpt", weights, 2)))
    folder = write_sharded(tmp_path / "b.ckpt", {**weights, "optimizer_states": [{"state": {0: WEIGHT}}]}, 3)
    assert check(str(folder))
    flipped(folder)
    with pytest.raises(CheckpointError, match="checksum"):
        check(str(folder))
