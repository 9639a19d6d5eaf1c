"""`LightningCLI` in a script: what is made of a command line, and what runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import orchestrator as pl
from orchestrator import LightningCLI
from orchestrator.callbacks import EarlyStopping, LearningRateMonitor
from orchestrator.cli import LightningArgumentParser, SaveConfigCallback
from tests.orchestrator.cli.parts import QUIET, Bare, Data, Net, WithCallables


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small matrices on many threads wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def make(*words: str, **options: Any) -> LightningCLI:
    """The objects of a command line without subcommands."""
    return LightningCLI(Net, Data, args=[*QUIET, *words], run=False, **options)


def test_arguments_become_objects() -> None:
    """With run=False nothing runs, and the script has trainer, module and data module."""
    cli = make("--model.width=3", "--data.batch_size=8", "--trainer.max_epochs=2")
    assert (cli.model.width, cli.datamodule.batch_size, cli.trainer.max_epochs) == (3, 8, 2)
    assert cli.trainer.global_step == 0
    assert cli.subcommand is None
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    assert cli.trainer.global_step == 4


def test_a_script_and_the_command_line_give_the_same_weights() -> None:
    """The command line adds nothing to the mathematics: the same seed, the same bits."""
    cli = LightningCLI(Net, Data, args=["fit", *QUIET, "--seed_everything=7"])
    pl.seed_everything(7)
    module = Net()
    pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, datamodule=Data())
    assert torch.equal(module.layer.weight, cli.model.layer.weight)


def test_hooks_run_around_the_subcommand() -> None:
    """before_fit and after_fit see the objects before and after training."""
    seen = []

    class Own(LightningCLI):
        def before_fit(self) -> None:
            seen.append(self.trainer.global_step)

        def after_fit(self) -> None:
            seen.append(self.trainer.global_step)

    Own(Net, Data, args=["fit", *QUIET])
    assert seen == [0, 4]


@pytest.mark.parametrize("subcommand", ["validate", "test", "predict"])
def test_other_subcommands_run(subcommand: str) -> None:
    """Each of the Trainer's entry points is a subcommand."""
    cli = LightningCLI(Net, Data, args=[subcommand, *QUIET])
    assert cli.subcommand == subcommand
    assert cli.trainer.global_step == 0
    logged = {"validate": ["val_loss"], "test": ["test_loss"], "predict": []}
    assert list(cli.trainer.callback_metrics) == logged[subcommand]


def test_links_hand_one_value_to_another_argument() -> None:
    """A subclass links arguments; the target follows the source."""

    class Own(LightningCLI):
        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            parser.link_arguments("data.batch_size", "model.width")
            parser.link_arguments("data.rows", "model.name", compute_fn=str, apply_on="instantiate")

    cli = Own(Net, Data, args=["--data.batch_size=5"], run=False)
    assert (cli.model.width, cli.model.name) == (5, "16")


def test_own_arguments_and_callbacks_are_added() -> None:
    """A subclass declares a callback under a name of its own, with other defaults, and a plain argument."""

    class Own(LightningCLI):
        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            parser.add_lightning_class_args(EarlyStopping, "stop")
            parser.set_defaults({"stop.monitor": "val_loss", "stop.patience": 7})
            parser.add_argument("--note", type=str, default="")

    cli = Own(Net, Data, args=[*QUIET, "--stop.patience=9", "--note=hello"], run=False)
    assert cli.config.note == "hello"
    (stop,) = [item for item in cli.trainer.callbacks if isinstance(item, EarlyStopping)]
    assert (stop.monitor, stop.patience) == ("val_loss", 9)


def test_classes_are_named_without_their_path() -> None:
    """Ready callbacks, optimizers and schedulers are known by name, and lists grow with `+=`."""
    cli = make(
        "--trainer.callbacks+=EarlyStopping",
        "--trainer.callbacks.monitor=val_loss",
        "--trainer.callbacks+=LearningRateMonitor",
    )
    kinds = [type(item) for item in cli.trainer.callbacks]
    assert kinds == [EarlyStopping, LearningRateMonitor, SaveConfigCallback]


def test_an_optimizer_replaces_the_modules() -> None:
    """--optimizer and --lr_scheduler are made of the module's parameters when training begins."""
    words = ["--optimizer=Adam", "--optimizer.lr=0.5", "--lr_scheduler=StepLR", "--lr_scheduler.step_size=1"]
    cli = LightningCLI(Bare, Data, args=["fit", *QUIET, *words])
    (optimizer,) = cli.trainer.optimizers
    assert isinstance(optimizer, torch.optim.Adam)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
    assert optimizer.param_groups[0]["params"][0] is cli.model.layer.weight


def test_a_plateau_scheduler_knows_its_metric() -> None:
    """ReduceLROnPlateau takes the name of the metric on the command line."""
    words = ["--optimizer=SGD", "--optimizer.lr=0.5", "--lr_scheduler=ReduceLROnPlateau"]
    cli = LightningCLI(Bare, Data, args=["fit", *QUIET, *words, "--lr_scheduler.monitor=val_loss"])
    assert cli.trainer.lr_scheduler_configs[0].monitor == "val_loss"


def test_replacing_a_modules_own_optimizer_is_said() -> None:
    """A configure_optimizers that is not used is mentioned once."""
    with pytest.warns(UserWarning, match=r"Net.configure_optimizers is not used, because --optimizer"):
        make("--optimizer=Adam")


def test_a_scheduler_without_optimizer_is_refused() -> None:
    """A scheduler alone has nothing to act on."""
    with pytest.raises(pl.MisconfigurationError, match="--lr_scheduler is given without --optimizer"):
        make("--lr_scheduler=StepLR", "--lr_scheduler.step_size=1")


def test_a_module_gets_callables() -> None:
    """An argument annotated as a callable is a class with some arguments filled in."""
    cli = LightningCLI(
        WithCallables, Data, args=["fit", *QUIET, "--model.optimizer=Adam", "--model.optimizer.lr=0.25"]
    )
    (optimizer,) = cli.trainer.optimizers
    assert isinstance(optimizer, torch.optim.Adam)
    assert optimizer.defaults["lr"] == 0.25


def test_an_optimizer_is_linked_to_the_module() -> None:
    """With link_to, the module gets class path and arguments, and its own configure_optimizers is used."""

    class Linked(Net):
        def __init__(self, optimizer_init: dict[str, Any]) -> None:
            super().__init__()
            self.optimizer_init = optimizer_init

    class Own(LightningCLI):
        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            parser.add_optimizer_args(torch.optim.Adam, nested_key="opt", link_to="model.optimizer_init")

    cli = Own(Linked, Data, args=[*QUIET, "--opt.lr=0.125"], run=False)
    assert cli.model.optimizer_init["class_path"] == "torch.optim.adam.Adam"
    assert cli.model.optimizer_init["init_args"]["lr"] == 0.125


def test_a_subclass_can_be_named() -> None:
    """In subclass mode the command line says which class, and gives that class's arguments."""
    cli = LightningCLI(
        Net,
        Data,
        subclass_mode_model=True,
        args=[*QUIET, "--model=tests.orchestrator.cli.parts.Bare", "--model.width=6"],
        run=False,
    )
    assert type(cli.model) is Bare
    assert cli.model.width == 6


def test_any_module_can_be_named() -> None:
    """Without classes, module and data are named by their paths; data may be left out."""
    cli = LightningCLI(args=[*QUIET, "--model=tests.orchestrator.cli.parts.Net"], run=False)
    assert type(cli.model) is Net
    assert cli.datamodule is None


def test_files_are_read_in_order(tmp_path: Path) -> None:
    """Later files win over earlier ones, and options over files."""
    (tmp_path / "a.yaml").write_text("model: {width: 5, name: a}\ndata: {rows: 8}\n")
    (tmp_path / "b.yaml").write_text("model: {name: b}\n")
    cli = make("--config=a.yaml", "--config=b.yaml", "--data.rows=12")
    assert (cli.model.width, cli.model.name, cli.datamodule.rows) == (5, "b", 12)


def test_a_file_may_speak_of_all_subcommands(tmp_path: Path) -> None:
    """One file before the subcommand configures several."""
    (tmp_path / "all.yaml").write_text("fit: {model: {width: 5}}\ntest: {model: {width: 6}}\n")
    assert LightningCLI(Net, Data, args=["--config=all.yaml", "test", *QUIET]).model.width == 6


def test_arguments_can_be_a_dictionary() -> None:
    """`args` takes a configuration instead of words."""
    cli = LightningCLI(Net, Data, run=False, args={"model": {"width": 9}, "trainer": {"logger": False}})
    assert cli.model.width == 9
    assert cli.trainer.loggers == []


def test_defaults_of_the_trainer_give_way() -> None:
    """trainer_defaults hold where the command line is silent; their callbacks are always added."""
    monitor = LearningRateMonitor()
    cli = make(trainer_defaults={"max_steps": 3, "max_epochs": 9, "callbacks": monitor})
    assert (cli.trainer.max_steps, cli.trainer.max_epochs) == (3, 1)
    assert monitor in cli.trainer.callbacks


def test_variables_stand_for_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """With default_env, ORCHESTRATOR_FIT__MODEL__WIDTH is --model.width, and what is typed wins."""
    monkeypatch.setenv("ORCHESTRATOR_FIT__MODEL__WIDTH", "5")
    monkeypatch.setenv("ORCHESTRATOR_FIT__MODEL__NAME", "variable")
    monkeypatch.setenv("ORCHESTRATOR_TRAINER_MAX_STEPS", "2")
    cli = LightningCLI(
        Net, Data, args=["fit", *QUIET, "--model.name=typed"], parser_kwargs={"default_env": True}
    )
    assert (cli.model.width, cli.model.name, cli.trainer.global_step) == (5, "typed", 2)
    assert LightningCLI(Net, Data, args=["fit", *QUIET], save_config_callback=None).model.width == 2


def test_a_wrong_variable_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A variable that stands for no argument is refused by its own name."""
    monkeypatch.setenv("ORCHESTRATOR_FIT__MODEL__WIDHT", "5")
    with pytest.raises(SystemExit):
        LightningCLI(Net, Data, args=["fit", *QUIET], parser_kwargs={"default_env": True})
    said = capsys.readouterr().err
    assert "Did you mean '--model.width'? (The environment says so: ORCHESTRATOR_FIT__MODEL__WIDHT.)" in said


def test_print_config_prints_a_file_that_can_be_used(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """--print_config prints the whole configuration and ends; given back, it means the same."""
    with pytest.raises(SystemExit) as ended:
        LightningCLI(Net, Data, args=["fit", "--model.width=11", "--print_config"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith("# orchestrator==")
    (tmp_path / "printed.yaml").write_text(printed)
    assert LightningCLI(Net, Data, args=["test", "--config=printed.yaml", *QUIET]).model.width == 11


def test_the_seed_is_set_and_recorded() -> None:
    """`true` becomes the seed that was used; `false` sets none."""
    assert make("--seed_everything=11").config.seed_everything == 11
    assert make("--seed_everything=false").config.seed_everything is False


def test_the_configuration_is_written_beside_the_run() -> None:
    """config.yaml lies in the run's folder, and running it again gives the same run."""
    words = [word for word in QUIET if "logger" not in word]
    LightningCLI(Net, Data, args=["fit", *words, "--model.width=3", "--seed_everything=5"])
    path = Path("lightning_logs/version_0/config.yaml")
    assert yaml.safe_load(path.read_text())["model"] == {"width": 3, "name": "net"}
    again = LightningCLI(Net, Data, args=["fit", f"--config={path}"])
    assert (again.model.width, again.config.fit.seed_everything) == (3, 5)
    assert Path("lightning_logs/version_1/config.yaml").read_text() == path.read_text()


def test_another_configuration_is_not_replaced() -> None:
    """In a folder that has one, another configuration goes beside it, with a warning; the same is left."""
    LightningCLI(Net, Data, args=["fit", *QUIET])
    LightningCLI(Net, Data, args=["fit", *QUIET])
    first = Path("config.yaml").read_text()
    with pytest.warns(
        UserWarning, match=r"config.yaml holds another configuration, so this run's is config-v1"
    ):
        LightningCLI(Net, Data, args=["fit", *QUIET, "--model.width=3"])
    assert Path("config.yaml").read_text() == first
    assert yaml.safe_load(Path("config-v1.yaml").read_text())["model"]["width"] == 3
    LightningCLI(Net, Data, args=["fit", *QUIET, "--model.width=4"], save_config_kwargs={"overwrite": True})
    assert yaml.safe_load(Path("config.yaml").read_text())["model"]["width"] == 4


def test_a_trial_run_and_none_write_no_configuration() -> None:
    """fast_dev_run leaves no file, and so does save_config_callback=None."""
    LightningCLI(Net, Data, args=["fit", *QUIET, "--trainer.fast_dev_run=1"])
    LightningCLI(Net, Data, args=["fit", *QUIET], save_config_callback=None)
    assert list(Path().iterdir()) == []


def test_a_callback_of_ones_own_sends_the_configuration_elsewhere() -> None:
    """save_config is called once, with the parser that can write the configuration."""
    seen = []

    class Own(SaveConfigCallback):
        def save_config(self, trainer: Any, pl_module: Any, stage: str) -> None:
            seen.append((stage, yaml.safe_load(self.parser.dump(self.config))["model"]["width"]))

    LightningCLI(
        Net,
        Data,
        args=["fit", *QUIET],
        save_config_callback=Own,
        save_config_kwargs={"save_to_log_dir": False},
    )
    assert seen == [("fit", 2)]
    assert not Path("config.yaml").exists()


@pytest.mark.ray
def test_on_a_group_the_same_comes_out() -> None:
    """Two workers: rank 0 writes the configuration, and the named optimizer trains the driver's module."""
    words = [word for word in QUIET if "logger" not in word]
    cli = LightningCLI(
        Bare, Data, args=["fit", *words, "--trainer.devices=2", "--optimizer=SGD", "--optimizer.lr=0.5"]
    )
    assert cli.trainer.global_step == 2
    pl.seed_everything(0, verbose=False)
    assert not torch.equal(cli.model.layer.weight, Bare().layer.weight)
    written = yaml.safe_load(Path("lightning_logs/version_0/config.yaml").read_text())
    assert written["optimizer"]["class_path"] == "torch.optim.SGD"
    assert written["optimizer"]["init_args"]["lr"] == 0.5


def test_only_known_classes_are_declared() -> None:
    """add_lightning_class_args takes the kinds of class that training knows."""
    with pytest.raises(
        pl.MisconfigurationError, match="this is no subclass of Trainer, Callback, LightningModule"
    ):
        LightningArgumentParser().add_lightning_class_args(dict, "x")


def test_two_optimizers_cannot_both_be_automatic() -> None:
    """Several optimizers that the CLI should configure are refused by their names."""

    class Own(LightningCLI):
        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            parser.add_optimizer_args(nested_key="one")
            parser.add_optimizer_args(nested_key="two")

    with pytest.raises(
        pl.MisconfigurationError, match="2 optimizers are to be configured automatically: one, two"
    ):
        Own(Net, Data, args=[], run=False)


@pytest.mark.extras
def test_callbacks_of_lightning_are_named_by_their_path() -> None:
    """Beside ours, with their own arguments."""
    pytest.importorskip("lightning")
    from lightning.pytorch.callbacks import EarlyStopping as Theirs

    path = "lightning.pytorch.callbacks.EarlyStopping"
    words = [
        f"--trainer.callbacks+={path}",
        "--trainer.callbacks.monitor=loss",
        "--trainer.callbacks.patience=4",
    ]
    cli = make(*words, "--trainer.callbacks+=LearningRateMonitor")
    theirs = next(item for item in cli.trainer.callbacks if isinstance(item, Theirs))
    assert (theirs.monitor, theirs.patience) == ("loss", 4)
    assert any(isinstance(item, LearningRateMonitor) for item in cli.trainer.callbacks)
