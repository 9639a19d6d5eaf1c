"""Exports: each is run, and computes what the module does."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modules import LightningModule


class Net(LightningModule):
    """Drops out while it trains, and has one part that is always in eval mode."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Linear(width, 2)
        self.frozen = nn.BatchNorm1d(2).eval()
        self.dropout = nn.Dropout(0.5)
        self.example_input_array = torch.ones(2, width)

    def forward(self, inputs: Tensor, scale: float = 1.0) -> Tensor:
        return self.dropout(self.frozen(self.layer(inputs))) * scale  # type: ignore[no-any-return]


class Pair(LightningModule):
    """Takes two inputs."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left + 2 * right


INPUTS = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])


def expected(net: Net) -> Tensor:
    """What the module computes when it is used."""
    modes = [(item, item.training) for item in net.modules()]
    net.eval()
    with torch.no_grad():
        outputs: Tensor = net(INPUTS)
    for item, training in modes:
        item.training = training
    return outputs


def assert_as_before(net: Net) -> None:
    """Modes and gradients are what they were."""
    assert (net.training, net.dropout.training, net.frozen.training) == (True, True, False)
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert torch.is_grad_enabled()
    assert net._trainer is None


@pytest.mark.parametrize("into", ["path", "open file", None])
def test_exported_programs_run(into: str | None, tmp_path: Path) -> None:
    """A program of torch.export, loaded again, computes the same, and the module is as before."""
    net = Net()
    file: Any = {"path": tmp_path / "net.pt2", "open file": io.BytesIO(), None: None}[into]  # type: ignore[index]
    program = net.to_exported_program(file)
    if into is not None:
        if into == "open file":
            file.seek(0)
        program = torch.export.load(file)
    assert torch.equal(program.module()(INPUTS), expected(net))
    assert_as_before(net)


@pytest.mark.parametrize("method", ["script", "trace"])
@pytest.mark.filterwarnings("ignore:`torch.jit.load` is deprecated:DeprecationWarning")
def test_torchscript_runs(method: str, tmp_path: Path) -> None:
    """TorchScript by both methods, loaded again, computes the same, with one notice of deprecation."""
    net = Net()
    with pytest.warns(DeprecationWarning, match="Use to_exported_program") as told:
        net.to_torchscript(tmp_path / "net.pt", method=method)
    assert len(told) == 1
    assert torch.equal(torch.jit.load(tmp_path / "net.pt")(INPUTS), expected(net))
    assert_as_before(net)


@pytest.mark.parametrize(
    "sample", [(torch.ones(2), torch.ones(2)), {"left": torch.ones(2), "right": torch.ones(2)}]
)
def test_samples_are_tuples_or_dictionaries_of_arguments(sample: Any) -> None:
    """Several inputs are given as a tuple, or by name."""
    program = Pair().to_exported_program(input_sample=sample)
    arguments = (sample, {}) if isinstance(sample, tuple) else ((), sample)
    assert program.module()(*arguments[0], **arguments[1]).tolist() == [3.0, 3.0]


def test_options_are_passed_on() -> None:
    """Keyword arguments go to torch: a dynamic size takes other batches."""
    batch = torch.export.Dim("batch")
    program = Net().to_exported_program(input_sample=torch.ones(2, 3), dynamic_shapes=({0: batch},))
    assert program.module()(torch.ones(5, 3)).shape == (5, 2)


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("to_onnx", "input_sample"),
        ("to_exported_program", "input_sample"),
        ("to_torchscript", "example_inputs"),
    ],
)
@pytest.mark.filterwarnings("ignore:to_torchscript:DeprecationWarning")
def test_without_an_input_there_is_an_error(name: str, argument: str) -> None:
    """Where neither an input nor example_input_array is there, the error says how to give one."""
    options = {"method": "trace"} if name == "to_torchscript" else {}
    with pytest.raises(
        ValueError, match=rf"{name}\(\) has no input to call Pair.forward with. Give {argument}"
    ):
        getattr(Pair(), name)(**options)


def test_other_methods_are_refused() -> None:
    """Of TorchScript there are two methods."""
    with pytest.raises(ValueError, match=r"to_torchscript\(method='freeze'\): there is no such method"):
        Net().to_torchscript(method="freeze")


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without ONNX's packages the error says which extra to install."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"to_onnx needs onnx and onnxscript.*orchestrator\[onnx\]'"):
        Net().to_onnx()


@pytest.mark.extras
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("into", ["path", "open file"])
def test_onnx_runs(into: str, tmp_path: Path) -> None:
    """An ONNX file, run by onnxruntime, computes the same, and the module is as before."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    net = Net()
    file: Any = tmp_path / "net.onnx" if into == "path" else io.BytesIO()
    program = net.to_onnx(file)
    session = onnxruntime.InferenceSession(file if into == "path" else file.getvalue())
    (found,) = session.run(None, {session.get_inputs()[0].name: INPUTS.numpy()})
    assert torch.allclose(torch.from_numpy(found), expected(net), atol=1e-6)
    assert program.model_proto.graph.node
    assert_as_before(net)


@pytest.mark.extras
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_older_onnx_exporter(tmp_path: Path) -> None:
    """dynamo=False takes torch's older exporter, which needs a file."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pair, samples = Pair(), (torch.ones(2), torch.ones(2))
    with pytest.raises(ValueError, match=r"to_onnx\(dynamo=False\) returns nothing"):
        pair.to_onnx(None, samples, dynamo=False)
    pair.to_onnx(tmp_path / "pair.onnx", samples, dynamo=False, input_names=["left", "right"])
    session = onnxruntime.InferenceSession(tmp_path / "pair.onnx")
    (found,) = session.run(None, {"left": INPUTS[0, :2].numpy(), "right": INPUTS[1, :2].numpy()})
    assert found.tolist() == [9.0, 12.0]
