"""What the summary of a module counts and shows, and that making it leaves no trace."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import orchestrator as pl
from orchestrator.errors import MisconfigurationError
from orchestrator.summary import summarize


class Model(pl.LightningModule):
    """A body of three layers, one of them frozen, a scale of its own, and a head tied to the body."""

    def __init__(self, example: Any = None) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.head = nn.Linear(8, 2, bias=False)
        self.scale = nn.Parameter(torch.ones(3))
        self.body[1].weight.requires_grad = False
        self.example_input_array = example

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.body(inputs))  # type: ignore[no-any-return]


def test_parameters_are_counted_once() -> None:
    """Totals count each parameter once, tied ones too, and tell those that are trained from frozen ones."""
    model = Model()
    model.tied = nn.Linear(8, 2, bias=False)
    model.tied.weight = model.head.weight
    found = summarize(model)
    assert found.total_parameters == 4 * 8 + 8 + 16 + 16 + 3
    assert found.trainable_parameters == found.total_parameters - 8
    assert found.model_size == found.total_parameters * 4 / 1e6


@pytest.mark.parametrize(
    ("depth", "names"),
    [
        (0, []),
        (1, ["body", "head", "other parameters"]),
        (2, ["body", "body.0", "body.1", "body.2", "head", "other parameters"]),
        (-1, ["body", "body.0", "body.1", "body.2", "head", "other parameters"]),
    ],
)
def test_the_depth_says_which_layers_have_rows(depth: int, names: list[str]) -> None:
    """Layers within layers get rows down to the depth, and parameters of no layer get one of their own."""
    assert [layer.name for layer in summarize(Model(), depth).layers] == names


def test_an_example_gives_sizes_and_operations() -> None:
    """With example_input_array each layer shows what goes in and out, and the multiplications of a pass."""
    found = summarize(Model(torch.zeros(5, 4)), 1)
    body, head, _ = found.layers
    assert (body.in_size, body.out_size) == ([5, 4], [5, 8])
    assert (head.in_size, head.out_size) == ([5, 8], [5, 2])
    assert head.flops == 2 * 5 * 8 * 2
    assert found.total_flops == 2 * 5 * 4 * 8 + head.flops


@pytest.mark.parametrize(
    "example", [(torch.zeros(5, 4),), {"inputs": torch.zeros(5, 4)}], ids=["tuple", "dict"]
)
def test_examples_may_be_several_arguments(example: Any) -> None:
    """A tuple is taken as positional arguments and a dictionary as keyword ones."""
    assert summarize(Model(example)).total_flops == 480


def test_nothing_is_left_changed() -> None:
    """The pass of the example leaves modes, buffers and random streams as they were."""
    model = Model(torch.randn(5, 4))
    model.body[2].eval()
    before = {name: item.clone() for name, item in model.state_dict().items()}
    stream = torch.get_rng_state()
    summarize(model)
    assert all(torch.equal(before[name], item) for name, item in model.state_dict().items())
    assert torch.equal(stream, torch.get_rng_state())
    assert [model.body[0].training, model.body[2].training] == [True, False]
    assert not model.body[0]._forward_hooks


def test_a_pass_that_fails_is_only_noted() -> None:
    """An example that forward cannot take costs the sizes, not the summary."""
    found = summarize(Model(torch.zeros(5, 3)))
    assert found.layers[0].in_size is None
    assert "No sizes and FLOPs: RuntimeError in forward(example_input_array)" in str(found)


def test_lazy_layers_count_nothing_yet() -> None:
    """Parameters that have no shape yet count 0, and the table says so."""
    model = Model()
    model.lazy = nn.LazyLinear(3)
    assert summarize(model).total_parameters == summarize(Model()).total_parameters
    assert "Lazy layers have no parameters yet" in str(summarize(model))


def test_the_table_lines_up() -> None:
    """Each column begins at one place in all rows, and the totals stand below."""
    lines = str(summarize(Model(torch.zeros(5, 4)), 2)).splitlines()
    place = lines[0].index("Params")
    assert [line[place:].split()[0] for line in lines[2:8]] == ["56", "40", "16", "0", "16", "3"]
    assert lines[-3] == "67 trainable + 8 frozen = 75 parameters, 0.000 MB"
    assert lines[-2] == "5 modules in train mode, 0 in eval mode"
    assert lines[-1] == "480 FLOPs in a forward pass of the example"


@pytest.mark.parametrize("depth", [-2, 1.5, True, "all"])
def test_a_depth_that_is_none_is_refused(depth: Any) -> None:
    """The depth is a whole number from -1."""
    with pytest.raises(MisconfigurationError, match=r"summarize\(max_depth=.*Use -1 for all layers"):
        summarize(Model(), depth)
