"""The LightningModule by itself: an ordinary torch module that a trainer can attach itself to."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from modules import LightningModule


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layer(batch)
        return found


class Trainer:
    """What a module sees of a trainer; it does not pickle."""

    current_epoch = 3
    global_step = 40
    global_rank = 1
    local_rank = 2
    is_global_zero = True
    logger = "first"
    loggers = ("first", "second")

    def __init__(self) -> None:
        self.optimizers: list[Any] = ["sgd"]
        self.lr_scheduler_configs = [SimpleNamespace(scheduler="steps")]

    def __reduce__(self) -> Any:
        raise TypeError("a trainer does not travel")


@pytest.fixture
def attached() -> Net:
    """A module that a trainer uses."""
    module = Net()
    module.trainer = Trainer()
    module.__dict__["_log_sink"] = lambda *record: None
    return module


def through_a_pickle(module: Net) -> Net:
    found: Net = pickle.loads(pickle.dumps(module))
    return found


def through_torch(module: Net) -> Net:
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    found: Net = torch.load(buffer, weights_only=False)
    return found


@pytest.mark.parametrize(
    "log",
    [lambda module: module.log("a", 1.0), lambda module: module.log_dict({"a": 1.0, "b": 2.0})],
    ids=["log", "log_dict"],
)
def test_logging_without_a_trainer_warns_once(log: Callable[[Net], None]) -> None:
    """Without a trainer logging does nothing and says so once a module, at the line that called it."""
    module = Net()
    with pytest.warns(UserWarning, match=r"Net.log\(\) was called without a Trainer") as caught:
        log(module)
        log(module)
    assert [warning.filename for warning in caught] == [__file__]


def test_logging_reaches_the_sink_with_all_that_was_said(attached: Net) -> None:
    """What `log` and `log_dict` were called with goes to the trainer's sink, in one order."""
    records: list[tuple[Any, ...]] = []
    attached.__dict__["_log_sink"] = lambda *record: records.append(record)
    attached.log("loss", 0.5, True, on_step=False, sync_dist=True, batch_size=4, reduce_fx="max")
    attached.log_dict({"a": 1, "b": 2}, logger=False, rank_zero_only=True, add_dataloader_idx=False)
    bare = (False, False, None, None, "mean", False, None, False, None, None, True)
    assert records == [
        ("loss", 0.5, True, None, False, None, "max", True, None, True, 4, None, False),
        ("a", 1, *bare),
        ("b", 2, *bare),
    ]


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, through_a_pickle, through_torch])
def test_copies_are_without_the_trainer(duplicate: Callable[[Net], Net], attached: Net) -> None:
    """Copies and pickles have the weights and no trainer; the module itself keeps its own."""
    other = duplicate(attached)
    assert torch.equal(other.layer.weight, attached.layer.weight)
    with pytest.raises(RuntimeError, match=r"Net is not attached to a Trainer. Call trainer.fit\(module\)"):
        _ = other.trainer
    assert other.__dict__["_log_sink"] is None
    assert isinstance(attached.trainer, Trainer)
    assert attached.__dict__["_log_sink"] is not None


def test_a_compiled_module_can_be_copied(attached: Net) -> None:
    """`torch.nn.Module.compile` leaves something that does not pickle, which stays out as in torch."""
    attached.compile(backend="eager")
    assert through_a_pickle(attached)._compiled_call_impl is None


def test_the_trainer_is_no_part_of_the_module(attached: Net) -> None:
    """Neither state dict, submodules nor representation show the trainer."""
    bare = Net()
    assert list(attached.state_dict()) == list(bare.state_dict()) == ["layer.weight", "layer.bias"]
    assert [name for name, _ in attached.named_modules()] == ["", "layer"]
    assert repr(attached) == repr(bare)


def test_without_a_trainer_counters_are_zero() -> None:
    """Epoch, step and ranks are 0, and there are no loggers, before a trainer is there."""
    module = Net()
    counters = [module.current_epoch, module.global_step, module.global_rank, module.local_rank]
    assert counters == [0, 0, 0, 0]
    assert (module.logger, module.loggers) == (None, [])


def test_with_a_trainer_its_values_show(attached: Net) -> None:
    """The properties are the trainer's."""
    counters = [attached.current_epoch, attached.global_step, attached.global_rank, attached.local_rank]
    assert counters == [3, 40, 1, 2]
    assert (attached.logger, attached.loggers) == ("first", ["first", "second"])


def test_one_optimizer_comes_alone_and_several_in_a_list(attached: Net) -> None:
    """`optimizers` and `lr_schedulers` return the only one, or the list; without schedulers None."""
    assert (attached.optimizers(), attached.lr_schedulers()) == ("sgd", "steps")
    attached.trainer.optimizers.append("adam")
    attached.trainer.lr_scheduler_configs.append(SimpleNamespace(scheduler="plateau"))
    assert (attached.optimizers(), attached.lr_schedulers()) == (["sgd", "adam"], ["steps", "plateau"])
    attached.trainer.lr_scheduler_configs.clear()
    assert attached.lr_schedulers() is None


def test_only_rank_zero_prints(attached: Net, capsys: pytest.CaptureFixture[str]) -> None:
    """`print` prints without a trainer and on rank 0, and is silent elsewhere."""
    Net().print("alone")
    attached.print("first", "rank", sep="-")
    attached.trainer.is_global_zero = False
    attached.print("other rank")
    assert capsys.readouterr().out == "alone\nfirst-rank\n"


def test_device_and_type_are_those_of_the_weights() -> None:
    """`device` is where the first parameter or buffer is, `dtype` the first floating-point type."""
    module = Net()
    assert (module.device, module.dtype) == (torch.device("cpu"), torch.float32)
    assert module.double().dtype == torch.float64
    assert module.to("meta").device == torch.device("meta")

    class Buffered(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(1, dtype=torch.int64, device="meta"))

    assert (Buffered().device, Buffered().dtype) == (torch.device("meta"), torch.float32)
    assert LightningModule().device == torch.device("cpu")


def test_without_floating_point_weights_the_type_is_torchs_default() -> None:
    """`dtype` without parameters is torch's default type at the time."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert LightningModule().dtype == torch.float64
    finally:
        torch.set_default_dtype(before)


def test_freezing_stops_training_and_unfreezing_undoes_it() -> None:
    """Frozen, nothing needs a gradient and all is in eval mode; unfrozen, the contrary."""
    module = Net()
    for act, expected in ((module.freeze, False), (module.unfreeze, True)):
        act()
        assert {parameter.requires_grad for parameter in module.parameters()} == {expected}
        assert {item.training for item in module.modules()} == {expected}


def gradients(module: Net) -> torch.optim.Optimizer:
    """An optimizer of the weights alone, all gradients being 3."""
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    return torch.optim.SGD([module.layer.weight], lr=0.1)


@pytest.mark.parametrize(
    ("value", "algorithm", "expected"),
    [
        (1.0, None, 0.5),
        (1.0, "norm", 0.5),
        (1.0, "value", 1.0),
        (100.0, "norm", 3.0),
        (None, None, 3.0),
        (0, "norm", 3.0),
    ],
)
def test_clipping_is_torchs(value: float | None, algorithm: str | None, expected: float) -> None:
    """Gradients of the optimizer's parameters, and of no others, are clipped by norm or by value."""
    module = Net()
    for clip in (module.clip_gradients, module.configure_gradient_clipping):
        clip(gradients(module), value, algorithm)
        weight, bias = module.layer.weight.grad, module.layer.bias.grad
        assert weight is not None and bias is not None
        torch.testing.assert_close(weight, torch.full((2, 2), expected))
        assert bias.tolist() == [3.0, 3.0]


@pytest.mark.parametrize("value", [None, 1.0])
def test_unknown_ways_of_clipping_are_refused(value: float | None) -> None:
    """An algorithm that does not exist is an error, not clipping by norm."""
    module = Net()
    with pytest.raises(ValueError, match=r"gradient_clip_algorithm='norms'\).*\"norm\" or \"value\""):
        module.clip_gradients(gradients(module), value, "norms")


def test_predicting_is_forward_unless_overridden() -> None:
    """`predict_step` calls the module with the batch, however it is passed."""
    module, batch = Net(), torch.ones(3, 2)
    assert torch.equal(module.predict_step(batch, 0), module(batch))
    assert torch.equal(module.predict_step(batch=batch, batch_idx=0), module(batch))


@pytest.mark.parametrize(
    "name",
    [
        "training_step",
        "validation_step",
        "test_step",
        "configure_optimizers",
        "train_dataloader",
        "val_dataloader",
        "test_dataloader",
        "predict_dataloader",
    ],
)
def test_what_must_be_written_is_not_there(name: str) -> None:
    """Steps, optimizers and loaders that were not written cannot be called."""
    with pytest.raises(NotImplementedError):
        getattr(Net(), name)()


def test_default_hooks_do_what_torch_would(attached: Net) -> None:
    """Backward, zeroing, stepping and scheduling, not overridden, are torch's own calls."""
    optimizer = torch.optim.SGD(attached.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    before = attached.layer.bias.detach().clone()

    def closure() -> torch.Tensor:
        attached.optimizer_zero_grad(0, 0, optimizer)
        loss: torch.Tensor = attached(torch.ones(1, 2)).sum()
        attached.backward(loss)
        return loss

    attached.optimizer_step(0, 0, optimizer, closure)
    attached.optimizer_step(0, 0, optimizer, closure)
    assert torch.equal(attached.layer.bias, before - 2)
    attached.lr_scheduler_step(scheduler, None)
    for metric in (1.0, 2.0):
        attached.lr_scheduler_step(plateau, metric)
    assert optimizer.param_groups[0]["lr"] == 0.25


def test_default_data_hooks_return_the_batch() -> None:
    """Transfer hooks that are not overridden return the batch that they were given."""
    module, batch = Net(), object()
    assert module.on_before_batch_transfer(batch, 0) is batch
    assert module.transfer_batch_to_device(batch, torch.device("cpu"), 0) is batch
    assert module.on_after_batch_transfer(batch, 0) is batch
    assert module.configure_callbacks() == []


def test_gathering_alone_changes_nothing() -> None:
    """Without other ranks structures come back as they are; numbers become tensors."""
    net, tensor = Net(), torch.ones(2)
    found = net.all_gather({"a": tensor, "b": [3, (tensor,)], "c": "text"})
    assert found["a"] is tensor
    assert torch.equal(found["b"][0], torch.tensor(3))
    assert found["b"][1][0] is tensor
    assert found["c"] == "text"


def test_where_it_is_without_a_trainer() -> None:
    """On the CPU it is on no GPU, and there is no mesh."""
    assert (Net().on_gpu, Net().device_mesh) == (False, None)
