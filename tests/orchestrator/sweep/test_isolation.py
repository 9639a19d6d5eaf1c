"""Nothing of a trial is left in the process for the next one."""

from __future__ import annotations

import os
import random
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from modules.rng import global_seed, seed_everything
from orchestrator.sweep.isolation import fresh_process, trial_seed


def test_what_a_trial_changes_of_its_process_is_put_back(tmp_path: Path) -> None:
    """Variables, working directory, search path, torch's switches, filters of warnings."""
    before = (os.getcwd(), list(sys.path), dict(os.environ), list(warnings.filters), torch.get_num_threads())
    with fresh_process(seed=1, threads=1, folder=str(tmp_path), env={}):
        assert os.getcwd() == str(tmp_path)
        assert torch.get_num_threads() == 1
        os.environ["LEFT_BEHIND"] = "1"
        sys.path.insert(0, "/nowhere")
        seed_everything(7, verbose=False)
        warnings.simplefilter("ignore")
        torch.set_default_dtype(torch.float64)
        torch.use_deterministic_algorithms(True)
        torch.set_float32_matmul_precision("medium")
        torch.backends.cudnn.allow_tf32 = False
    after = (os.getcwd(), list(sys.path), dict(os.environ), list(warnings.filters), torch.get_num_threads())
    torch.set_num_threads(before[4])
    assert after[:4] == before[:4]
    assert global_seed() is None
    assert torch.get_default_dtype() is torch.float32
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.get_float32_matmul_precision() == "highest"
    assert torch.backends.cudnn.allow_tf32


def test_a_trial_sees_the_drivers_seed_and_arguments_of_trainers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those that its process was started with, which are of another time."""
    monkeypatch.setenv("ORCHESTRATOR_TRAINER_MAX_EPOCHS", "9")
    monkeypatch.setenv("ORCHESTRATOR_GLOBAL_SEED", "9")
    env = {"ORCHESTRATOR_TRAINER_MAX_STEPS": "2", "WANDB_MODE": "offline"}
    with fresh_process(seed=1, threads=torch.get_num_threads(), folder="/nowhere", env=env):
        assert os.environ["ORCHESTRATOR_TRAINER_MAX_STEPS"] == "2"
        assert os.environ["WANDB_MODE"] == "offline"
        assert "ORCHESTRATOR_TRAINER_MAX_EPOCHS" not in os.environ
        assert "ORCHESTRATOR_GLOBAL_SEED" not in os.environ
    assert os.environ["ORCHESTRATOR_TRAINER_MAX_EPOCHS"] == "9"
    assert "ORCHESTRATOR_TRAINER_MAX_STEPS" not in os.environ


def test_a_trials_random_numbers_depend_on_its_number_only() -> None:
    """Not on what ran in the process before; without a seed they are new each time."""
    threads = torch.get_num_threads()

    def draw(number: int, seed: int | None = 3) -> tuple[float, float, float]:
        with fresh_process(seed=trial_seed(seed, number), threads=threads, folder="/nowhere", env={}):
            return random.random(), float(np.random.rand()), float(torch.rand(1))

    first = draw(5)
    draw(6)
    assert draw(5) == first
    assert draw(6) != first
    assert draw(5, seed=4) != first
    assert draw(5, seed=None) != draw(5, seed=None)
