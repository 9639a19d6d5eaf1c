"""``torch.compile`` for a module's steps, with logging outside of the graph.

A step is compiled as a whole: while it runs, what it logs is only noted down, which the compiler can follow,
and handed on afterwards. So `self.log` breaks no graph. The module's weights, names and methods stay its
own; the compiled steps stand in its ``__dict__`` during a call, and are kept aside for the next one, which
compiles nothing anew. What the compiler cannot follow breaks the graph there, as torch says;
``fullgraph=True`` makes it an error.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from modules.module import LightningModule
from orchestrator.errors import MisconfigurationError, suggest
from orchestrator.hooks import overrides

_KNOWN = ("fullgraph", "dynamic", "backend", "mode", "options")
_STEPS = {
    "fit": ("training_step", "validation_step"),
    "validate": ("validation_step",),
    "test": ("test_step",),
    "predict": ("predict_step",),
}
_KEPT = "_compiled_steps"


def parse_compile(value: Any) -> dict[str, Any] | None:
    """Return the keyword arguments of ``torch.compile`` that ``Trainer(compile=value)`` means, or None.

    Raises:
        MisconfigurationError: It is neither a switch nor a dictionary of such arguments.
    """
    if value is None or value is False:
        return None
    if value is True:
        return {}
    if not isinstance(value, dict):
        raise MisconfigurationError(
            f"Trainer(compile={value!r}). Use True, False, or a dictionary of torch.compile's arguments "
            "like {'mode': 'max-autotune'}."
        )
    unknown = [name for name in value if name not in _KNOWN]
    if unknown:
        raise MisconfigurationError(
            f"Trainer(compile={value!r}): torch.compile has no argument {unknown[0]!r}."
            f"{suggest(unknown[0], _KNOWN)} It has {', '.join(_KNOWN)}."
        )
    return dict(value)


def is_compiled(model: object) -> bool:
    """Whether `model` is what ``torch.compile(module)`` returns."""
    return (
        isinstance(model, torch.nn.Module) and "_orig_mod" in model._modules and hasattr(model, "dynamo_ctx")
    )


def unwrap(model: Any) -> tuple[Any, dict[str, Any]]:
    """Return the module in what ``torch.compile(module, ...)`` returned, and the arguments of that call."""
    context = model.dynamo_ctx
    backend = context.callback
    while hasattr(backend, "_torchdynamo_orig_backend"):
        backend = backend._torchdynamo_orig_backend
    found: dict[str, Any] = {}
    if getattr(context, "fullgraph", False):
        found["fullgraph"] = True
    dynamic = getattr(backend, "dynamic", None)
    if dynamic is not None:
        found["dynamic"] = dynamic
    config = getattr(backend, "config", None)
    if config is not None:  # torch's own backend, whose mode is a set of options
        if config:
            found["options"] = dict(config)
    else:
        name = getattr(backend, "compiler_name", None)
        found["backend"] = name if isinstance(name, str) else getattr(backend, "compiler_fn", backend)
        for argument, value in getattr(backend, "kwargs", {}).items():
            found[argument] = value
    return model._orig_mod, found


def install(module: LightningModule, fn: str, arguments: dict[str, Any]) -> None:
    """Make the module's steps for `fn` (fit, validate, test, predict) compiled ones, until `remove`."""
    kept = module.__dict__.get(_KEPT)
    if kept is None or kept[0] != arguments:
        kept = module.__dict__[_KEPT] = (dict(arguments), {})
    steps: dict[str, Callable[..., Any]] = kept[1]
    for name in _STEPS[fn]:
        if name not in module.__dict__ and (
            name == "predict_step" or overrides(module, name, LightningModule)
        ):
            if name not in steps:
                steps[name] = _compiled(module, getattr(module, name), arguments)
            module.__dict__[name] = steps[name]


def remove(module: LightningModule) -> None:
    """Give the module its own steps back."""
    kept = module.__dict__.get(_KEPT)
    for name, step in (kept[1] if kept is not None else {}).items():
        if module.__dict__.get(name) is step:
            del module.__dict__[name]


def _compiled(
    module: LightningModule, step: Callable[..., Any], arguments: dict[str, Any]
) -> Callable[..., Any]:
    noted: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def note(*call: Any, **options: Any) -> None:
        plain = tuple(item.detach() if isinstance(item, Tensor) else item for item in call)
        noted.append((plain, options))

    compiled = torch.compile(step, **arguments)
    state = module.__dict__

    @functools.wraps(step)
    def run(*args: Any, **kwargs: Any) -> Any:
        sink = state["_log_sink"]
        if sink is not None:
            state["_log_sink"] = note
        try:
            outputs = compiled(*args, **kwargs)
        except BaseException:
            noted.clear()
            raise
        finally:
            state["_log_sink"] = sink
        if noted:
            for call, options in noted:
                sink(*call, **options)
            noted.clear()
        return outputs

    return run
