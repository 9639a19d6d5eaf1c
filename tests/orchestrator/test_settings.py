"""Every argument of the Trainer: what it may be, what it means when left out, and what an error says."""

from __future__ import annotations

import inspect
import math
import os
import pickle
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import orchestrator as pl
from orchestrator.callbacks import EarlyStopping, ModelCheckpoint
from orchestrator.errors import MisconfigurationError
from orchestrator.loggers import CSVLogger, TensorBoardLogger
from orchestrator.loggers.dummy import DummyLogger
from orchestrator.settings import Settings
from orchestrator.strategies import DDPStrategy, FSDPStrategy, SingleDeviceStrategy


def settings(**arguments: Any) -> Settings:
    """The settings of a Trainer with these arguments."""
    return pl.Trainer(**{"logger": False, "accelerator": "cpu", **arguments}).settings


DEFAULTS = {
    "accelerator": "auto",
    "strategy": "auto",
    "devices": "auto",
    "num_nodes": 1,
    "precision": "32-true",
    "fast_dev_run": 0,
    "max_epochs": None,
    "min_epochs": None,
    "max_steps": -1,
    "min_steps": None,
    "max_time": None,
    "limit_train_batches": None,
    "limit_val_batches": None,
    "limit_test_batches": None,
    "limit_predict_batches": None,
    "overfit_batches": 0.0,
    "val_check_interval": 1.0,
    "check_val_every_n_epoch": 1,
    "reload_dataloaders_every_n_epochs": 0,
    "num_sanity_val_steps": 2,
    "log_every_n_steps": 50,
    "accumulate_grad_batches": 1,
    "gradient_clip_val": None,
    "gradient_clip_algorithm": None,
    "inference_mode": True,
    "use_distributed_sampler": True,
    "pad_uneven": False,
    "join_uneven": False,
    "enable_checkpointing": True,
    "enable_progress_bar": True,
    "enable_model_summary": True,
    "enable_autolog_hparams": True,
    "barebones": False,
    "resources_per_worker": None,
    "threads_per_worker": None,
    "spares": 0,
    "max_failures": 3,
    "replacement_timeout_s": 300.0,
    "sync_batchnorm": False,
    "deterministic": False,
    "benchmark": None,
    "detect_anomaly": False,
    "compile": None,
    "resume": None,
    "ledger": False,
    "start_timeout_s": 60.0,
    "collective_timeout_s": 1800.0,
    "autopsy_after_s": 10.0,
}

ACCEPTED: list[tuple[str, Any, Any]] = [
    ("accelerator", "cpu", "cpu"),
    ("strategy", "single", "single"),
    ("strategy", "ddp", "ddp"),
    ("strategy", "ddp_find_unused_parameters_true", "ddp"),
    ("strategy", "ddp_find_unused_parameters_false", "ddp"),
    ("strategy", "single_device", "single"),
    ("strategy", "ddp_spawn", "ddp"),
    ("strategy", "ddp_fork_find_unused_parameters_false", "ddp"),
    ("strategy", "ddp_notebook_find_unused_parameters_true", "ddp"),
    ("strategy", "fsdp", "fsdp"),
    ("strategy", DDPStrategy(static_graph=True), "ddp"),
    ("strategy", SingleDeviceStrategy(), "single"),
    ("strategy", FSDPStrategy(), "fsdp"),
    ("accelerator", "CPU", "cpu"),
    ("devices", "2", 2),
    ("devices", 1, 1),
    ("devices", "1", 1),
    ("devices", -1, "auto"),
    ("devices", "-1", "auto"),
    ("precision", 64, "64-true"),
    ("precision", "64", "64-true"),
    ("precision", "64-true", "64-true"),
    ("precision", "16-true", "16-true"),
    ("precision", "bf16-true", "bf16-true"),
    ("precision", 32, "32-true"),
    ("precision", "32", "32-true"),
    ("precision", None, "32-true"),
    ("precision", "bf16", "bf16-mixed"),
    ("precision", "bf16-mixed", "bf16-mixed"),
    ("max_time", "01:00:00:30", timedelta(days=1, seconds=30)),
    ("max_time", {"hours": 2}, timedelta(hours=2)),
    ("max_time", timedelta(minutes=3), timedelta(minutes=3)),
    ("fast_dev_run", True, 1),
    ("fast_dev_run", 3, 3),
    ("max_epochs", 0, 0),
    ("max_epochs", -1, -1),
    ("min_epochs", 0, 0),
    ("max_steps", 0, 0),
    ("min_steps", 7, 7),
    ("limit_train_batches", 1, 1),
    ("limit_train_batches", 1.0, 1.0),
    ("limit_val_batches", 0, 0),
    ("limit_test_batches", 0.25, 0.25),
    ("limit_predict_batches", 10.0, 10),
    ("val_check_interval", 0.25, 0.25),
    ("val_check_interval", 1, 1),
    ("val_check_interval", None, 1.0),
    ("val_check_interval", 3.0, 3),
    ("val_check_interval", "01:00:00:30", timedelta(days=1, seconds=30)),
    ("val_check_interval", {"minutes": 2}, timedelta(seconds=120)),
    ("val_check_interval", timedelta(seconds=5), timedelta(seconds=5)),
    ("overfit_batches", 2, 2),
    ("overfit_batches", 0.5, 0.5),
    ("num_sanity_val_steps", None, 2),
    ("num_sanity_val_steps", -1, -1),
    ("num_sanity_val_steps", 0, 0),
    ("log_every_n_steps", None, 50),
    ("log_every_n_steps", 1, 1),
    ("gradient_clip_val", 0, 0),
    ("gradient_clip_val", 0.5, 0.5),
    ("gradient_clip_algorithm", "value", "value"),
    ("enable_checkpointing", None, True),
    ("enable_checkpointing", False, False),
    ("resources_per_worker", {"GPU": 0.5, "CPU": 2}, (("CPU", 2.0), ("GPU", 0.5))),
    ("threads_per_worker", 3, 3),
    ("deterministic", None, False),
    ("deterministic", "warn", "warn"),
    ("benchmark", False, False),
    ("compile", False, None),
    ("compile", True, {}),
    ("compile", {"fullgraph": True}, {"fullgraph": True}),
    ("start_timeout_s", 1, 1),
    ("collective_timeout_s", 7200, 7200),
    ("autopsy_after_s", None, None),
    ("autopsy_after_s", 60, 60),
]

_WHOLE = [-2, 1.0, 2.5, True, "3", [1]]
_SHARE = [-1, -0.5, math.nan, math.inf, 1.5, True, "all"]
REFUSED: dict[str, tuple[list[Any], str]] = {
    "accelerator": (["tpu", "HPU", "cpus", None, 1], "Use one of auto, cpu, gpu, cuda, mps."),
    "strategy": (
        ["ddpp", "ddp_find_unused_parameters", None, 3],
        "Use 'auto', 'single', 'ddp', 'fsdp', 'deepspeed', 'elastic', or one of orchestrator.strategies, "
        "such as DDPStrategy(...).",
    ),
    "devices": (
        [0, -2, True, 1.5, "0", "two", [], "a,b", [-1], [True], None],
        "Use a whole number of at least 1, 'auto', or on GPUs a list of their numbers like [0, 1].",
    ),
    "deterministic": (["yes", 2], "Use True, False or 'warn'."),
    "benchmark": ([1, "yes"], "Use True or False."),
    "compile": (["inductor", 1], "Use True, False, or a dictionary"),
    "sync_batchnorm": ([None, 0], "Use True or False."),
    "resume": ([True, "last"], "Use 'auto' or None"),
    "ledger": ([None, 1], "Use True or False."),
    "detect_anomaly": ([None, 0], "Use True or False."),
    "num_nodes": ([*_WHOLE, 0, None], "Use a whole number of at least 1."),
    "precision": (
        ["65", "fp16", 4, 32.0, True, [32]],
        "Use 64, 32, 16, 'bf16', 8, or one of",
    ),
    "fast_dev_run": ([-1, 1.0, "yes", None], "Use True, False, or a number of batches."),
    "max_epochs": (_WHOLE, "Use a whole number of at least -1 or None."),
    "min_epochs": ([*_WHOLE, -1], "Use a whole number of at least 0 or None."),
    "max_steps": (_WHOLE, "Use a whole number of at least -1."),
    "min_steps": ([*_WHOLE, -1], "Use a whole number of at least 0 or None."),
    "max_time": (["1:00", "0:25:00:00", {"hour": 1}, 60, timedelta(seconds=-1)], "as 'DD:HH:MM:SS'."),
    "limit_train_batches": (_SHARE, "whole number of batches|a share from 0.0 to 1.0"),
    "limit_val_batches": (_SHARE, "whole number of batches|a share from 0.0 to 1.0"),
    "limit_test_batches": (_SHARE, "whole number of batches|a share from 0.0 to 1.0"),
    "limit_predict_batches": (_SHARE, "whole number of batches|a share from 0.0 to 1.0"),
    "val_check_interval": (
        [0, 0.0, -1, -0.5, 1.5, True, "1", "1:00", "00:25:00:00", {"foo": 1}, {"seconds": -1}, math.nan],
        "'DD:HH:MM:SS'.",
    ),
    "overfit_batches": (_SHARE, "whole number of batches|a share from 0.0 to 1.0"),
    "reload_dataloaders_every_n_epochs": ([*_WHOLE, -1, None], "Use a whole number of at least 0."),
    "check_val_every_n_epoch": ([*_WHOLE, 0], "Use a whole number of at least 1 or None."),
    "num_sanity_val_steps": (_WHOLE, "Use a whole number of at least -1 or None."),
    "log_every_n_steps": ([*_WHOLE, 0], "Use a whole number of at least 1 or None."),
    "accumulate_grad_batches": ([*_WHOLE, 0, None], "Use a whole number of at least 1."),
    "gradient_clip_val": ([-1, math.nan, True, "0.5"], "Use a number of at least 0, or None."),
    "gradient_clip_algorithm": (["norms", 2], "Use 'norm' or 'value'."),
    "inference_mode": ([None, 1, "no"], "Use True or False."),
    "use_distributed_sampler": ([None, 0], "Use True or False."),
    "pad_uneven": ([None, 0], "Use True or False."),
    "join_uneven": ([None, 0], "Use True or False."),
    "enable_checkpointing": ([1, "yes"], "Use True or False."),
    "enable_progress_bar": ([1, "yes"], "Use True or False."),
    "enable_model_summary": ([1, "yes"], "Use True or False."),
    "enable_autolog_hparams": ([None, 1], "Use True or False."),
    "barebones": ([None, 1], "Use True or False."),
    "default_root_dir": ([3, ["runs"]], "Use a path."),
    "resources_per_worker": (
        [{"CPU": -1}, {"CPU": "1"}, {1: 1}, {"CPU": math.nan}, 2],
        "Use a dictionary like {'CPU': 1, 'GPU': 0.5}.",
    ),
    "threads_per_worker": ([*_WHOLE, 0], "Use a whole number of at least 1 or None."),
    "spares": ([-1, 1.5, True, "one", None], "Use a whole number of at least 0."),
    "max_failures": ([-2, 1.5, True, "all"], "Use a whole number of at least -1 or None."),
    "replacement_timeout_s": (
        [0, -1.0, True, "1 min", float("inf"), None],
        "Use a number of seconds above 0.",
    ),
    "start_timeout_s": ([0, -1, math.nan, math.inf, True, None, "60"], "Use a number of seconds above 0."),
    "collective_timeout_s": ([0, -1, math.nan, math.inf, True, None], "Use a number of seconds above 0."),
    "autopsy_after_s": ([0, -1, math.inf, True, "10"], "Use a number of seconds above 0 or None."),
}


def test_every_argument_has_its_documented_default() -> None:
    """What a Trainer without arguments does is written down here."""
    found = pl.Trainer(logger=False).settings
    assert {name: getattr(found, name) for name in DEFAULTS} == DEFAULTS
    assert found.default_root_dir == os.getcwd()


def test_the_lists_of_this_file_are_complete() -> None:
    """Every argument of the Trainer that is a setting has a default and a refused value in this file."""
    objects = {
        "callbacks",
        "logger",
        "placement_group",
        "plugins",
        "preemption_notice",
        "profiler",
        "run_config",
        "scaling_config",
    }
    names = set(inspect.signature(pl.Trainer).parameters) - objects - {"unknown"}
    assert names == DEFAULTS.keys() | {"default_root_dir"}
    assert names == REFUSED.keys()


def test_every_argument_is_documented() -> None:
    """The Trainer's docstring has a line for each argument, and for no other."""
    documented = re.findall(r"^ {8}(\w+): ", pl.Trainer.__doc__ or "", flags=re.MULTILINE)
    names = [name for name in inspect.signature(pl.Trainer).parameters if name != "unknown"]
    assert documented[: len(names)] == names


@pytest.mark.parametrize(("name", "given", "expected"), ACCEPTED)
def test_a_value_means_what_it_says(name: str, given: Any, expected: Any) -> None:
    """Each accepted form of an argument becomes one setting."""
    found = getattr(settings(**{name: given}), name)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("name", "value", "advice"),
    [(name, value, advice) for name, (refused, advice) in REFUSED.items() for value in refused],
)
def test_a_wrong_value_is_refused_with_advice(name: str, value: Any, advice: str) -> None:
    """The error names the argument as it was written, its value, and what to write instead."""
    with pytest.raises(MisconfigurationError) as error:
        settings(**{name: value})
    text = str(error.value)
    assert text.startswith(f"Trainer({name}={value!r})")
    alternatives = advice.split("|")
    assert any(alternative in text for alternative in alternatives)


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("accelerator", "cpuu", "cpu"),
        ("strategy", "dpp", "ddp"),
        ("precision", "bf16-mix", "bf16-mixed"),
        ("gradient_clip_algorithm", "vlaue", "value"),
    ],
)
def test_a_misspelt_choice_is_corrected(name: str, value: str, meant: str) -> None:
    """The error about an unknown choice says which one was probably meant."""
    with pytest.raises(MisconfigurationError, match=f"Did you mean '{meant}'"):
        settings(**{name: value})


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("max_epoch", "max_epochs"),
        ("maxsteps", "max_steps"),
        ("accumulate_gradient_batches", "accumulate_grad_batches"),
        ("gradient_clip_value", "gradient_clip_val"),
        ("check_val_every_epoch", "check_val_every_n_epoch"),
        ("callback", "callbacks"),
        ("log_every_n_step", "log_every_n_steps"),
        ("limit_training_batches", "limit_train_batches"),
        ("enable_progressbar", "enable_progress_bar"),
    ],
)
def test_a_misspelt_argument_names_the_one_that_was_meant(name: str, meant: str) -> None:
    """An argument that does not exist is a TypeError with the nearest that does."""
    with pytest.raises(TypeError, match=rf"Trainer has no argument '{name}'\. Did you mean '{meant}'\?"):
        pl.Trainer(**{name: 1})


def test_an_argument_like_no_other_lists_them_all() -> None:
    """Where nothing is near, the error lists the arguments there are."""
    with pytest.raises(TypeError, match=r"no argument 'zzz'\. It has accelerator, strategy, devices"):
        pl.Trainer(zzz=1)


def test_arguments_are_given_by_name() -> None:
    """The Trainer takes no positional arguments."""
    with pytest.raises(TypeError):
        pl.Trainer("cpu")  # type: ignore[misc]


def test_validation_that_counts_over_epochs_needs_a_number_of_batches() -> None:
    """check_val_every_n_epoch=None goes with a number of batches, not with a share of an epoch."""
    with pytest.raises(MisconfigurationError, match=r"check_val_every_n_epoch=None, val_check_interval=0\.5"):
        settings(check_val_every_n_epoch=None, val_check_interval=0.5)
    assert settings(check_val_every_n_epoch=None, val_check_interval=5).val_check_interval == 5


def test_fast_dev_run_sets_what_it_says() -> None:
    """fast_dev_run=n limits everything to n batches and leaves out sanity check, checkpoints and logs."""
    trainer = pl.Trainer(
        fast_dev_run=3, max_epochs=50, val_check_interval=0.1, num_sanity_val_steps=2, logger=True
    )
    found = trainer.settings
    limits = [getattr(found, f"limit_{kind}_batches") for kind in ("train", "val", "test", "predict")]
    assert limits == [3, 3, 3, 3]
    assert (found.max_epochs, found.max_steps, found.num_sanity_val_steps) == (1, 3, 0)
    assert (found.val_check_interval, found.check_val_every_n_epoch) == (1.0, 1)
    assert [type(item) for item in trainer.loggers] == [DummyLogger]
    assert trainer.checkpoint_callbacks == []
    assert trainer.fast_dev_run is True


def test_the_strategys_long_names_carry_an_option() -> None:
    """The names that Lightning has for unused parameters are ddp with that option, and ddp alone has none."""
    found = [
        settings(strategy=name).strategy_spec
        for name in ("ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false")
    ]
    assert found == [DDPStrategy(find_unused_parameters=unused) for unused in (False, True, False)]


def test_paths_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """default_root_dir may be a path object, relative, or begin with the home directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert settings(default_root_dir="runs").default_root_dir == str(tmp_path / "runs")
    assert settings(default_root_dir=tmp_path / "a").default_root_dir == str(tmp_path / "a")
    assert settings(default_root_dir="~/b").default_root_dir == str(tmp_path / "home" / "b")
    with pytest.raises(MisconfigurationError, match=r"s3://bucket/runs.*only local paths"):
        settings(default_root_dir="s3://bucket/runs")


def test_settings_travel() -> None:
    """Settings cannot be changed, and a pickled copy is equal."""
    found = settings(resources_per_worker={"CPU": 1}, max_epochs=3)
    assert pickle.loads(pickle.dumps(found)) == found
    with pytest.raises(AttributeError):
        found.max_epochs = 4  # type: ignore[misc]


# ---------------------------------------------------------------- objects


def test_loggers_may_be_left_out_one_or_several(tmp_path: Path) -> None:
    """logger takes True, False, one logger or a list, and refuses anything else."""
    one, two = CSVLogger(tmp_path), TensorBoardLogger(tmp_path)
    assert pl.Trainer(logger=one).loggers == [one]
    assert pl.Trainer(logger=[one, two]).loggers == [one, two]
    assert pl.Trainer(logger=[]).loggers == pl.Trainer(logger=False).loggers == []
    assert [type(item) for item in pl.Trainer(default_root_dir=tmp_path).loggers] == [TensorBoardLogger]
    for wrong in ("csv", [one, "csv"], CSVLogger):
        with pytest.raises(MisconfigurationError, match=r"Trainer\(logger=.* Use True, False, a Logger"):
            pl.Trainer(logger=wrong)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_callbacks_are_ordered_and_checked() -> None:
    """Callbacks keep their order, those that save come last; classes and strangers are refused."""
    saves, stops, other = ModelCheckpoint(), EarlyStopping("x"), pl.Callback()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    assert pl.Trainer(**quiet, callbacks=[saves, stops, other]).callbacks == [stops, other, saves]
    assert pl.Trainer(**quiet, callbacks=other, enable_checkpointing=False).callbacks == [other]
    with pytest.raises(MisconfigurationError, match="Give an instance, not the class"):
        pl.Trainer(logger=False, callbacks=[EarlyStopping])  # type: ignore[list-item]
    with pytest.raises(MisconfigurationError, match=r"has 3, which is not a callback\. Subclass"):
        pl.Trainer(logger=False, callbacks=[3])  # type: ignore[list-item]


def test_two_callbacks_need_two_state_keys() -> None:
    """Callbacks with one state key would overwrite each other's state: refused, naming the key."""
    with pytest.raises(MisconfigurationError, match="several callbacks with the state key"):
        pl.Trainer(logger=False, callbacks=[EarlyStopping("x"), EarlyStopping("x", patience=9)])
    trainer = pl.Trainer(
        logger=False, enable_checkpointing=False, callbacks=[EarlyStopping("x"), EarlyStopping("y")]
    )
    assert len(trainer.early_stopping_callbacks) == 2


def test_checkpointing_is_on_once() -> None:
    """A ModelCheckpoint is added unless there is one or none is wanted; both at once are refused."""
    assert [type(item) for item in pl.Trainer(logger=False).checkpoint_callbacks] == [ModelCheckpoint]
    given = ModelCheckpoint()
    assert pl.Trainer(logger=False, callbacks=given).checkpoint_callbacks == [given]
    assert pl.Trainer(logger=False, enable_checkpointing=False).checkpoint_callback is None
    with pytest.raises(MisconfigurationError, match="Leave one of them out"):
        pl.Trainer(logger=False, enable_checkpointing=False, callbacks=given)


@pytest.mark.parametrize("kind", ["epochs", "steps"])
def test_training_is_not_to_be_longer_than_its_end(kind: str) -> None:
    """A least number above the greatest is refused; without a greatest one, any will do."""
    with pytest.raises(MisconfigurationError, match=rf"Trainer\(min_{kind}=3, max_{kind}=2\)"):
        pl.Trainer(**{f"min_{kind}": 3, f"max_{kind}": 2})
    for most in (3, -1):
        assert getattr(pl.Trainer(**{f"min_{kind}": 3, f"max_{kind}": most}), f"min_{kind}") == 3
