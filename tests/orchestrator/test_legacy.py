"""Older forms of arguments and hooks: they work and say so once; what is gone is refused."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import orchestrator as pl
from orchestrator import legacy
from orchestrator.callbacks import ModelCheckpoint
from orchestrator.legacy import modernize
from tests.orchestrator.groups import HALF_A_CPU
from tests.orchestrator.tiny import Tiny, Validated, loader, loss_of, quiet_trainer

KNOWN = frozenset(
    {
        "accelerator",
        "callbacks",
        "devices",
        "enable_checkpointing",
        "enable_model_summary",
        "enable_progress_bar",
        "limit_val_batches",
        "max_steps",
        "precision",
        "strategy",
        "use_distributed_sampler",
    }
)


@pytest.fixture(autouse=True)
def _untold(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nobody was told anything yet."""
    monkeypatch.setattr(legacy, "_told", set())
    yield


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ({"gpus": None}, {}),
        ({"gpus": 0}, {"accelerator": "cpu"}),
        ({"gpus": 4}, {"accelerator": "gpu", "devices": 4}),
        ({"gpus": -1}, {"accelerator": "gpu", "devices": -1}),
        ({"gpus": "-1"}, {"accelerator": "gpu", "devices": -1}),
        ({"gpus": "2"}, {"accelerator": "gpu", "devices": 2}),
        ({"gpus": "0,1"}, {"accelerator": "gpu", "devices": 2}),
        ({"gpus": [0, 1, 3]}, {"accelerator": "gpu", "devices": 3}),
        ({"gpus": 2, "accelerator": "gpu"}, {"accelerator": "gpu", "devices": 2}),
        ({"gpus": 2, "accelerator": "ddp"}, {"accelerator": "gpu", "devices": 2, "strategy": "ddp"}),
        ({"accelerator": "ddp", "gpus": 2}, {"accelerator": "gpu", "devices": 2, "strategy": "ddp"}),
        (
            {"accelerator": "ddp_cpu", "num_processes": 2},
            {"accelerator": "cpu", "devices": 2, "strategy": "ddp"},
        ),
        ({"gpus": 2, "num_processes": 2}, {"accelerator": "gpu", "devices": 2}),
        ({"distributed_backend": "ddp"}, {"strategy": "ddp"}),
        ({"precision": 16}, {"precision": "16-mixed"}),
        ({"precision": "16"}, {"precision": "16-mixed"}),
        ({"max_steps": None}, {"max_steps": -1}),
        ({"checkpoint_callback": False}, {"enable_checkpointing": False}),
        ({"progress_bar_refresh_rate": 0}, {"enable_progress_bar": False}),
        ({"progress_bar_refresh_rate": 20}, {}),
        ({"weights_summary": None}, {"enable_model_summary": False}),
        ({"weights_summary": "top"}, {"enable_model_summary": True}),
        ({"replace_sampler_ddp": False}, {"use_distributed_sampler": False}),
        ({"val_percent_check": 0.5}, {"limit_val_batches": 0.5}),
        ({"auto_lr_find": False, "flush_logs_every_n_steps": 100, "tpu_cores": None}, {}),
    ],
    ids=str,
)
def test_an_older_argument_means_what_it_meant(written: dict[str, Any], meant: dict[str, Any]) -> None:
    """Each becomes today's arguments, with a notice."""
    with pytest.warns(FutureWarning, match="is an older form"):
        assert modernize(written, KNOWN) == meant


def test_todays_arguments_are_left_alone() -> None:
    """Nothing is changed and nothing is said where nothing is old."""
    given = {"accelerator": "gpu", "devices": 2, "precision": "16-mixed", "max_steps": 5, "unknown": 1}
    assert modernize(given, KNOWN) == given


@pytest.mark.parametrize(
    ("written", "advice"),
    [
        ({"auto_lr_find": True}, r"LearningRateFinder\(\)"),
        ({"auto_scale_batch_size": "power"}, r"BatchSizeFinder\(\)"),
        ({"tpu_cores": 8}, "TPUs are not supported"),
        ({"stochastic_weight_avg": True}, "StochasticWeightAveraging"),
        ({"track_grad_norm": 2}, "grad_norm"),
        ({"weights_save_path": "x"}, r"ModelCheckpoint\(dirpath"),
        ({"terminate_on_nan": True}, "detect_anomaly"),
        ({"amp_backend": "apex"}, "16-mixed"),
        ({"early_stop_callback": True}, "EarlyStopping"),
        ({"truncated_bptt_steps": 3}, "manual optimization"),
    ],
    ids=str,
)
def test_what_has_no_counterpart_is_refused(written: dict[str, Any], advice: str) -> None:
    """The error names the argument and its value, and says what to write."""
    (name,) = written
    with pytest.raises(TypeError, match=rf"Trainer\({name}=.*this argument is gone\. .*{advice}"):
        pl.Trainer(logger=False, **written)


@pytest.mark.parametrize("value", [True, 1.5, "all", "1,x", [-1], -2])
def test_a_number_of_gpus_that_never_was_one_is_refused(value: Any) -> None:
    """The error names the argument and what to write today."""
    with pytest.raises(pl.MisconfigurationError, match=r"Trainer\(gpus=.*accelerator='gpu' and devices=N"):
        pl.Trainer(gpus=value)


def test_an_older_argument_does_not_overrule_a_newer_one() -> None:
    """Two arguments that say two things are refused, naming both."""
    with pytest.raises(pl.MisconfigurationError, match=r"gpus=2, devices=3\) say two things"):
        pl.Trainer(gpus=2, devices=3)
    with pytest.raises(pl.MisconfigurationError, match=r"gpus=2, accelerator='cpu'\) say two things"):
        pl.Trainer(gpus=2, accelerator="cpu")


def test_each_form_is_told_once() -> None:
    """The second use in a process says nothing; the warning points at the script."""
    with pytest.warns(FutureWarning) as told:
        pl.Trainer(logger=False, gpus=0)
    assert [Path(item.filename).name for item in told] == [Path(__file__).name]
    pl.Trainer(logger=False, gpus=0)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_checkpoint_callback_joins_the_callbacks() -> None:
    """`checkpoint_callback=` takes a callback too, as it once did."""
    saver, other = ModelCheckpoint(), pl.Callback()
    trainer = pl.Trainer(
        logger=False,
        checkpoint_callback=saver,
        callbacks=other,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    assert trainer.callbacks == [other, saver]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_run_is_resumed_by_the_older_argument(tmp_path: Path) -> None:
    """`resume_from_checkpoint=` is where fit, and nothing else, starts from."""
    first = quiet_trainer(max_epochs=1)
    first.fit(Tiny(), loader(8))
    first.save_checkpoint(tmp_path / "a.ckpt")
    second = quiet_trainer(max_epochs=3, resume_from_checkpoint=tmp_path / "a.ckpt")
    second.validate(Validated(), loader(4), verbose=False)
    assert second.ckpt_path is None
    second.fit(Tiny(), loader(8))
    assert (second.global_step, second.current_epoch) == (6, 3)


class Collects(Validated):
    """Keeps what the older hooks were given."""

    def __init__(self) -> None:
        super().__init__()
        self.got: list[tuple[str, Any]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"loss": loss_of(self.net, batch), "index": batch_idx}

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return loss_of(self.net, batch)

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        return {"index": batch_idx}

    def training_epoch_end(self, outputs: list[Any]) -> None:
        self.got.append(("train", outputs))
        self.log("mean_loss", torch.stack([item["loss"] for item in outputs]).mean())

    def validation_epoch_end(self, outputs: list[Any]) -> None:
        self.got.append(("val", outputs))
        if isinstance(outputs[0], Tensor):
            self.log("val_mean", torch.stack(outputs).mean())

    def test_epoch_end(self, outputs: list[Any]) -> None:
        self.got.append(("test", outputs))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_older_epoch_ends_get_all_outputs() -> None:
    """Each gets its epoch's outputs, without graphs, and may log."""
    module, trainer = Collects(), quiet_trainer(max_epochs=2)
    trainer.fit(module, loader(12), loader(8))
    trainer.test(module, loader(8), verbose=False)
    assert [stage for stage, _ in module.got] == ["val", "train", "val", "train", "test"]
    trained, validated, tested = module.got[1][1], module.got[0][1], module.got[4][1]
    assert [item["index"] for item in trained] == [0, 1, 2]
    assert not any(item["loss"].requires_grad for item in trained)
    assert len(validated) == 2 and tested == [{"index": 0}, {"index": 1}]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_epoch_end_logs_and_is_watched() -> None:
    """What an older hook logs is a metric of the epoch, which a checkpoint can watch."""
    module, trainer = Collects(), quiet_trainer()
    trainer.fit(module, loader(12), loader(8))
    losses = [item["loss"] for item in dict(module.got)["train"]]
    assert trainer.callback_metrics["mean_loss"] == torch.stack(losses).mean()
    assert trainer.callback_metrics["val_mean"] == torch.stack(dict(module.got)["val"]).mean()


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_several_loaders_give_a_list_each() -> None:
    """With several evaluation loaders the outputs are a list of lists."""
    module = Collects()
    quiet_trainer().validate(module, [loader(8), loader(4)], verbose=False)
    ((_, outputs),) = module.got
    assert [len(part) for part in outputs] == [2, 1]


def test_the_notice_of_a_hook_says_what_to_write() -> None:
    """It names the class, the hook, the step and today's hook."""
    with pytest.warns(FutureWarning) as told:
        quiet_trainer().validate(Collects(), loader(8), verbose=False)
    text = next(str(item.message) for item in told if "validation_epoch_end" in str(item.message))
    assert text.startswith("Collects.validation_epoch_end(outputs) is an older form.")
    assert {item.filename for item in told} == {__file__}
    assert "validation_step" in text and "on_validation_epoch_end()" in text


def test_nothing_is_kept_without_these_hooks() -> None:
    """A module of today gets no collector."""
    from orchestrator.epoch_outputs import collectors

    assert collectors(Validated()) == []


@pytest.mark.parametrize("name", ["training_step_end", "on_epoch_end", "on_pretrain_routine_start"])
@pytest.mark.parametrize("base", [Tiny, pl.Callback])
def test_a_hook_that_nobody_calls_is_refused(name: str, base: type) -> None:
    """A script must not run with a part of it silently left out."""
    kind = type("Old", (base,), {name: lambda self, *args: None})
    with pytest.raises(
        pl.MisconfigurationError, match=rf"Old\.{name}\(\) is a hook of older versions.*\. \w"
    ):
        if base is Tiny:
            quiet_trainer().fit(kind(), loader(8))
        else:
            quiet_trainer(kind())


@pytest.mark.ray
def test_older_forms_on_a_group(tmp_path: Path) -> None:
    """On two workers each rank's hook gets its own outputs, and the notice is given once, by the driver."""
    module = Collects()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        trainer = pl.Trainer(
            num_processes=2,
            accelerator="cpu",
            resources_per_worker=HALF_A_CPU,
            max_epochs=1,
            logger=False,
            checkpoint_callback=False,
            progress_bar_refresh_rate=0,
            default_root_dir=tmp_path,
            num_sanity_val_steps=0,
        )
        trainer.fit(module, loader(16), loader(8))
    forms = [
        str(item.message).partition(" is an older form")[0] for item in told if item.category is FutureWarning
    ]
    assert len(forms) == len(set(forms)) == 6
    assert [(stage, len(outputs)) for stage, outputs in module.got] == [("val", 1), ("train", 2)]
    assert trainer.callback_metrics.keys() >= {"mean_loss", "val_mean"}
