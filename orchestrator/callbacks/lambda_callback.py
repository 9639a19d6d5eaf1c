"""A callback made of functions: for the one hook that is not worth a class.

Each function is called like the method it stands for, without ``self``; hooks that are not given cost
nothing. On a group the functions travel to the workers, so they must pickle with cloudpickle; lambdas do. An
argument that is no hook, or not callable, raises before training.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from orchestrator.callbacks.callback import Callback
from orchestrator.errors import MisconfigurationError, suggest

_NO_HOOKS = frozenset({"state_dict", "load_state_dict", "state_key", "unused_hooks", "log", "log_dict"})
HOOKS = tuple(
    name
    for name, item in vars(Callback).items()
    if callable(item) and not name.startswith("_") and name not in _NO_HOOKS
)
"""The names of all hooks that `LambdaCallback` takes."""


class LambdaCallback(Callback):
    """Calls a function at each hook that one is given for.

    >>> said = LambdaCallback(on_train_epoch_end=lambda trainer, pl_module: print(trainer.current_epoch))

    Args:
        **functions: Functions by hook: any hook of `Callback`, such as ``setup``, ``on_train_batch_end`` or
            ``on_save_checkpoint``, with its arguments. None leaves a hook out.

    Raises:
        MisconfigurationError: There is no such hook, or what was given cannot be called.
    """

    def __init__(self, **functions: Callable[..., Any] | None) -> None:
        for name, function in functions.items():
            if name not in HOOKS:
                raise MisconfigurationError(
                    f"LambdaCallback({name}=...): there is no such hook.{suggest(name, HOOKS)} Use one of "
                    f"{', '.join(HOOKS)}."
                )
            if function is None:
                continue
            if not callable(function):
                raise MisconfigurationError(
                    f"LambdaCallback({name}={function!r}) cannot be called. Give a function with the hook's "
                    "arguments, or None."
                )
            setattr(self, name, function)
