"""The checkpoint file: what goes in is plain, and no file, however bad, runs code or is taken for good."""

from __future__ import annotations

import argparse
import datetime
import enum
import io
import os
import pickle
import zipfile
from collections import Counter, OrderedDict, defaultdict, namedtuple
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from modules.checkpoint import CheckpointError, plain, read

Point = namedtuple("Point", "x y")


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Tagged(torch.Tensor):
    """A tensor class of somebody's own."""


class Bomb:
    """Makes a directory when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def made_plain(value: Any) -> tuple[Any, list[str]]:
    dropped: list[str] = []
    return plain(value, "top", dropped), dropped


def saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


GOOD = saved({"state_dict": {"weight": torch.arange(300.0)}, "epoch": 3, "notes": ["a", {"b": (1, None)}]})

PLAIN = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False),
        st.text(),
        st.binary(min_size=1),
        st.complex_numbers(allow_nan=False),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.one_of(st.text(max_size=3), st.integers()), inner, max_size=3),
    ),
    max_leaves=10,
)


@given(PLAIN)
def test_plain_values_stay_and_can_be_loaded(value: Any) -> None:
    """What is plain is unchanged, types included, and comes back from a file."""
    kept, dropped = made_plain(value)
    assert repr(kept) == repr(value)
    assert dropped == []
    loaded = torch.load(io.BytesIO(saved(kept)), weights_only=True)
    assert repr(loaded) == repr(value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Colour.RED, "red"),
        (Level.HIGH, 3),
        ({Colour.RED: 1}, {"red": 1}),
        (PurePosixPath("/data/x"), "/data/x"),
        (np.float64(0.5), 0.5),
        (np.float16(0.5), 0.5),
        (np.int64(4), 4),
        (np.bool_(True), True),
        (np.str_("x"), "x"),
        (np.complex64(1j), 1j),
        (np.array(7), 7),
        (np.array(["a", "b"]), ["a", "b"]),
        (b"", bytearray()),
        ({3}, [3]),
        (frozenset({3}), [3]),
        (Point(1, 2), (1, 2)),
        (Counter("aab"), {"a": 2, "b": 1}),
        (defaultdict(list, x=[1]), {"x": [1]}),
        (OrderedDict(b=1, a=2), OrderedDict(b=1, a=2)),
        (torch.Size([2, 3]), (2, 3)),
        (torch.float16, torch.float16),
        (torch.device("cpu"), torch.device("cpu")),
        ({(1, "a"): 2}, {(1, "a"): 2}),
    ],
)
def test_other_values_become_plain(value: Any, expected: Any) -> None:
    """Enums, paths, NumPy's values and special containers become what a file may hold."""
    kept, dropped = made_plain(value)
    assert (kept, type(kept)) == (expected, type(expected))
    assert dropped == []
    assert torch.load(io.BytesIO(saved(kept)), weights_only=True) == expected


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3),
        np.arange(6)[::-2],
        np.arange(6, dtype=np.uint16),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.broadcast_to(np.float32(1), (3,)),  # cannot be written to
    ],
)
def test_arrays_become_tensors_of_their_own(array: Any) -> None:
    """Whatever its layout, an array becomes a tensor of equal values that shares no memory with it."""
    kept, dropped = made_plain(array)
    assert dropped == []
    assert type(kept) is torch.Tensor
    assert np.array_equal(kept.numpy(), array)
    assert not np.shares_memory(kept.numpy(), array)


def test_tensors_lose_what_is_not_data() -> None:
    """Parameters, and tensors of a class of one's own, become plain tensors without history."""
    for tensor in (
        nn.Parameter(torch.ones(2)),
        torch.ones(2).as_subclass(Tagged),
        torch.ones(2) * nn.Parameter(torch.ones(2)),
    ):
        kept, dropped = made_plain(tensor)
        assert (type(kept), kept.requires_grad, kept.tolist(), dropped) == (torch.Tensor, False, [1, 1], [])
        assert torch.load(io.BytesIO(saved(kept)), weights_only=True).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("value", "expected", "named"),
    [
        (print, None, ["top (builtin_function_or_method)"]),
        (nn.ReLU, None, ["top (type)"]),
        ([1, nn.ReLU()], [1, None], ["top[1] (ReLU)"]),
        ({"a": {"b": [argparse.Namespace(c=1)]}}, {"a": {"b": [None]}}, ["top.a.b[0] (Namespace)"]),
        (datetime.date(2020, 1, 1), None, ["top (date)"]),
        (np.datetime64("2020-01-01"), None, ["top (datetime64)"]),
        (np.longdouble(1), None, ["top (longdouble)"]),
        (np.array([object()]), [None], ["top[0] (object)"]),
        ({print: 1, "a": 2}, {"a": 2}, ["top key <built-in function print> (builtin_function_or_method)"]),
        ({frozenset({1}): 1}, {}, ["top key frozenset({1}) (frozenset)"]),
    ],
)
def test_what_cannot_be_kept_is_named(value: Any, expected: Any, named: list[str]) -> None:
    """Objects that a file could not hold safely become None, or lose their entry, and are named."""
    kept, dropped = made_plain(value)
    assert kept == expected
    assert dropped == named
    assert torch.load(io.BytesIO(saved(kept)), weights_only=True) == expected


def test_a_good_file_is_read(tmp_path: Path) -> None:
    """What was written is what is read, from a path of any kind."""
    path = tmp_path / "good.ckpt"
    path.write_bytes(GOOD)
    for place in (path, str(path)):
        content = read(place)
        assert torch.equal(content["state_dict"]["weight"], torch.arange(300.0))
        assert content["notes"] == ["a", {"b": (1, None)}]


def test_old_files_that_are_no_zip_are_read(tmp_path: Path) -> None:
    """torch's format from before 1.6 is still a checkpoint."""
    path = tmp_path / "old.ckpt"
    torch.save({"state_dict": {"w": torch.ones(2)}}, path, _use_new_zipfile_serialization=False)
    assert read(path)["state_dict"]["w"].tolist() == [1, 1]


def test_a_missing_file_is_not_a_damaged_one(tmp_path: Path) -> None:
    """A path without a file is a FileNotFoundError, so that nobody looks for an earlier checkpoint."""
    with pytest.raises(FileNotFoundError, match="There is no checkpoint"):
        read(tmp_path / "absent.ckpt")


def attempt(tmp_path: Path, data: bytes) -> dict[str, Any] | CheckpointError:
    path = tmp_path / "file.ckpt"
    path.write_bytes(data)
    try:
        return read(path)
    except CheckpointError as error:
        assert str(path) in str(error)
        return error


FUZZ = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(st.integers(0, len(GOOD) - 1))
def test_a_file_that_was_cut_off_is_refused(tmp_path: Path, length: int) -> None:
    """A file that ends early, at whatever byte, is refused by name."""
    assert isinstance(attempt(tmp_path, GOOD[:length]), CheckpointError)


@FUZZ
@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_a_damaged_byte_never_changes_what_is_read(tmp_path: Path, place: int, change: int) -> None:
    """With any byte changed, the file is refused, or the byte did not matter."""
    damaged = bytearray(GOOD)
    damaged[place] ^= change
    content = attempt(tmp_path, bytes(damaged))
    if not isinstance(content, CheckpointError):
        assert torch.equal(content["state_dict"]["weight"], torch.arange(300.0))
        assert (content["epoch"], content["notes"]) == (3, ["a", {"b": (1, None)}])


def test_a_damaged_weight_is_noticed(tmp_path: Path) -> None:
    """A changed byte inside a tensor is noticed by its checksum; the message says to take another file."""
    place = GOOD.index(torch.arange(300.0).numpy().tobytes()) + 500
    damaged = bytearray(GOOD)
    damaged[place] ^= 1
    error = attempt(tmp_path, bytes(damaged))
    assert "is damaged: the checksum of" in str(error)
    assert "Take an earlier one" in str(error)


@FUZZ
@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(tmp_path: Path, data: bytes) -> None:
    """Whatever bytes a file holds, an empty file included, the answer is a CheckpointError."""
    assert isinstance(attempt(tmp_path, data), CheckpointError)


@pytest.mark.parametrize("in_zip", [True, False], ids=["zip", "old format"])
def test_a_file_with_code_is_refused_without_running_it(in_zip: bool, tmp_path: Path) -> None:
    """A pickle that would run code is refused, names what it would call, and has not run it; the message does
    not advise to trust the file.
    """
    path, trace = tmp_path / "bomb.ckpt", tmp_path / "exploded"
    content = {"state_dict": {}, "bomb": Bomb(trace)}
    torch.save(content, path, _use_new_zipfile_serialization=in_zip)
    with pytest.raises(CheckpointError, match=r"is refused: it holds posix.mkdir") as caught:
        read(path)
    assert "weights_only" not in str(caught.value)
    assert not trace.exists()


def test_a_bare_pickle_with_code_is_refused_without_running_it(tmp_path: Path) -> None:
    """A plain pickle file is no way around it either."""
    trace = tmp_path / "exploded"
    assert isinstance(attempt(tmp_path, pickle.dumps({"state_dict": Bomb(trace)})), CheckpointError)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("content", "held"),
    [
        ({"weight": torch.ones(1)}, r"it holds ['weight']"),
        ({3: 1, "a": 2}, r"it holds ['3', 'a']"),
        ([1, 2], "it holds a list"),
        ({"state_dict": None}, r"it holds ['state_dict']"),
    ],
)
def test_files_of_something_else_are_refused(content: Any, held: str, tmp_path: Path) -> None:
    """A file that torch can read, but which holds no module's weights, is refused with what it holds."""
    error = attempt(tmp_path, saved(content))
    assert "is not a checkpoint of a module" in str(error)
    assert held in str(error)


def test_other_archives_are_refused(tmp_path: Path) -> None:
    """A zip file that is not torch's is refused."""
    path = tmp_path / "other.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        read(path)


def test_a_directory_is_refused(tmp_path: Path) -> None:
    """A directory is not a checkpoint."""
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        read(tmp_path)
