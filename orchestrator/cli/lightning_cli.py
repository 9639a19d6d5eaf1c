"""`LightningCLI`: a script's command line, made from the classes that it trains.

``LightningCLI(Model, Data)`` is the whole script: ``python train.py fit --model.width=64 --config run.yaml``.
The configuration that was used is written beside the run's checkpoints and logs. Everything is checked
before anything is made: a wrong argument ends the program with status 2 and one line that says what is near
it. What the classes raise while they are made, and what training raises, passes through.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from jsonargparse import ActionConfigFile, Namespace  # type: ignore[attr-defined]  # offers it unlisted

from modules.datamodule import LightningDataModule
from modules.module import LightningModule
from modules.rng import seed_everything
from orchestrator import from_environment
from orchestrator.callbacks.callback import Callback
from orchestrator.cli import ready_classes, variables
from orchestrator.cli.any_kind import ANY_DATAMODULE, ANY_MODULE
from orchestrator.cli.optimizer_arguments import ConfiguredOptimizers
from orchestrator.cli.parser import AUTOMATIC, LightningArgumentParser, class_path
from orchestrator.cli.save_config import SaveConfigCallback
from orchestrator.errors import MisconfigurationError
from orchestrator.hooks import overrides
from orchestrator.trainer import Trainer

ArgsType = Sequence[str] | Mapping[str, Any] | Namespace | None
"""What `LightningCLI(args=...)` takes: options as a list, or a configuration as a dictionary."""


class LightningCLI:
    """Parses the command line, makes trainer, module and data module, and runs what was asked for.

    Subclass it to add arguments (`add_arguments_to_parser`) and to act around a run (`before_fit`,
    `after_fit`, `before_test`, ...).

    Args:
        model_class: The module's class, or a function annotated as returning one. None lets the command line
            name any (``--model=path.of.Class``).
        datamodule_class: The data module's, likewise; None adds ``--data`` only where `model_class` is None
            too, or `subclass_mode_data`.
        save_config_callback: Writes the configuration beside the run; None writes none.
        save_config_kwargs: Its arguments, such as ``{"overwrite": True}``.
        trainer_class: The Trainer's class, or a function that returns one.
        trainer_defaults: Arguments of the Trainer, where the command line says nothing. Callbacks among them
            are always added.
        seed_everything_default: The seed; True takes that of an earlier call, else 0; False sets none.
        parser_kwargs: Arguments of the parser; by subcommand, where the keys are subcommands. ``default_env``
            reads environment variables that start with ``env_prefix`` (``ORCHESTRATOR``).
        parser_class: The parser's class.
        subclass_mode_model: Let the command line name a subclass of `model_class`.
        subclass_mode_data: The same for `datamodule_class`.
        args: Used instead of `sys.argv`: a list of arguments, or a dictionary or namespace of them.
        run: Run the subcommand. With False there are no subcommands: objects are made, and the script goes
            on with `trainer`, `model` and `datamodule`.
        auto_configure_optimizers: Offer ``--optimizer`` and ``--lr_scheduler``, which replace the module's
            ``configure_optimizers``.
        load_from_checkpoint_support: Accepted, without effect: a checkpoint never names a class to import.
            Arguments that are objects are given: ``load_from_checkpoint(path, encoder=...)``; or all is made
            again from the saved configuration with ``run=False``.

    Attributes:
        parser: The parser; the subcommands' parsers are behind it.
        config: What was asked for, as values.
        config_init: The same, as objects.
        model: The module.
        datamodule: The data module, or None.
        trainer: The trainer.
        subcommand: What was run, or None.

    Raises:
        SystemExit: The command line is wrong (status 2), or asked for help (0).
        MisconfigurationError: Arguments of this constructor, or of the Trainer, cannot work.
    """

    def __init__(
        self,
        model_class: Callable[..., LightningModule] | None = None,
        datamodule_class: Callable[..., LightningDataModule] | None = None,
        save_config_callback: type[SaveConfigCallback] | None = SaveConfigCallback,
        save_config_kwargs: dict[str, Any] | None = None,
        trainer_class: Callable[..., Trainer] = Trainer,
        trainer_defaults: dict[str, Any] | None = None,
        seed_everything_default: bool | int = True,
        parser_kwargs: dict[str, Any] | None = None,
        parser_class: type[LightningArgumentParser] = LightningArgumentParser,
        subclass_mode_model: bool = False,
        subclass_mode_data: bool = False,
        args: ArgsType = None,
        run: bool = True,
        auto_configure_optimizers: bool = True,
        load_from_checkpoint_support: bool = True,
    ) -> None:
        self.model_class = model_class or ANY_MODULE
        self.datamodule_class = datamodule_class or ANY_DATAMODULE
        self.subclass_mode_model = model_class is None or subclass_mode_model
        self.subclass_mode_data = datamodule_class is None or subclass_mode_data
        self._offers_data = datamodule_class is not None or self.subclass_mode_model or subclass_mode_data
        self.save_config_callback = save_config_callback
        self.save_config_kwargs = save_config_kwargs or {}
        self.trainer_class = trainer_class
        self.trainer_defaults = trainer_defaults or {}
        self.seed_everything_default = seed_everything_default
        self.parser_class = parser_class
        self.auto_configure_optimizers = auto_configure_optimizers
        ready_classes.load()
        self.subcommand: str | None = None
        self._parsers: dict[str, LightningArgumentParser] = {}
        self._method_arguments: dict[str, list[str]] = {}
        self.setup_parser(run, parser_kwargs or {}, args)
        self.config = self.parse_arguments(self.parser, args)
        self.subcommand = self.config["subcommand"] if run else None
        self._parser_in_use().refuse_options_of_anything(
            self.config if self.subcommand is None else self.config[self.subcommand]
        )
        self._seed()
        self.before_instantiate_classes()
        self.instantiate_classes()
        if self.subcommand is not None:
            self._run_subcommand(self.subcommand)

    # ---------------------------------------------------------------- the parser

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Return a new parser, without arguments; `kwargs` are its constructor's."""
        kwargs = {name: value for name, value in kwargs.items() if name not in ("default_env", "env_prefix")}
        kwargs.setdefault("dump_header", [f"orchestrator=={_version()}"])
        parser = self.parser_class(**kwargs)
        parser.explains = True
        parser.add_argument(
            "-c", "--config", action=ActionConfigFile, help="A file of arguments; later ones win. Repeatable."
        )
        return parser

    def setup_parser(self, add_subcommands: bool, parser_kwargs: dict[str, Any], args: ArgsType) -> None:
        """Make the parser, with its subcommands or without."""
        by_subcommand = {name: parser_kwargs[name] for name in self.subcommands() if name in parser_kwargs}
        own = {} if by_subcommand else parser_kwargs
        self._reads_variables = {
            name: bool(kwargs.get("default_env")) for name, kwargs in by_subcommand.items()
        }
        self._reads_variables[""] = bool(own.get("default_env"))
        self._prefix = str(own.get("env_prefix", variables.PREFIX))
        self.parser = self.init_parser(**{key: value for key, value in own.items() if key != "print_config"})
        if not add_subcommands:
            self._add_arguments(self.parser)
            return
        given = sys.argv[1:] if args is None else args if isinstance(args, (list, tuple)) else []
        asked = given[0] if given and given[0] in self.subcommands() else None
        actions = self.parser.add_subcommands(required=True)
        for name, skipped in self.subcommands().items():
            method = getattr(self.trainer_class, name, None) or getattr(Trainer, name)
            summary = (method.__doc__ or name).strip().partition("\n")[0]
            parser = self.init_parser(**by_subcommand.get(name, own))
            if asked in (None, name):  # else no file before the subcommand can speak of the others
                self._add_arguments(parser)
                added = parser.add_method_arguments(
                    self.trainer_class if isinstance(self.trainer_class, type) else Trainer,
                    name,
                    skip=set(skipped),
                )
                self._method_arguments[name] = list(added)
            self._parsers[name] = parser
            actions.add_subcommand(name, parser, help=summary)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the Trainer's methods that can be run, each with the arguments that are not offered."""
        return {
            "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule"},
            "validate": {"model", "dataloaders", "datamodule"},
            "test": {"model", "dataloaders", "datamodule"},
            "predict": {"model", "dataloaders", "datamodule"},
        }

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Declare seed, Trainer, module and data module."""
        parser.add_argument(
            "--seed_everything",
            type=bool | int,
            default=self.seed_everything_default,
            help="The seed of all random numbers; true takes the environment's, else 0; false sets none.",
        )
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        kinds = {name: str(kind) for name, kind in Trainer.__init__.__annotations__.items()}
        known = {name: kind for name, kind in kinds.items() if name not in ("self", "unknown", "return")}
        defaults = {**from_environment.read(os.environ, known), **self.trainer_defaults}
        parser.set_defaults(
            {f"trainer.{name}": value for name, value in defaults.items() if name != "callbacks"}
        )
        parser.add_lightning_class_args(self.model_class, "model", subclass_mode=self.subclass_mode_model)
        if self._offers_data:
            parser.add_lightning_class_args(
                self.datamodule_class,
                "data",
                subclass_mode=self.subclass_mode_data,
                required=not self.subclass_mode_data,
            )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Override to declare arguments of your own, link some together, or set defaults."""

    def _add_arguments(self, parser: LightningArgumentParser) -> None:
        self.add_core_arguments_to_parser(parser)
        self.add_arguments_to_parser(parser)
        if self.auto_configure_optimizers:
            if not parser.optimizers:
                parser.add_optimizer_args()
            if not parser.lr_schedulers:
                parser.add_lr_scheduler_args()
        parser.link_optimizers()

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> Namespace:
        """Return what the command line, files and the environment say, checked."""
        if args is not None and not isinstance(args, (list, tuple)):
            return cast(Namespace, parser.parse_object(cast("dict[str, Any]", args)))
        typed = list(sys.argv[1:] if args is None else args)
        place = next((place for place, word in enumerate(typed) if word in self._parsers), None)
        subcommand = None if place is None else typed[place]
        if self._reads_variables.get(subcommand or "", self._reads_variables[""]):
            found = variables.find(os.environ, self._prefix, subcommand, bool(self._parsers))
            (self._parsers.get(subcommand or "", parser)).variables = found
            start = 0 if place is None else place + 1
            typed[start:start] = variables.as_arguments(found)
        return parser.parse_args(typed)

    def _parser_in_use(self) -> LightningArgumentParser:
        return self.parser if self.subcommand is None else self._parsers[self.subcommand]

    def _get(self, config: Namespace, key: str, default: Any = None) -> Any:
        """Return an argument of the subcommand in use."""
        found = config if self.subcommand is None else config[self.subcommand]
        return found.get(key, default)

    # ---------------------------------------------------------------- objects

    def _seed(self) -> None:
        seed = self._get(self.config, "seed_everything")
        if seed is False or seed is None:
            return
        used = seed_everything(None if seed is True else seed, workers=True)
        (self.config if self.subcommand is None else self.config[self.subcommand])["seed_everything"] = used

    def before_instantiate_classes(self) -> None:
        """Override to change `config` before objects are made of it."""

    def instantiate_classes(self) -> None:
        """Make the data module, the module and the trainer."""
        self.config_init = self.parser.instantiate(self.config)
        self.datamodule = self._get(self.config_init, "data")
        self.model = self._get(self.config_init, "model")
        self._add_configure_optimizers()
        self.trainer = self.instantiate_trainer()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the trainer.

        Args:
            **kwargs: Arguments that win over the configured ones.
        """
        parser = self._parser_in_use()
        configured = self._get(self.config_init, "trainer")
        values: dict[str, Any] = {**dict(vars(configured)), **kwargs}
        callbacks = [*_as_list(values.get("callbacks"))]
        callbacks += [self._get(self.config_init, key) for key in parser.callback_keys]
        callbacks += _as_list(self.trainer_defaults.get("callbacks"))
        if self.save_config_callback is not None and not values.get("fast_dev_run"):
            asked = self.config if self.subcommand is None else self.config[self.subcommand]
            callbacks.append(self.save_config_callback(parser, asked, **self.save_config_kwargs))
        return self.trainer_class(**{**values, "callbacks": callbacks})

    @staticmethod
    def configure_optimizers(
        lightning_module: LightningModule, optimizer: Any, lr_scheduler: Any = None
    ) -> Any:
        """Return what ``configure_optimizers`` of the module returns; override it to put it together
        otherwise.
        """
        if lr_scheduler is None:
            return optimizer
        monitor = getattr(lr_scheduler, "monitor", None)
        if monitor is None:
            return [optimizer], [lr_scheduler]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": lr_scheduler, "monitor": monitor}}

    def _add_configure_optimizers(self) -> None:
        parser = self._parser_in_use()
        found = [_automatic(parser.optimizers), _automatic(parser.lr_schedulers)]
        for kind, keys in zip(("optimizers", "schedulers"), found, strict=True):
            if len(keys) > 1:
                raise MisconfigurationError(
                    f"{len(keys)} {kind} are to be configured automatically: {', '.join(keys)}. Only one can "
                    "be: give the others link_to=..., and return them from the module's configure_optimizers."
                )
        optimizer = self._init_of(parser.optimizers, found[0])
        lr_scheduler = self._init_of(parser.lr_schedulers, found[1])
        if lr_scheduler is not None and optimizer is None:
            raise MisconfigurationError(
                f"--{found[1][0]} is given without --optimizer: a scheduler needs the optimizer that it acts "
                "on. Add --optimizer."
            )
        if optimizer is None:
            return
        if overrides(self.model, "configure_optimizers", LightningModule):
            warnings.warn(
                f"{type(self.model).__qualname__}.configure_optimizers is not used, because --{found[0][0]} "
                "is given. Leave one of them out.",
                stacklevel=4,
            )
        self.model.configure_optimizers = ConfiguredOptimizers(
            self.model, self.configure_optimizers, optimizer, lr_scheduler
        )

    def _init_of(self, declared: dict[str, tuple[Any, str]], keys: list[str]) -> dict[str, Any] | None:
        """Return ``class_path`` and ``init_args`` of what was configured, or None."""
        if not keys:
            return None
        value = self._get(self.config_init, keys[0])
        if value is None:
            return None
        written: dict[str, Any] = value.as_dict() if isinstance(value, Namespace) else dict(value)
        kind = declared[keys[0]][0]
        if isinstance(kind, tuple):
            return written
        return {"class_path": class_path(kind), "init_args": written}

    # ---------------------------------------------------------------- the run

    def _run_subcommand(self, subcommand: str) -> None:
        before = getattr(self, f"before_{subcommand}", None)
        if callable(before):
            before()
        arguments = {name: self._get(self.config_init, name) for name in self._method_arguments[subcommand]}
        if self.datamodule is not None:
            arguments["datamodule"] = self.datamodule
        run = getattr(self, subcommand, None) or getattr(self.trainer, subcommand)
        run(model=self.model, **arguments)
        after = getattr(self, f"after_{subcommand}", None)
        if callable(after):
            after()


def _automatic(declared: dict[str, tuple[Any, str]]) -> list[str]:
    return [key for key, (_, link_to) in declared.items() if link_to == AUTOMATIC]


def _as_list(value: Callback | Sequence[Callback] | None) -> list[Callback]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]  # type: ignore[list-item]


def _version() -> str:
    import orchestrator

    return orchestrator.__version__
