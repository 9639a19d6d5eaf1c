"""The article without code: every feature that its text names, used once as it says.

Left out here, because it stands in the other articles: the module's parts, TensorBoard, early stopping.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import orchestrator as pl
from orchestrator import callbacks


class Net(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.example_input_array = torch.zeros(1, 4)
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layers(inputs)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        inputs, labels = batch
        return nn.functional.cross_entropy(self(inputs), labels)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


class Data(pl.LightningDataModule):
    def train_dataloader(self) -> Any:
        generator = torch.Generator().manual_seed(1)
        inputs = torch.randn(32, 4, generator=generator)
        return DataLoader(TensorDataset(inputs, (inputs.sum(1) > 0).long()), batch_size=4, shuffle=True)


def fitted(**arguments: Any) -> Net:
    """A seeded module after one epoch with a quiet Trainer."""
    pl.seed_everything(5, verbose=False)
    module = Net()
    quiet = {"logger": False, "enable_checkpointing": False, "max_epochs": 1, "accelerator": "cpu"}
    pl.Trainer(**{**quiet, **arguments}).fit(module, datamodule=Data())
    return module


@pytest.mark.parametrize(
    "arguments",
    [
        {"precision": "bf16"},
        {"accumulate_grad_batches": 2},
        {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "norm"},
        {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"},
        {"log_every_n_steps": 1, "logger": True},
        {"strategy": "ddp", "devices": 1},
    ],
    ids=str,
)
def test_one_argument_is_enough(arguments: dict[str, Any]) -> None:
    """Each of the features that the text gives as one argument trains."""
    before = fitted(max_epochs=0)
    assert not torch.equal(fitted(**arguments).layers[0].weight, before.layers[0].weight)


def test_seeds_make_runs_repeat() -> None:
    """`seed_everything` and `deterministic=True` give the same weights twice, dropout included."""
    first, second = fitted(deterministic=True), fitted(deterministic=True)
    assert torch.equal(first.layers[0].weight, second.layers[0].weight)
    torch.use_deterministic_algorithms(False)


def test_learning_rates_are_monitored() -> None:
    """LearningRateMonitor writes the rate to the logger."""
    from orchestrator.loggers import CSVLogger

    logger = CSVLogger(".")
    fitted(logger=logger, callbacks=[callbacks.LearningRateMonitor()], log_every_n_steps=1)
    assert "lr-Adam" in Path(logger.log_dir, "metrics.csv").read_text()


def test_a_summary_is_shown(caplog: pytest.LogCaptureFixture) -> None:
    """RichModelSummary shows the layers and how many parameters there are."""
    with caplog.at_level("INFO", logger="orchestrator"):
        fitted(callbacks=[callbacks.RichModelSummary()])
    assert "layers" in caplog.text and "58" in caplog.text


@pytest.mark.extras
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_export_to_onnx() -> None:
    """The ONNX file computes what the module does."""
    onnxruntime = pytest.importorskip("onnxruntime")
    module, inputs = fitted().eval(), torch.randn(1, 4)
    module.to_onnx("model.onnx", inputs)
    session = onnxruntime.InferenceSession("model.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), module(inputs))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning", "ignore:.*TorchScript.*")
def test_export_to_torchscript() -> None:
    """The TorchScript module computes what the module does."""
    module, inputs = fitted().eval(), torch.randn(1, 4)
    script = module.to_torchscript()
    torch.testing.assert_close(script(inputs), module(inputs))


@pytest.mark.parametrize("accelerator", ["tpu", "hpu"])
def test_accelerators_that_are_not_supported_are_one_error(accelerator: str) -> None:
    """The error names the argument and says what there is."""
    with pytest.raises(pl.MisconfigurationError, match=rf"accelerator='{accelerator}'.*not supported"):
        fitted(accelerator=accelerator)


@pytest.mark.parametrize("strategy", ["ddp_spawn", "fsdp", "deepspeed"])
def test_other_strategies(strategy: str) -> None:
    """Each strategy that the text names trains."""
    before = fitted(max_epochs=0)
    assert not torch.equal(fitted(strategy=strategy).layers[0].weight, before.layers[0].weight)
