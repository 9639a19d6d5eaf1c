"""What may be written as Trainer(strategy=...): names, their aliases, specs, and what is refused in words."""

from __future__ import annotations

import itertools
import pickle
from datetime import timedelta
from typing import Any

import pytest
import torch

import orchestrator as pl
from orchestrator.errors import MisconfigurationError
from orchestrator.strategies import DDPStrategy, FSDPStrategy, SingleDeviceStrategy
from orchestrator.strategies.names import NAMES, parse_strategy
from orchestrator.strategies.specs import timeout_s

LAUNCHES = ("ddp", "ddp_spawn", "ddp_fork", "ddp_notebook")
ENDS = ("", "_find_unused_parameters_true", "_find_unused_parameters_false")


@pytest.mark.parametrize(("launch", "end"), list(itertools.product(LAUNCHES, ENDS)))
def test_every_alias_of_ddp_is_ddp(launch: str, end: str) -> None:
    """The names differ in whether unused parameters are looked for, and not in how processes start."""
    name, spec, note = parse_strategy(launch + end)
    assert name == "ddp"
    assert spec == DDPStrategy(find_unused_parameters=end.endswith("_true"))
    assert note == (
        "" if launch == "ddp" else f"strategy={launch + end!r} means 'ddp': processes are Ray workers"
    )


def test_the_plan_notes_an_alias_once() -> None:
    """The plan of a group has one more line where the name promises another way of starting processes."""
    plain = pl.Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False).plan.describe()
    spawned = pl.Trainer(accelerator="cpu", devices=2, strategy="ddp_spawn", logger=False).plan.describe()
    assert spawned == plain + "\nstrategy='ddp_spawn' means 'ddp': processes are Ray workers."


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        ("dp", "Use strategy='ddp'."),
        ("ddp2", "Use strategy='ddp'."),
        ("horovod", "Use strategy='ddp'."),
        ("deepspeed_stage_3_offload_nvme", "Use strategy='deepspeed_stage_3_offload'."),
        ("xla", "XLA devices are not supported"),
        ("xla_debug", "XLA devices are not supported"),
        ("tpu", "XLA devices are not supported"),
        ("hpu_parallel", "HPUs are not supported"),
        (DDPStrategy, r"Give an instance: DDPStrategy\(\)"),
        ("dpp", "Did you mean 'ddp'"),
        (object(), r"Use 'auto', 'single', 'ddp', 'fsdp'"),
    ],
)
def test_what_cannot_run_is_refused_with_advice(value: Any, advice: str) -> None:
    """One error names the value and says what to write instead."""
    with pytest.raises(MisconfigurationError, match=rf"(?s)Trainer\(strategy=.*{advice}"):
        pl.Trainer(strategy=value, logger=False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DDPStrategy(static_graph=1), r"DDPStrategy\(static_graph=1\)"),  # type: ignore[arg-type]
        (lambda: DDPStrategy(bucket_cap_mb=0), r"bucket_cap_mb=0\)\. Use a number of MiB"),
        (lambda: DDPStrategy(process_group_backend="mpi"), r"process_group_backend='mpi'\) is unknown"),
        (lambda: DDPStrategy(timeout=timedelta(0)), r"timeout=.*above 0"),
        (lambda: DDPStrategy(timeout="1h"), r"timeout='1h'.*timedelta"),  # type: ignore[arg-type]
        (lambda: DDPStrategy(ddp_comm_hook="fp16"), r"ddp_comm_hook='fp16'"),  # type: ignore[arg-type]
        (lambda: DDPStrategy(ddp_comm_state=1), r"ddp_comm_state=\.\.\.\) has no ddp_comm_hook"),
        (lambda: FSDPStrategy(auto_wrap="Block"), r"auto_wrap='Block'"),  # type: ignore[arg-type]
        (lambda: FSDPStrategy(min_num_params=0), r"min_num_params=0"),
        (lambda: FSDPStrategy(reshard_after_forward=2), r"reshard_after_forward=2"),  # type: ignore[arg-type]
        (lambda: FSDPStrategy(cpu_offload=None), r"cpu_offload=None"),  # type: ignore[arg-type]
    ],
)
def test_a_spec_checks_its_values(make: Any, message: str) -> None:
    """A value that cannot be is refused where it is written."""
    with pytest.raises(MisconfigurationError, match=message):
        make()


def test_specs_travel_and_can_be_read() -> None:
    """Every spec pickles to an equal one, and trainer.strategy is what was asked for."""
    specs = [*filter(None, NAMES.values()), FSDPStrategy(auto_wrap={torch.nn.Linear}), DDPStrategy(timeout=3)]
    assert pickle.loads(pickle.dumps(specs)) == specs
    wanted = DDPStrategy(static_graph=True)
    assert pl.Trainer(accelerator="cpu", devices=2, strategy=wanted, logger=False).strategy is wanted


def test_a_timeout_bounds_collectives() -> None:
    """A spec's timeout, as a timedelta or in seconds, is that of the group's collectives."""
    assert [timeout_s(DDPStrategy(timeout=item)) for item in (None, 5, timedelta(minutes=2))] == [
        None,
        5,
        120.0,
    ]
    trainer = pl.Trainer(accelerator="cpu", devices=2, logger=False, strategy=DDPStrategy(timeout=77))
    assert trainer.settings.collective_timeout_s == 77
    assert trainer.plan.group is not None
    assert trainer.plan.group.collective_timeout_s == 77


def test_a_spec_says_only_what_torch_does_not_do_anyway() -> None:
    """DDP gets the arguments that were given; all others stay torch's defaults."""
    assert DDPStrategy().ddp_arguments() == {"find_unused_parameters": False}
    given = DDPStrategy(
        gradient_as_bucket_view=True, bucket_cap_mb=7, broadcast_buffers=False, static_graph=True
    )
    assert given.ddp_arguments() == {
        "find_unused_parameters": False,
        "gradient_as_bucket_view": True,
        "static_graph": True,
        "broadcast_buffers": False,
        "bucket_cap_mb": 7,
    }


def test_one_process_has_nothing_to_share() -> None:
    """In one process every strategy is single, and single does not go with several."""
    for name in ("ddp", "fsdp", SingleDeviceStrategy()):
        assert pl.Trainer(accelerator="cpu", devices=1, strategy=name, logger=False).plan.strategy == "single"
    with pytest.raises(MisconfigurationError, match="runs one process, and 2 workers"):
        pl.Trainer(accelerator="cpu", devices=2, strategy="single_device", logger=False)


def test_sharded_layers_are_not_synchronised() -> None:
    """sync_batchnorm with fsdp is refused rather than ignored."""
    with pytest.raises(
        MisconfigurationError, match=r"strategy='fsdp', sync_batchnorm=True.*Use strategy='ddp'"
    ):
        pl.Trainer(accelerator="cpu", devices=2, strategy="fsdp", sync_batchnorm=True, logger=False)


def test_offloading_needs_something_to_offload_from() -> None:
    """fsdp_cpu_offload on CPUs is refused before anything starts."""
    with pytest.raises(MisconfigurationError, match=r"fsdp_cpu_offload.*Use strategy='fsdp'"):
        pl.Trainer(accelerator="cpu", devices=2, strategy="fsdp_cpu_offload", logger=False)
