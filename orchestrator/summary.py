"""What a module consists of: its layers, their parameters, modes, sizes and operations, as a table.

Counting reads no weights and changes nothing. Where the module has an ``example_input_array``, one forward
pass in eval mode, without gradients and with the random state put back, gives the sizes of inputs and outputs
and the floating-point operations. If that pass fails, the table says so, and training is not kept from
starting.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.utils.flop_counter import FlopCounterMode

from modules import rng
from modules.module import LightningModule
from orchestrator.errors import MisconfigurationError

_OTHER = "other parameters"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSummary:
    """One row.

    Attributes:
        name: The layer's name in the module.
        type: Its class.
        parameters: Numbers in its parameters, each parameter once; those not made yet count 0.
        training: Whether it is in train mode; None for a row that is no layer.
        flops: Floating-point operations of one forward pass; 0 without an example.
        in_size: The shapes of what goes in, as nested lists; None where not known.
        out_size: The shapes of what comes out; None where not known.
    """

    name: str
    type: str
    parameters: int
    training: bool | None = None
    flops: int = 0
    in_size: Any = None
    out_size: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a module consists of; `str` gives the table.

    Attributes:
        layers: The rows, in the module's order.
        total_parameters: Numbers in all parameters, each parameter once.
        trainable_parameters: Those of parameters that need gradients.
        model_size: Megabytes (10**6 bytes) of all parameters.
        train_modules: Submodules in train mode.
        eval_modules: Submodules in eval mode.
        total_flops: Floating-point operations of one forward pass of the example; 0 without one.
        has_example: Whether there was a forward pass of an example.
        notes: What could not be told.
    """

    layers: tuple[LayerSummary, ...]
    total_parameters: int
    trainable_parameters: int
    model_size: float
    train_modules: int
    eval_modules: int
    total_flops: int = 0
    has_example: bool = False
    notes: tuple[str, ...] = ()

    @property
    def columns(self) -> dict[str, list[str]]:
        """The table's columns by title, as text."""
        found: dict[str, list[str]] = {
            "Name": [layer.name for layer in self.layers],
            "Type": [layer.type for layer in self.layers],
            "Params": [readable(layer.parameters) for layer in self.layers],
            "Mode": [_MODES[layer.training] for layer in self.layers],
        }
        if self.has_example:
            found["FLOPs"] = [readable(layer.flops) for layer in self.layers]
            found["In sizes"] = [_shape(layer.in_size) for layer in self.layers]
            found["Out sizes"] = [_shape(layer.out_size) for layer in self.layers]
        return found

    @property
    def totals(self) -> list[str]:
        """The lines below the table."""
        frozen = self.total_parameters - self.trainable_parameters
        lines = [
            f"{readable(self.trainable_parameters)} trainable + {readable(frozen)} frozen = "
            f"{readable(self.total_parameters)} parameters, {self.model_size:.3f} MB",
            f"{self.train_modules} modules in train mode, {self.eval_modules} in eval mode",
        ]
        if self.has_example:
            lines.append(f"{readable(self.total_flops)} FLOPs in a forward pass of the example")
        return [*lines, *self.notes]

    def __str__(self) -> str:
        columns = {title: cells for title, cells in self.columns.items() if cells}
        if not columns:
            return "\n".join(self.totals)
        widths = {title: max(map(len, [title, *cells])) for title, cells in columns.items()}
        rows = [list(columns), *zip(*columns.values(), strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths.values(), strict=True)).rstrip()
            for row in rows
        ]
        rule = "-" * max(map(len, lines))
        return "\n".join([lines[0], rule, *lines[1:], rule, *self.totals])


_MODES = {True: "train", False: "eval", None: ""}


def summarize(module: nn.Module, max_depth: int = 1) -> Summary:
    """Return what `module` consists of.

    Args:
        module: Any torch module; a `LightningModule` with ``example_input_array`` gets sizes and FLOPs.
        max_depth: Layers within layers: 1 for the module's own, 2 for theirs too, -1 for all, 0 for none.

    Raises:
        MisconfigurationError: There is no such depth.
    """
    if isinstance(max_depth, bool) or not isinstance(max_depth, int) or max_depth < -1:
        raise MisconfigurationError(
            f"summarize(max_depth={max_depth!r}). Use -1 for all layers, 0, 1, 2, ..."
        )
    chosen = {
        name: layer
        for name, layer in module.named_modules()
        if name and (max_depth == -1 or name.count(".") < max_depth)
    }
    example = getattr(module, "example_input_array", None)
    sizes: dict[str, tuple[Any, Any]] = {}
    flops: dict[str, int] = {}
    notes: list[str] = []
    if example is not None:
        try:
            sizes, flops = _run_example(module, example, chosen)
        except Exception as error:
            notes.append(
                f"No sizes and FLOPs: {type(error).__name__} in forward(example_input_array): {error}"
            )
    rows = [
        LayerSummary(
            name=name,
            type=type(layer).__qualname__,
            parameters=_count(layer.parameters()),
            training=layer.training,
            flops=flops.get(name, 0),
            in_size=sizes.get(name, (None, None))[0],
            out_size=sizes.get(name, (None, None))[1],
        )
        for name, layer in chosen.items()
    ]
    covered = {id(item) for layer in chosen.values() for item in layer.parameters()}
    other = _count(item for item in module.parameters() if id(item) not in covered)
    if other and max_depth != 0:
        rows.append(LayerSummary(name=_OTHER, type="", parameters=other))
    if any(isinstance(item, UninitializedParameter) for item in module.parameters()):
        notes.append("Lazy layers have no parameters yet: they count 0")
    submodules = [item for name, item in module.named_modules() if name]
    return Summary(
        layers=tuple(rows),
        total_parameters=_count(module.parameters()),
        trainable_parameters=_count(item for item in module.parameters() if item.requires_grad),
        model_size=sum(_size_bytes(item) for item in module.parameters()) / 1e6,
        train_modules=sum(item.training for item in submodules),
        eval_modules=sum(not item.training for item in submodules),
        total_flops=flops.get("", 0),
        has_example=example is not None and bool(flops),
        notes=tuple(notes),
    )


def readable(number: int) -> str:
    """Return a count with at most four characters and a unit.

    >>> readable(0), readable(999), readable(1_500), readable(12_345_678), readable(10**15)
    ('0', '999', '1.5 K', '12.3 M', '1000 T')
    """
    value, units = float(number), ["", " K", " M", " B", " T"]
    while value >= 999.95 and len(units) > 1:
        value /= 1000
        units.pop(0)
    text = f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"
    return f"{text}{units[0]}"


def _count(parameters: Iterator[nn.Parameter]) -> int:
    return sum(0 if isinstance(item, UninitializedParameter) else item.numel() for item in parameters)


def _size_bytes(parameter: nn.Parameter) -> int:
    lazy = isinstance(parameter, UninitializedParameter)
    return 0 if lazy else parameter.numel() * parameter.element_size()


def _run_example(
    module: nn.Module, example: Any, layers: dict[str, nn.Module]
) -> tuple[dict[str, tuple[Any, Any]], dict[str, int]]:
    """Return the sizes in and out of each layer, and its FLOPs; "" stands for the module itself."""
    sizes: dict[str, tuple[Any, Any]] = {}
    modes = [(item, item.training) for item in module.modules()]

    def record(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: Any, output: Any) -> None:
            sizes.setdefault(name, (_sizes(inputs[0] if len(inputs) == 1 else inputs), _sizes(output)))

        return hook

    handles = [layer.register_forward_hook(record(name)) for name, layer in layers.items()]
    counter = FlopCounterMode(display=False)
    try:
        module.eval()
        with rng.isolated(), torch.no_grad(), _autocast(module), counter:
            example = _to_device(example, module)
            if isinstance(example, Mapping):
                module(**example)
            elif isinstance(example, (list, tuple)):
                module(*example)
            else:
                module(example)
    finally:
        for handle in handles:
            handle.remove()
        for item, mode in modes:
            item.training = mode
    counted = counter.get_flop_counts()
    root = type(module).__name__
    flops = {name: sum(counted.get(f"{root}.{name}", {}).values()) for name in layers}
    flops[""] = counter.get_total_flops()
    return sizes, flops


def _autocast(module: nn.Module) -> contextlib.AbstractContextManager[Any]:
    """Return the number format that the module's run computes in."""
    engine = getattr(module.__dict__.get("_trainer"), "engine", None)
    found = None if engine is None else engine.precision.autocast
    return contextlib.nullcontext() if found is None else found


def _to_device(value: Any, module: nn.Module) -> Any:
    from orchestrator import device

    first = next(iter(module.parameters()), None)
    if isinstance(module, LightningModule):
        return device.move(value, module.device)
    return value if first is None else device.move(value, first.device)


def _sizes(value: Any) -> Any:
    """Return the shapes of the tensors in `value`: a list for one, nested lists for several."""
    if isinstance(value, Tensor):
        return list(value.shape)
    if isinstance(value, Mapping):
        return {key: _sizes(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_sizes(item) for item in value]
    return None


def _shape(size: Any) -> str:
    return "?" if size is None else str(size)
