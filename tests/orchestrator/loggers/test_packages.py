"""Packages that only an extra installs: what is said of a missing one, what is left of their variables."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest

from orchestrator import loggers
from orchestrator.loggers.packages import load, surroundings


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("MLFlowLogger", "mlflow", "mlflow"),
        ("WandbLogger", "wandb", "wandb"),
        ("CometLogger", "comet_ml", "comet"),
        ("NeptuneLogger", "neptune", "neptune"),
    ],
)
def test_a_missing_package_names_its_extra(
    name: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Making a logger whose package is missing is an ImportError that says what to install."""
    monkeypatch.setitem(sys.modules, package, None)
    make: Any = getattr(loggers, name)
    with pytest.raises(ImportError, match=rf"{name} needs the package {package}.*orchestrator\[{extra}\]'"):
        make()


def test_all_loggers_can_be_had_by_name() -> None:
    """Every public name resolves without its package, and another is an error that lists them."""
    assert [name for name in loggers.__all__ if not hasattr(loggers, name)] == []
    with pytest.raises(AttributeError, match=r"has no attribute 'AimLogger'.*WandbLogger"):
        _ = loggers.AimLogger


def test_surroundings_are_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables are set while the block runs, except those that the user has set, and then are as before."""
    monkeypatch.setenv("ORCHESTRATOR_TEST_OWN", "mine")
    before = dict(os.environ)
    with surroundings({"ORCHESTRATOR_TEST_OWN": "theirs", "ORCHESTRATOR_TEST_NEW": "1"}):
        assert (os.environ["ORCHESTRATOR_TEST_OWN"], os.environ["ORCHESTRATOR_TEST_NEW"]) == ("mine", "1")
    assert dict(os.environ) == before


def test_a_package_that_is_there_is_returned() -> None:
    """What is imported is what `import` gives."""
    assert load("json", logger="Some", extra="some", variables={}) is sys.modules["json"]
