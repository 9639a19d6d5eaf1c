"""Export a module's ``forward`` to run without this project: ONNX, `torch.export`, or TorchScript.

The module is in eval mode and without gradients while it is exported, and afterwards every submodule is in
the mode it was in. Inputs are moved to the module's device. The exported program computes what ``forward``
does and knows nothing of training. Fails with a `ValueError` when there is no input to trace with, and with
an `ImportError` that names the extra to install when ONNX's packages are missing.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import os
import types
import warnings
from collections.abc import Iterator, Mapping
from typing import IO, TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from modules.module import LightningModule

Destination = str | os.PathLike[str] | IO[bytes]


def to_onnx(
    module: LightningModule, file_path: Destination | None = None, input_sample: Any = None, **kwargs: Any
) -> Any:
    """Export `module` to ONNX.

    Args:
        module: The module.
        file_path: Where to write it, a path or an open binary file; None writes nothing.
        input_sample: What ``forward`` is called with: a tensor, a tuple of arguments or a dictionary of
            keyword arguments. None takes ``example_input_array``.
        **kwargs: For `torch.onnx.export`, such as ``dynamic_shapes``; ``dynamo=False`` takes torch's older
            exporter, which wants a file.

    Returns:
        A `torch.onnx.ONNXProgram`, or None from the older exporter.

    Raises:
        ValueError: There is no input, or the older exporter has no file to write to.
        ImportError: The packages are missing.
    """
    args, named = _inputs(module, "to_onnx", "input_sample", input_sample)
    dynamo = bool(kwargs.setdefault("dynamo", True))
    kwargs.setdefault("verbose", False)
    _need_onnx("onnx", "onnxscript") if dynamo else _need_onnx("onnx")
    if named:
        kwargs["kwargs"] = named
    if not dynamo and file_path is None:
        raise ValueError("to_onnx(dynamo=False) returns nothing. Give file_path, or leave dynamo out.")
    opened = file_path is not None and not isinstance(file_path, (str, os.PathLike))
    with _as_used(module):
        program = torch.onnx.export(module, args, None if opened and dynamo else file_path, **kwargs)  # type: ignore[arg-type]
    if opened and program is not None:
        assert file_path is not None
        file_path.write(program.model_proto.SerializeToString())  # type: ignore[union-attr]
    return program


def to_exported_program(
    module: LightningModule, file_path: Destination | None = None, input_sample: Any = None, **kwargs: Any
) -> torch.export.ExportedProgram:
    """Export `module` with `torch.export`.

    Args:
        module: The module.
        file_path: Where to write it (``.pt2``), a path or an open binary file; None writes nothing.
        input_sample: As for `to_onnx`.
        **kwargs: For `torch.export.export`, such as ``dynamic_shapes``.

    Returns:
        The program; ``.module()`` of it is called as the module is.

    Raises:
        ValueError: There is no input.
    """
    args, named = _inputs(module, "to_exported_program", "input_sample", input_sample)
    with _as_used(module):
        program = torch.export.export(module, args, named or None, **kwargs)
    if file_path is not None:
        torch.export.save(program, file_path)
    return program


def to_torchscript(
    module: LightningModule,
    file_path: str | os.PathLike[str] | None = None,
    method: str = "script",
    example_inputs: Any = None,
    **kwargs: Any,
) -> torch.jit.ScriptModule:
    """Export `module` to TorchScript, which torch has deprecated in favour of `torch.export`.

    Args:
        module: The module.
        file_path: Where to write it; None writes nothing.
        method: ``"script"`` compiles ``forward``, ``"trace"`` records one call of it.
        example_inputs: What to call it with, for ``"trace"``: a tensor or a tuple of arguments. None takes
            ``example_input_array``.
        **kwargs: For `torch.jit.script` or `torch.jit.trace`.

    Raises:
        ValueError: There is no such method, or no input to trace with.
    """
    if method not in ("script", "trace"):
        raise ValueError(
            f'to_torchscript(method={method!r}): there is no such method. Use "script" or "trace".'
        )
    warnings.warn(
        "to_torchscript: torch has deprecated TorchScript. Use to_exported_program, or to_onnx.",
        DeprecationWarning,
        stacklevel=3,
    )
    with _as_used(module), _scriptable(module), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch says the same for each function
        if method == "script":
            script = torch.jit.script(module, **kwargs)
        else:
            args, named = _inputs(module, "to_torchscript", "example_inputs", example_inputs)
            inputs: dict[str, Any] = {"example_kwarg_inputs": named} if named else {"example_inputs": args}
            script = torch.jit.trace(module, **inputs, **kwargs)
        if file_path is not None:
            torch.jit.save(script, os.fspath(file_path))
    return script  # type: ignore[no-any-return]


@contextlib.contextmanager
def _as_used(module: torch.nn.Module) -> Iterator[None]:
    """Put the module into eval mode, without gradients; then each submodule back into its own mode."""
    modes = [(item, item.training) for item in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for item, training in modes:
            item.training = training


@contextlib.contextmanager
def _scriptable(module: LightningModule) -> Iterator[None]:
    """Let torch.jit.script read every property of the module, though no trainer is attached, and none of the
    attributes that are about training, whose types it has no words for.
    """
    own = [base for base in type(module).__mro__ if base.__module__.partition(".")[0] == "modules"]
    about_training = {name for base in own for name in inspect.get_annotations(base)}
    module.__dict__["__jit_ignored_attributes__"] = sorted(about_training | {"_trainer", "_log_sink"})
    attached = module._trainer
    if attached is None:
        counters = dict.fromkeys(("current_epoch", "global_step", "global_rank", "local_rank"), 0)
        module.trainer = types.SimpleNamespace(**counters, logger=None, loggers=[], strategy=None)
    try:
        yield
    finally:
        module.trainer = attached
        del module.__dict__["__jit_ignored_attributes__"]


def _inputs(
    module: LightningModule, caller: str, argument: str, given: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and the keyword arguments of ``forward``, on the module's device."""
    sample = module.example_input_array if given is None else given
    if sample is None:
        raise ValueError(
            f"{caller}() has no input to call {type(module).__qualname__}.forward with. Give "
            f"{argument}=..., or set self.example_input_array in __init__."
        )
    sample = _moved(sample, module.device)
    if isinstance(sample, Mapping):
        return (), dict(sample)
    return (sample if isinstance(sample, tuple) else (sample,)), {}


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: _moved(item, device) for name, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_moved(item, device) for item in value)
    return value


def _need_onnx(*packages: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"to_onnx needs {' and '.join(missing)}. "
            "Install it: pip install 'ray-training-orchestrator[onnx]'."
        )
