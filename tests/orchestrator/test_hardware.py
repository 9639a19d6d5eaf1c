"""What Trainer(accelerator=..., devices=...) may say, and where it leads with and without GPUs."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.errors import MisconfigurationError
from orchestrator.hardware import parse_accelerator, parse_devices
from orchestrator.plan import Plan, make_plan
from orchestrator.settings import Settings


def plan(gpus: int = 0, mps: bool = False, **arguments: Any) -> Plan:
    """The plan on a machine with so many GPUs."""
    return make_plan(Settings(**arguments), cuda_devices=gpus, mps=mps)


@pytest.mark.parametrize("name", ["auto", "cpu", "gpu", "cuda", "mps"])
def test_accelerators_are_named_in_any_case(name: str) -> None:
    """Upper case means the same."""
    assert parse_accelerator(name.upper()) == parse_accelerator(name.title()) == name


@pytest.mark.parametrize("name", ["tpu", "TPU", "hpu", "ipu"])
def test_other_accelerators_are_refused_by_name(name: str) -> None:
    """What is not supported is said in one line."""
    with pytest.raises(MisconfigurationError, match=rf"{name}'\): {name.upper()}s are not supported"):
        parse_accelerator(name)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, 3),
        ("3", 3),
        (" 2 ", 2),
        ("auto", "auto"),
        (-1, "auto"),
        ("-1", "auto"),
        ([0], (0,)),
        ([1, 0], (1, 0)),
        ((2, 3), (2, 3)),
        ("0,1", (0, 1)),
        ("0, 3", (0, 3)),
        ("1,", (1,)),
    ],
)
def test_devices_have_several_forms(value: Any, expected: Any) -> None:
    """A number, text, -1 for all, or the GPUs' own numbers."""
    assert parse_devices(value, "auto") == expected


@pytest.mark.parametrize(
    "value", [0, -2, True, 1.5, "0", "two", [], (), "", ",", "a,b", [-1], [True], {0}, None]
)
def test_other_devices_are_refused(value: Any) -> None:
    """Nothing else is guessed at."""
    with pytest.raises(MisconfigurationError, match=r"Trainer\(devices=.*Use a whole number of at least 1"):
        parse_devices(value, "auto")


def test_devices_that_contradict_are_refused() -> None:
    """CPUs have no numbers, and a GPU is named once."""
    with pytest.raises(MisconfigurationError, match=r"CPUs have no numbers. Use devices=2 for 2 processes"):
        parse_devices("0,1", "cpu")
    with pytest.raises(MisconfigurationError, match="names a GPU twice"):
        parse_devices([1, 1], "gpu")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"gpus": 4, "devices": (2,)}, "Runs in this process on cuda:2, precision 32-true."),
        (
            {"gpus": 4, "devices": (2, 3)},
            "Runs on 2 Ray workers, one GPU each: strategy ddp over nccl, precision 32-true.\n"
            "devices=[2, 3]: Ray chooses which GPUs; CUDA_VISIBLE_DEVICES of its nodes says from which.",
        ),
        ({"mps": True}, "Runs in this process on mps, precision 32-true."),
        ({"mps": True, "accelerator": "cpu"}, "Runs in this process on cpu, precision 32-true."),
        ({"mps": True, "accelerator": "mps"}, "Runs in this process on mps, precision 32-true."),
        (
            {"mps": True, "devices": 2},
            "Runs on 2 Ray workers, on CPUs: strategy ddp over gloo, precision 32-true.",
        ),
        (
            {"devices": 2, "strategy": "fsdp", "precision": "bf16-true"},
            "Runs on 2 Ray workers, on CPUs: strategy fsdp over gloo, precision bf16-true.",
        ),
    ],
)
def test_the_plan_follows(arguments: dict[str, Any], expected: str) -> None:
    """One GPU of a list is used here; several mean workers, whose GPUs Ray deals out."""
    if arguments.get("strategy") == "fsdp":
        from orchestrator.strategies import FSDPStrategy

        arguments = {**arguments, "strategy_spec": FSDPStrategy()}
    assert plan(**arguments).describe() == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"accelerator": "gpu"}, r"accelerator='gpu'\): torch sees no GPU.*Use accelerator='cpu'"),
        ({"devices": (0, 1)}, r"devices=\[0, 1\]\) names GPUs, and torch sees none.*Use devices=2 and"),
        ({"gpus": 2, "devices": (2,)}, r"devices=\[2\]\): torch sees 2 GPUs.*Use a number below 2"),
        ({"accelerator": "mps"}, r"accelerator='mps'\): torch sees no Apple GPU.*Use accelerator='cpu'"),
        ({"accelerator": "mps", "mps": True, "devices": 2}, r"accelerator='mps'\) runs one process"),
        ({"mps": True, "precision": "64-true"}, r"Apple GPUs have no 64-bit numbers"),
    ],
)
def test_what_this_machine_lacks_is_said(arguments: dict[str, Any], message: str) -> None:
    """One error names the argument, what torch sees, and what to write."""
    with pytest.raises(MisconfigurationError, match=f"(?s){message}"):
        plan(**arguments)
