"""Reading past objects of classes: the rest is had, nothing runs, and what is left out is named."""

from __future__ import annotations

import argparse
import io
import pathlib
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from modules.checkpoint import CheckpointError, read


class Custom:
    """Would leave a trace if anything of it ran."""

    ran: list[str] = []  # noqa: RUF012 - shared on purpose

    def __init__(self, value: int) -> None:
        self.value = value

    def __setstate__(self, state: dict[str, Any]) -> None:
        Custom.ran.append("setstate")


def leave_a_trace(text: str) -> str:
    """What a file may try to call."""
    Custom.ran.append(text)
    return text


class Chatty:
    """Calls a function when it is loaded."""

    def __reduce__(self) -> Any:
        return leave_a_trace, ("reduce",)


class Table(dict[str, int]):
    """A dictionary of a kind of its own."""


def write(path: Path, content: Any) -> Path:
    """Save `content` as torch does."""
    torch.save(content, path)
    return path


def test_objects_of_classes_are_left_out_and_named(tmp_path: Path) -> None:
    """Entries with objects, classes and calls are gone, the others are there, and nothing of them has run."""
    content = {
        "state_dict": {"weight": torch.ones(2)},
        "hyper_parameters": {"rate": 0.1, "custom": Custom(3), "kind": Custom, "layers": [1, Custom(2)]},
        "callbacks": {Custom: {"best": 1}, "Keeper": Chatty()},
    }
    path = write(tmp_path / "a.ckpt", content)
    Custom.ran.clear()
    with pytest.warns(UserWarning, match="left out") as told:
        found = read(path)
    assert found["hyper_parameters"] == {"rate": 0.1, "layers": [1, None]}
    assert found["callbacks"] == {}
    assert torch.equal(found["state_dict"]["weight"], torch.ones(2))
    text = str(told[0].message)
    assert "hyper_parameters.custom (" in text
    assert "Custom itself)" in text
    assert "hyper_parameters.layers[1] (" in text
    assert "callbacks.Keeper (" in text
    assert Custom.ran == []


def test_values_are_read_as_they_are(tmp_path: Path) -> None:
    """Namespaces, paths and NumPy's numbers hold nothing but values, so they are made, without a warning."""
    values = {"args": argparse.Namespace(rate=0.1), "where": pathlib.Path("a/b"), "n": numpy.float32(0.5)}
    found = read(write(tmp_path / "a.ckpt", {"state_dict": {}, **values}))
    assert found["args"] == values["args"]
    assert str(found["where"]) == "a/b"
    assert found["n"] == 0.5


def test_weights_are_never_left_out(tmp_path: Path) -> None:
    """An object among the weights refuses the file."""
    with pytest.raises(CheckpointError, match=r"its weights hold state_dict.extra \(.*Custom\)"):
        read(write(tmp_path / "a.ckpt", {"state_dict": {"extra": Custom(1)}}))


def test_calls_into_the_system_are_refused(tmp_path: Path) -> None:
    """A file that would call the operating system is not read at all."""

    class Bomb:
        def __reduce__(self) -> Any:
            import os

            return os.mkdir, (str(tmp_path / "made"),)

    with pytest.raises(CheckpointError, match=r"is refused: it holds posix\.mkdir"):
        read(write(tmp_path / "a.ckpt", {"state_dict": {}, "bomb": Bomb()}))
    assert not (tmp_path / "made").exists()


def test_containers_of_other_kinds_are_refused(tmp_path: Path) -> None:
    """What nothing can stand in for refuses the file, and the message does not advise to trust it."""
    with pytest.raises(CheckpointError, match="only running code could make") as caught:
        read(write(tmp_path / "a.ckpt", {"state_dict": {}, "table": Table(a=1)}))
    assert "weights_only" not in str(caught.value)


def test_an_open_file_is_read(tmp_path: Path) -> None:
    """Instead of a path an open file can be given, with objects in it too; a damaged one is named as such."""
    buffer = io.BytesIO()
    torch.save({"state_dict": {}, "a": 1, "b": Custom(1)}, buffer)
    with pytest.warns(UserWarning, match=r"The given BytesIO holds .*: b \("):
        assert read(buffer) == {"state_dict": {}, "a": 1}
    with pytest.raises(CheckpointError, match="The given BytesIO cannot be read"):
        read(io.BytesIO(b"nothing"))
