"""fp8 layers, as far as they run without a GPU for them: conversion, rounding and return."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from orchestrator import float8
from orchestrator.errors import MisconfigurationError

pytestmark = pytest.mark.extras
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _torchao() -> Iterator[None]:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("torchao")
        import torchao.float8  # noqa: F401
    yield


def net() -> nn.Sequential:
    """Two layers that can use fp8, and one whose sizes it has not."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 16, bias=False), nn.Linear(16, 3))


def test_layers_compute_in_fp8_and_keep_their_weights() -> None:
    """Layers whose sizes fit are replaced and keep parameters and names; outputs are near, and rounded."""
    plain, converted = net(), net()
    parameters = list(converted.parameters())
    float8.convert(converted, CPU, emulate=True)
    kinds = [type(layer).__name__ for layer in converted]
    assert kinds == ["Float8Linear", "ReLU", "Float8Linear", "Linear"]
    assert all(one is other for one, other in zip(converted.parameters(), parameters, strict=True))
    assert converted.state_dict().keys() == plain.state_dict().keys()
    inputs = torch.randn(16, 32)
    expected, found = plain(inputs), converted(inputs)
    assert not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, rtol=0.2, atol=0.1)
    found.sum().backward()
    assert all(item.grad is not None for item in converted.parameters())


def test_layers_come_back() -> None:
    """Afterwards the layers are ordinary ones with the same weights and modes."""
    converted = net().eval()
    float8.convert(converted, CPU, emulate=True)
    weight = converted[0].weight
    float8.revert(converted)
    assert [type(layer) for layer in converted] == [nn.Linear, nn.ReLU, nn.Linear, nn.Linear]
    assert converted[0].weight is weight
    assert converted[2].bias is None
    assert not converted[0].training


def test_a_module_without_such_layers_is_refused() -> None:
    """Where nothing would run in fp8, the error says so."""
    with pytest.raises(MisconfigurationError, match="no linear layer whose sizes are multiples of 16"):
        float8.convert(nn.Sequential(nn.Linear(3, 5)), CPU, emulate=True)
