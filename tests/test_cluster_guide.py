"""What docs/cluster.md says is what the code does: its Python runs, its lists are whole, its errors exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import orchestrator as pl
from cluster.environment import SENT

ROOT = Path(__file__).resolve().parents[1]
GUIDE = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")


def test_the_code_asks_for_what_the_text_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """The block makes a Trainer whose plan has the workers, labels, type of GPU and strategy."""
    (block,) = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    made: list[pl.Trainer] = []
    names = {"Trainer": lambda **arguments: made.append(pl.Trainer(logger=False, **arguments))}
    exec(block, names)
    group = made[0].plan.group
    assert group is not None
    assert (group.num_workers, group.placement_strategy, group.backend) == (8, "SPREAD", "nccl")
    assert group.resource("accelerator_type:H100") > 0
    assert set(group.label_selectors) == {(("zone", "in(a, b)"),)}


def test_all_variables_that_are_sent_are_listed() -> None:
    """Each name and prefix of the list in the code stands in the guide."""
    assert [name for name in SENT if f"`{name.removesuffix('*')}`" not in GUIDE] == []


def test_the_errors_of_the_table_exist() -> None:
    """The words of each error, but for its values, stand in the source."""
    table = GUIDE.partition("## What each error means")[2]
    begins = re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
    assert len(begins) == 14
    source = "".join(
        path.read_text(encoding="utf-8")
        for package in ("cluster", "orchestrator")
        for path in (ROOT / package).rglob("*.py")
    )
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # sentences that go on in the next line
    missing = []
    for begin in begins:
        words = [
            part.strip(" :")
            for part in re.split(r"\.\.\.|worker 1|did not start|on node|Net\b|its lock|fit\(|\(", begin)
        ]
        missing += [part for part in words if len(part) > 12 and part not in source]
    assert missing == []
