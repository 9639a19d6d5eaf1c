"""DeepSpeed's configuration is made from the Trainer's arguments; what contradicts them is one error."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

import orchestrator as pl
from orchestrator.errors import MisconfigurationError
from orchestrator.strategies import DeepSpeedStrategy
from orchestrator.strategies.deepspeed_config import full_config


def full(config: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    """All that DeepSpeed is told."""
    defaults: dict[str, Any] = {
        "stage": 2,
        "clip": 0.0,
        "precision": "32-true",
        "offload_optimizer": False,
        "offload_parameters": False,
    }
    return full_config(config or {}, **{**defaults, **options})


def group_plan(**arguments: Any) -> pl.Trainer:
    """A trainer on two workers, which nothing has started."""
    return pl.Trainer(
        **{"accelerator": "cpu", "devices": 2, "strategy": "deepspeed", "logger": False, **arguments}
    )


def test_the_trainers_arguments_are_what_deepspeed_is_told() -> None:
    """Stage, clipping, precision and offloading are there; batches and accumulation are the loop's."""
    found = full({"steps_per_print": 5}, stage=3, clip=0.5, precision="bf16-mixed", offload_optimizer=True)
    assert found["zero_optimization"] == {"stage": 3, "offload_optimizer": {"device": "cpu"}}
    assert (found["gradient_clipping"], found["gradient_accumulation_steps"]) == (0.5, 1)
    assert found["torch_autocast"]["dtype"] == "bfloat16"
    assert found["steps_per_print"] == 5


def test_a_norm_that_nobody_asks_for_is_not_computed() -> None:
    """Without clipping the norm of gradients, for which the host waits, is left out where it can be."""
    assert full()["zero_optimization"] == {"stage": 2, "compute_grad_norm": False}
    for options in ({"clip": 1.0}, {"stage": 3}, {"offload_optimizer": True}):
        assert "compute_grad_norm" not in full(**options)["zero_optimization"]


def test_the_users_part_is_kept_and_not_changed() -> None:
    """What the user's configuration says about ZeRO stays, in a copy."""
    given = {"zero_optimization": {"reduce_bucket_size": 7}}
    assert full(given)["zero_optimization"]["reduce_bucket_size"] == 7
    assert given == {"zero_optimization": {"reduce_bucket_size": 7}}


def test_a_configuration_is_read_from_a_file(tmp_path: Path) -> None:
    """A path is read where the strategy is made, and what says "auto" is the Trainer's to decide."""
    path = tmp_path / "zero.json"
    path.write_text(json.dumps({"train_batch_size": "auto", "zero_optimization": {"stage": 3}}))
    assert DeepSpeedStrategy(stage=3, config=path).config == {"zero_optimization": {"stage": 3}}
    assert DeepSpeedStrategy(stage=3, config=str(path)).config == {"zero_optimization": {"stage": 3}}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stage": 0}, r"stage=0\)\. Use 1, 2 or 3"),
        ({"stage": True}, r"stage=True\)\. Use 1, 2 or 3"),
        ({"offload_optimizer": 1}, r"offload_optimizer=1\)\. Use True or False"),
        ({"stage": 2, "offload_parameters": True}, r"only stage 3 deals weights.*Use stage=3"),
        ({"config": "nowhere.json"}, r"config='nowhere.json'\) cannot be read"),
        ({"config": [1]}, r"config=\.\.\.\) is a list"),
        ({"config": {"gradient_clipping": 1.0}}, r"Leave it out, and use Trainer\(gradient_clip_val="),
        ({"config": {"optimizer": {"type": "Adam"}}}, r"Leave it out, and use configure_optimizers"),
        ({"stage": 2, "config": {"zero_optimization": {"stage": 3}}}, r"contradict each other"),
        ({"process_group_backend": "mpi"}, r"process_group_backend='mpi'\) is unknown"),
        ({"timeout": 0}, r"timeout=0"),
    ],
)
def test_a_spec_checks_its_values(arguments: dict[str, Any], message: str) -> None:
    """A value that cannot be is refused where it is written."""
    with pytest.raises(MisconfigurationError, match=rf"(?s)DeepSpeedStrategy\(.*{message}"):
        DeepSpeedStrategy(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precision": "16-mixed"}, r"precision='16-mixed'\).*Use 32 or 'bf16-mixed'"),
        ({"precision": "bf16-true"}, r"precision='bf16-true'\).*Use 32 or 'bf16-mixed'"),
        ({"gradient_clip_val": 1.0, "gradient_clip_algorithm": "value"}, r"by their norm only"),
        ({"sync_batchnorm": True}, r"sync_batchnorm=True\)"),
        ({"compile": True}, r"Leave compile out"),
    ],
)
def test_what_deepspeed_cannot_do_is_refused(
    monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], message: str
) -> None:
    """Before a worker starts, one error names the argument and what to write."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(MisconfigurationError, match=rf"strategy='deepspeed'.*{message}"):
        group_plan(**arguments)


def test_a_package_that_is_missing_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without DeepSpeed the error names the extra; one process does not need it."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MisconfigurationError, match=r"pip install 'ray-training-orchestrator\[deepspeed\]'"):
        group_plan()
    assert group_plan(devices=1).plan.strategy == "single"
