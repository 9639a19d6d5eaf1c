"""Random streams as state: what is captured is what comes back, through a file too."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from modules import rng, seed_everything
from modules.checkpoint.format import plain
from tests.modules.datasets import Noisy
from tests.modules.reading import TWO_PROCESSES, flat


def draw() -> list[float]:
    """Numbers of all global generators, among them Gaussian ones, of which generators keep the second."""
    return [
        random.random(),
        random.gauss(0, 1),
        float(np.random.rand()),
        float(np.random.randn()),
        float(torch.rand(())),
        float(torch.randn(())),
    ]


@given(st.integers(0, 2**32 - 1), st.integers(0, 3))
def test_restoring_repeats_what_was_drawn(seed: int, before: int) -> None:
    """From whatever state, half of a pair of Gaussians included, restoring makes the same numbers come."""
    with rng.isolated(seed):
        for _ in range(before):
            draw()
        state = rng.capture()
        expected = [draw() for _ in range(3)]
        rng.restore(state)
        assert [draw() for _ in range(3)] == expected


def test_a_state_survives_a_checkpoint(tmp_path: Path) -> None:
    """A state fits into a file that is loaded without running code, and does the same afterwards."""
    draw()
    state = rng.capture()
    expected = draw()
    dropped: list[str] = []
    torch.save(plain(state, "rng", dropped), tmp_path / "rng.pt")
    rng.restore(torch.load(tmp_path / "rng.pt", weights_only=True))
    assert dropped == []
    assert draw() == expected


def test_a_captured_state_does_not_change() -> None:
    """Drawing after a capture leaves what was captured alone."""
    state = rng.capture()
    expected = draw()
    for _ in range(2):
        rng.restore(state)
        assert draw() == expected


def test_a_state_without_numpy_leaves_numpy_alone() -> None:
    """A state that was captured before NumPy was loaded restores the other generators."""
    state = {name: value for name, value in rng.capture().items() if name != "numpy"}
    expected = float(torch.rand(()))
    first = float(np.random.rand())
    rng.restore(state)
    assert float(torch.rand(())) == expected
    assert float(np.random.rand()) != first


@pytest.mark.parametrize("seed", [None, 7])
def test_isolation_leaves_no_trace(seed: int | None) -> None:
    """What is drawn inside, and an exception inside, do not change what comes after."""
    state = rng.capture()
    expected = draw()
    rng.restore(state)
    with pytest.raises(KeyError), rng.isolated(seed):
        draw()
        raise KeyError
    assert draw() == expected


def test_isolation_starts_from_the_seed() -> None:
    """Inside, the numbers depend on the seed only; without one they go on from where they were."""
    with rng.isolated(7):
        seven = draw()
    with rng.isolated(8):
        eight = draw()
    with rng.isolated(7):
        assert draw() == seven
    assert seven != eight
    with rng.isolated():
        going_on = draw()
    assert draw() == going_on


@given(st.lists(st.one_of(st.integers(), st.text(max_size=5)), max_size=4))
def test_folded_seeds_are_seeds(keys: list[int | str]) -> None:
    """Whatever the keys, the result is a 32-bit seed, and always the same one."""
    assert 0 <= rng.fold(*keys) < 2**32
    assert rng.fold(*keys) == rng.fold(*keys)


def test_every_key_and_its_place_count() -> None:
    """Keys that differ, change places, or are text instead of a number give other seeds."""
    keys: list[tuple[int | str, ...]] = [(), (0,), (1,), (0, 1), (1, 0), ("0", 1), (0, 1, 0), (12,), (1, 2)]
    assert len({rng.fold(*item) for item in keys}) == len(keys)


def test_folding_never_changes() -> None:
    """A folded seed is the same in every process and version, unlike Python's `hash`: runs depend on it."""
    assert rng.fold(3, "rank", 2) == 2470166205
    assert rng.fold() == 3138146411


def test_seeding_everything_seeds_everything(capsys: pytest.CaptureFixture[str]) -> None:
    """Python, NumPy and torch start from the seed, which is returned, shown and remembered."""
    assert seed_everything(12) == 12
    first = draw()
    assert rng.global_seed() == 12
    seed_everything(12, verbose=False)
    assert draw() == first
    assert capsys.readouterr().err == "Seed set to 12\n"


def test_without_a_seed_the_remembered_one_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """None means the seed of an earlier call, which travels in the environment, else 0."""
    monkeypatch.delenv(rng.GLOBAL_SEED_VARIABLE, raising=False)
    assert rng.global_seed() is None
    assert seed_everything(verbose=False) == 0
    monkeypatch.setenv(rng.GLOBAL_SEED_VARIABLE, "99")
    assert seed_everything(verbose=False) == 99


def test_numpys_integers_are_seeds() -> None:
    """A seed that NumPy drew is a whole number like any other."""
    assert seed_everything(np.int64(5), verbose=False) == 5  # type: ignore[arg-type]
    assert rng.global_seed() == 5


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, "3", True, float("nan")])
def test_what_is_not_a_seed_is_refused(seed: Any) -> None:
    """The message shows the value and the range, and nothing is seeded or remembered."""
    before = rng.global_seed()
    state = rng.capture()
    expected = draw()
    rng.restore(state)
    with pytest.raises(ValueError, match=r"seed_everything\(seed=.*\): not a seed.*0 to 4294967295"):
        seed_everything(seed)
    assert rng.global_seed() == before
    assert draw() == expected


@pytest.mark.parametrize("value", ["seven", "", "-1"])
def test_a_spoilt_environment_is_named(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that holds no seed is an error that names the variable."""
    monkeypatch.setenv(rng.GLOBAL_SEED_VARIABLE, value)
    with pytest.raises(ValueError, match=f"ORCHESTRATOR_GLOBAL_SEED='{value}'"):
        rng.global_seed()


def test_loader_processes_draw_different_numbers() -> None:
    """Each worker process of a DataLoader has seeds of its own for all three generators, and they repeat."""

    def read() -> list[list[float]]:
        seed_everything(3, workers=True, verbose=False)
        return flat(batch.tolist() for batch in DataLoader(Noisy(4), batch_size=2, **TWO_PROCESSES))

    rows = read()
    assert len({number for row in rows for number in row[1:]}) == 12
    assert read() == rows
