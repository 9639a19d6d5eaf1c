"""The byte GPT: causal, started at chance, and able to learn a text by heart."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch

import orchestrator as pl
from modules.models import ByteGPT


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small matrices on many threads wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_it_starts_at_chance() -> None:
    """An untrained model finds all 256 bytes about equally probable."""
    torch.manual_seed(0)
    batch = torch.randint(256, (4, 33), dtype=torch.uint8)
    assert ByteGPT(context=32, layers=2, width=32).loss(batch).item() == pytest.approx(math.log(256), abs=0.1)


def test_a_byte_depends_on_those_before_it_only() -> None:
    """Changing the last byte changes no earlier score."""
    torch.manual_seed(0)
    model = ByteGPT(context=16, layers=2, width=32).eval()
    tokens = torch.randint(256, (1, 16))
    changed = tokens.clone()
    changed[0, -1] = (changed[0, -1] + 1) % 256
    assert torch.equal(model(tokens)[:, :-1], model(changed)[:, :-1])
    assert not torch.equal(model(tokens)[:, -1], model(changed)[:, -1])


def test_it_learns_a_text_by_heart() -> None:
    """After some steps on one sentence it continues its beginning."""
    pl.seed_everything(0)
    text = b"the quick brown fox jumps over the lazy dog. "
    batch = torch.tensor([list(text)])
    model = ByteGPT(context=64, layers=1, heads=2, width=32, lr=1e-2)
    optimizer = model.configure_optimizers()
    for _ in range(60):
        optimizer.zero_grad()
        model.loss(batch).backward()
        optimizer.step()
    assert model.generate(text[:9], len(text) - 9, temperature=0) == text


def test_only_matrices_decay() -> None:
    """Biases and norms are in the group without weight decay, and no parameter is in both or none."""
    model = ByteGPT(layers=1, width=16, weight_decay=0.5)
    matrices, others = model.configure_optimizers().param_groups
    assert (matrices["weight_decay"], others["weight_decay"]) == (0.5, 0.0)
    assert {item.dim() for item in others["params"]} == {1}
    assert len(matrices["params"]) + len(others["params"]) == len(list(model.parameters()))


def test_what_cannot_work_is_refused() -> None:
    """Heads that do not divide the width, sequences beyond the context, and an empty prompt."""
    with pytest.raises(ValueError, match=r"ByteGPT\(width=30, heads=4\).*Use width=28"):
        ByteGPT(width=30, heads=4)
    model = ByteGPT(context=8, layers=1, width=16)
    with pytest.raises(ValueError, match=r"ByteGPT\(context=8\) got sequences of 9 bytes"):
        model(torch.zeros(1, 9, dtype=torch.int64))
    with pytest.raises(ValueError, match="nothing to continue"):
        model.generate(b"", 3)
