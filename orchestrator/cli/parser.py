"""The parser of a command line that trains: jsonargparse's, which knows modules, callbacks and optimizers.

Every argument of a class is an argument of the command line, with the class's annotation as its type and its
docstring as its help. An error is one line on standard error that says what is wrong and what is near it,
and the exit status is 2; with ``exit_on_error=False`` it is jsonargparse's ``ArgumentError`` instead.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NoReturn

import jsonargparse
from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import class_from_function
from torch.optim import Optimizer

from orchestrator.callbacks.callback import Callback
from orchestrator.cli import refusals
from orchestrator.cli.any_kind import ANY_CALLBACK, ANY_DATAMODULE, ANY_MODULE
from orchestrator.cli.optimizer_arguments import LR_SCHEDULERS
from orchestrator.errors import MisconfigurationError
from orchestrator.trainer import Trainer

AUTOMATIC = "AUTOMATIC"


class LightningArgumentParser(ArgumentParser):
    """A parser for which a Trainer, modules, callbacks, optimizers and schedulers can be declared.

    Args:
        *args: jsonargparse's.
        **kwargs: jsonargparse's. Abbreviated options are off.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})
        self.explains = False
        self.variables: dict[str, tuple[str, str]] = {}
        self.callback_keys: list[str] = []
        self.optimizers: dict[str, tuple[Any, str]] = {}
        self.lr_schedulers: dict[str, tuple[Any, str]] = {}

    def add_lightning_class_args(
        self,
        lightning_class: Callable[..., Any],
        nested_key: str,
        subclass_mode: bool = False,
        required: bool = True,
    ) -> list[str]:
        """Declare the arguments of a Trainer, LightningModule, LightningDataModule or Callback class.

        Args:
            lightning_class: The class, or a function that returns an instance and is annotated so.
            nested_key: The name under which its arguments stand: ``--NESTED_KEY.width``.
            subclass_mode: Let the command line name a subclass: ``--NESTED_KEY=path.of.Class``.
            required: Refuse a command line that names none, in subclass mode.

        Returns:
            The names of the arguments added.

        Raises:
            MisconfigurationError: It is none of these classes.
        """
        given = lightning_class
        if callable(given) and not isinstance(given, type):
            given = class_from_function(given)
        kinds = (Trainer, Callback, ANY_MODULE, ANY_DATAMODULE)
        if not isinstance(given, type) or not (issubclass(given, kinds) or given in kinds):
            names = ", ".join(kind.__name__ for kind in kinds)
            raise MisconfigurationError(
                f"add_lightning_class_args({given!r}): this is no subclass of {names}. Give one, or a "
                "function annotated as returning one; other arguments are added with add_argument()."
            )
        if issubclass(given, Callback):
            self.callback_keys.append(nested_key)
        if subclass_mode:
            self.add_subclass_arguments(given, nested_key, fail_untyped=False, required=required)
            return [nested_key]
        is_trainer = issubclass(given, Trainer)
        added = self.add_class_arguments(
            given,
            nested_key,
            fail_untyped=False,
            instantiate=not is_trainer,
            sub_configs=True,
            skip={"placement_group"} if is_trainer else None,  # made by a program, not written
        )
        if is_trainer:
            self._take_any_callback(f"{nested_key}.callbacks")
        return list(added)

    def _take_any_callback(self, name: str) -> None:
        """Let an argument take Lightning's callbacks beside ours, as the Trainer itself does."""
        for action in self._actions:
            if action.dest == name and hasattr(action, "_typehint"):
                action._typehint = ANY_CALLBACK | list[ANY_CALLBACK] | None  # type: ignore[valid-type]

    def add_optimizer_args(
        self,
        optimizer_class: type[Optimizer] | tuple[type[Optimizer], ...] = (Optimizer,),
        nested_key: str = "optimizer",
        link_to: str = AUTOMATIC,
    ) -> None:
        """Declare an optimizer.

        Args:
            optimizer_class: The class; or a tuple of base classes, of which the command line names one.
            nested_key: The argument's name.
            link_to: The argument of the module that gets ``class_path`` and ``init_args``; by default the
                module's ``configure_optimizers`` is replaced by one that returns this optimizer.
        """
        self.optimizers[nested_key] = (optimizer_class, link_to)
        self._add_later_made(optimizer_class, nested_key, {"params"})

    def add_lr_scheduler_args(
        self,
        lr_scheduler_class: type | tuple[type, ...] = LR_SCHEDULERS,
        nested_key: str = "lr_scheduler",
        link_to: str = AUTOMATIC,
    ) -> None:
        """Declare a learning-rate scheduler; the arguments are as `add_optimizer_args`'."""
        self.lr_schedulers[nested_key] = (lr_scheduler_class, link_to)
        self._add_later_made(lr_scheduler_class, nested_key, {"optimizer"})

    def _add_later_made(self, kind: Any, nested_key: str, skip: set[str | int]) -> None:
        options: dict[str, Any] = {"instantiate": False, "fail_untyped": False, "skip": skip}
        if isinstance(kind, tuple):
            self.add_subclass_arguments(kind, nested_key, **options)
        else:
            self.add_class_arguments(kind, nested_key, sub_configs=True, **options)

    def link_optimizers(self) -> None:
        """Hand optimizers and schedulers to the arguments that they are linked to."""
        for nested_key, (kind, link_to) in {**self.optimizers, **self.lr_schedulers}.items():
            if link_to == AUTOMATIC:
                continue
            if isinstance(kind, tuple):
                self.link_arguments(nested_key, link_to)
            else:
                self.link_arguments(nested_key, link_to, compute_fn=_WithClassPath(kind))

    def refuse_options_of_anything(self, config: Namespace) -> None:
        """Refuse options that go into an argument of any type, for which jsonargparse makes no object."""
        for name, value in config.items():
            if type(value).__name__ == "NestedArg":
                self.error(
                    f"--{name}.{value.key}: {name} takes any object. Write it as a whole: "
                    f"""--{name}='{{"class_path": "...", "init_args": {{"{value.key}": ...}}}}'."""
                )

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say in one line what is wrong, and end with status 2."""
        parser = getattr(ex, "subcommand_parser", None) or self
        outermost = self.exit_on_error or self.explains  # jsonargparse makes more within, for nested classes
        text = refusals.explain(message, refusals.known_arguments(parser)) if outermost else message
        blamed = [
            variable
            for variable, (name, _) in getattr(parser, "variables", {}).items()
            if f"--{name}" in text
        ]
        if blamed:
            text += f" (The environment says so: {', '.join(blamed)}.)"
        if not self.exit_on_error:
            raise jsonargparse.ArgumentError(None, text) from ex
        prog = parser.prog.replace(" [options]", "")
        if (
            parser is self and self._subcommands_action is not None
        ):  # found out after the subcommand's own turn
            prog += "".join(f" {word}" for word in self.args if word in self._subcommands_action.choices)
        print(f"{prog}: {text}\n`{prog} --help` lists what there is.", file=sys.stderr)
        self.exit(2)


class _WithClassPath:
    """Adds the class's path to arguments that were declared without one."""

    def __init__(self, kind: type) -> None:
        self.class_path = class_path(kind)

    def __call__(self, init_args: Any) -> dict[str, Any]:
        return {"class_path": self.class_path, "init_args": init_args}


def class_path(kind: type) -> str:
    """Return the path by which a class is imported."""
    return f"{kind.__module__}.{kind.__qualname__}"
