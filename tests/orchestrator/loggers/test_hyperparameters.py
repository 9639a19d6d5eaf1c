"""Hyperparameters as plain values, as a flat table and as YAML."""

from __future__ import annotations

import dataclasses
import enum
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import MisconfigurationError
from orchestrator.loggers.hyperparameters import as_mapping, flatten, to_plain, write_yaml


class Colour(enum.Enum):
    """Something that YAML does not know."""

    RED = 1


@dataclasses.dataclass
class Net:
    """Settings as a dataclass."""

    width: int
    names: tuple[str, ...]


@pytest.mark.parametrize(
    ("given_params", "expected"),
    [
        (None, {}),
        ({"a": 1}, {"a": 1}),
        (Namespace(a=1), {"a": 1}),
        (Net(3, ("x",)), {"width": 3, "names": ("x",)}),
    ],
)
def test_every_usual_form_is_a_mapping(given_params: Any, expected: dict[str, Any]) -> None:
    """Dicts, namespaces, dataclasses and None are understood."""
    assert as_mapping(given_params) == expected


@pytest.mark.parametrize("wrong", [3, "lr=1", [("lr", 1)], Net])
def test_other_forms_are_refused(wrong: Any) -> None:
    """The error names the type."""
    with pytest.raises(MisconfigurationError, match=type(wrong).__name__):
        as_mapping(wrong)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, True),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.array(2.5), 2.5),
        (torch.tensor(7), 7),
        (Path("/data/x"), "/data/x"),
        (Colour.RED, "RED"),
        ((1, (2, 3)), [1, [2, 3]]),
        ({3, 1, 2}, [1, 2, 3]),
        (Net(3, ("x",)), {"width": 3, "names": ["x"]}),
        (Namespace(a=Colour.RED), {"a": "RED"}),
        ({1: "a", (2, 3): "b"}, {1: "a", "(2, 3)": "b"}),
        (torch.nn.ReLU(), "ReLU()"),
        (b"raw", "b'raw'"),
    ],
)
def test_values_become_plain(value: Any, expected: Any) -> None:
    """Numbers, names and containers keep their meaning; everything else is written as its repr."""
    found = to_plain(value)
    assert found == expected
    assert type(found) is type(expected)


NESTED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), NESTED))
def test_plain_values_stay_as_they_are(params: dict[str, Any]) -> None:
    """Making plain changes nothing that is plain already."""
    assert to_plain(params) == params


def test_flat_names_are_joined() -> None:
    """Nested names are joined by a slash, lists are text, None stays."""
    params = {"opt": {"lr": 0.1, "sched": {"gamma": None}}, "layers": [1, 2], "on": True}
    assert flatten(params) == {"opt/lr": 0.1, "opt/sched/gamma": None, "layers": "[1, 2]", "on": True}


def test_the_file_loads_safely_and_keeps_the_order(tmp_path: Path) -> None:
    """YAML's safe loader reads back what was written, in the order in which it was given."""
    path = tmp_path / "new" / "hparams.yaml"
    params = {"z": 1, "a": {"x": (1, 2), "é": "ü"}, "fn": print, "where": Path("x")}
    write_yaml(str(path), params)
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert found == {"z": 1, "a": {"x": [1, 2], "é": "ü"}, "fn": repr(print), "where": "x"}
    assert list(found) == ["z", "a", "fn", "where"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is replaced in one step or not at all, and no temporary file stays."""
    path = tmp_path / "hparams.yaml"
    write_yaml(str(path), {"lr": 1})

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(yaml, "safe_dump", fail)
    with pytest.raises(OSError, match="disk full"):
        write_yaml(str(path), {"lr": 2})
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [("hparams.yaml", "lr: 1\n")]
