"""Brings what happened on rank 0 back into the driver's own objects.

Weights are copied in place, so identity and ties stay. Attributes of callbacks, loggers and the module that
pickle replace the driver's; inside them, references to the trainer, the module, its parts and its tensors,
callbacks and loggers point to the driver's own again. What does not pickle stays as it was in the driver, and
is named in one warning.
"""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from ray import cloudpickle
from torch import Tensor, nn

from modules import rng
from modules.module import LightningModule
from orchestrator import foreign
from orchestrator.board import Board
from orchestrator.checkpoint import local_files
from orchestrator.metric_objects import is_synced
from orchestrator.settings import Settings
from orchestrator.state import TrainState

if TYPE_CHECKING:
    from orchestrator.job import Job
    from orchestrator.trainer import Trainer

_PATHS = ("best_model_path", "last_model_path", "_complete_path")
"""What callbacks call the checkpoints that they wrote, Lightning's included."""
_INTERNAL = frozenset(nn.Module().__dict__) - {"training"} | {"_trainer", "_log_sink", "_optimization"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Luggage:
    """What rank 0 sends home.

    Attributes:
        weights: The module's parameters and buffers, on the CPU.
        trainable: The names of the parameters that need gradients.
        extra: Entries of the state dict that are no tensors.
        attributes: Pickled dictionaries of attributes by owner: ``callback:0``, ``logger:0``,
            ``module:encoder``, ...
        left: Owners and attributes that do not pickle.
        state: The counters.
        board: The metrics.
        batch_counts: Batches of each loader, by kind of data.
        should_stop: Whether somebody asked to stop.
        settings: The arguments; hooks may have set some.
        rng: The random state.
        result: What the call returns.
        stopped: What left the call on all ranks at once, though nothing failed; or None.
    """

    weights: dict[str, Tensor]
    trainable: frozenset[str]
    extra: dict[str, Any]
    attributes: list[bytes]
    left: list[str]
    state: TrainState
    board: Board
    batch_counts: dict[str, list[int | float]]
    should_stop: bool
    settings: Settings
    rng: dict[str, Any]
    result: Any
    stopped: BaseException | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How far rank 0 has come: what the driver keeps of a run that fails later.

    Attributes:
        state: The counters.
        callbacks: Pickled attributes of callbacks, as in `Luggage`.
    """

    state: TrainState
    callbacks: list[bytes]


def take_standing(trainer: Trainer, job: Job) -> Standing:
    """Return where rank 0 stands, without weights."""
    names = {id(item): name for name, item in _known(trainer, job)}
    owners = {
        owner: _attributes(item) for owner, item in _owners(trainer, job) if owner.startswith("callback")
    }
    return Standing(state=trainer.state, callbacks=_dump_all(owners, names)[0])


def apply_standing(trainer: Trainer, job: Job, standing: Standing) -> None:
    """Put counters and callback attributes into the driver's objects."""
    _put_attributes(trainer, job, standing.callbacks)
    trainer.state = standing.state
    trainer.state.stage = ""


def checkpoints_of(trainer: Trainer, job: Job, standing: Standing) -> list[str]:
    """Return the files that callbacks had written by then and that this process sees."""
    known = dict(_known(trainer, job))
    paths = []
    for data in standing.callbacks:
        for values in _load(data, known).values():
            names = (values.get(name) or values.get(f"_{name}") for name in _PATHS)
            scored = values.get("best_k_models") or values.get("_best_k_models") or ()
            paths += [str(name) for name in (*names, *scored) if name]
    return [path for path in dict.fromkeys(paths) if local_files.exists(path)]


def pack(trainer: Trainer, job: Job, result: Any, stopped: BaseException | None) -> Luggage:
    """Return what the driver needs to be as if the job had run there."""
    names = {id(item): name for name, item in _known(trainer, job)}
    attributes, left = _dump_all({owner: _attributes(item) for owner, item in _owners(trainer, job)}, names)
    trained, module = job.fn == "fit", job.module
    state_rng = rng.capture()
    state_rng.pop("cuda", None)
    return Luggage(
        weights={name: item.detach().cpu() for name, item in _tensors(module).items()} if trained else {},
        trainable=frozenset(name for name, item in module.named_parameters() if item.requires_grad),
        extra=_extra_state(module) if trained else {},
        attributes=attributes,
        left=left,
        state=trainer.state,
        board=trainer.board,
        batch_counts=_batch_counts(trainer),
        should_stop=trainer.should_stop,
        settings=trainer.settings,
        rng=state_rng,
        result=result,
        stopped=stopped,
    )


def unpack(trainer: Trainer, job: Job, luggage: Luggage) -> Any:
    """Put the luggage into the driver's objects and return the call's result."""
    _put_attributes(trainer, job, luggage.attributes)
    if luggage.weights:
        _copy_weights(job.module, luggage)
    trainer.state = luggage.state
    trainer.board = luggage.board
    trainer.batch_counts = luggage.batch_counts
    trainer.should_stop = luggage.should_stop
    trainer.settings = luggage.settings
    rng.restore(luggage.rng)
    if luggage.left:
        warnings.warn(
            "These attributes of the worker's objects cannot be pickled, so they stay as they were here: "
            f"{', '.join(luggage.left)}.",
            stacklevel=4,
        )
    return luggage.result


def _batch_counts(trainer: Trainer) -> dict[str, list[int | float]]:
    """Return the number of batches of each loader, of training that of the last epoch."""
    counts = dict(trainer.batch_counts)
    if "train" in counts:
        counts["train"] = [trainer.num_training_batches]
    return counts


def _put_attributes(trainer: Trainer, job: Job, packed: list[bytes]) -> None:
    known = dict(_known(trainer, job))
    owners = dict(_owners(trainer, job))
    for data in packed:
        for owner, values in _load(data, known).items():
            if owner in owners:
                owners[owner].__dict__.update(values)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers by name, also those that the state dict leaves out."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _extra_state(module: nn.Module) -> dict[str, Any]:
    """Return what the state dict holds besides tensors: the extra state of modules that define one."""
    return {name: item for name, item in module.state_dict().items() if not isinstance(item, Tensor)}


def _copy_weights(module: nn.Module, luggage: Luggage) -> None:
    weights, own = luggage.weights, _tensors(module)
    if own.keys() != weights.keys() and foreign.is_module(module):
        cast(LightningModule, module).configure_model()
        own = _tensors(module)
    lost = sorted(name for name, item in weights.items() if name not in own or own[name].shape != item.shape)
    if lost:
        warnings.warn(
            f"The worker's module has weights that the driver's has not: {', '.join(lost)}. They are in "
            "the checkpoints only. "
            "Build layers in __init__ or configure_model.",
            stacklevel=5,
        )
    with torch.no_grad():
        for name, tensor in weights.items():
            if name not in lost:
                if own[name].dtype != tensor.dtype:  # the run's precision has cast it
                    own[name].data = own[name].data.to(tensor.dtype)
                own[name].copy_(tensor)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in luggage.trainable)
    if luggage.extra:
        module.load_state_dict(luggage.extra, strict=False)


def _owners(trainer: Trainer, job: Job) -> Iterator[tuple[str, Any]]:
    """Yield the objects whose attributes travel."""
    for index, callback in enumerate(trainer.callbacks):
        yield f"callback:{index}", callback
    for index, logger in enumerate(trainer.loggers):
        yield f"logger:{index}", logger
    yield "profiler", trainer.profiler
    for name, module in job.module.named_modules():
        yield f"module:{name}", module


def _known(trainer: Trainer, job: Job) -> Iterator[tuple[str, Any]]:
    """Yield the objects that are referred to by name instead of being copied."""
    yield "trainer", trainer
    if job.datamodule is not None:
        yield "datamodule", job.datamodule
    yield from _owners(trainer, job)
    for name, tensor in [*job.module.named_parameters(), *job.module.named_buffers()]:
        yield f"tensor:{name}", tensor


def _attributes(item: Any) -> dict[str, Any]:
    skip = _INTERNAL if isinstance(item, nn.Module) else frozenset()
    if is_synced(item):
        skip |= {"_device"}  # where a metric of torchmetrics thinks that it is: in the driver somewhere else
    if foreign.is_foreign_module(item):
        skip |= {"_device"}  # where the worker had it
    state = item.__getstate__()
    if isinstance(state, tuple):  # of a class with slots: the dictionary comes first
        state = state[0]
    return {key: value for key, value in (state or {}).items() if key not in skip}


def _dump_all(changed: dict[str, dict[str, Any]], names: dict[int, str]) -> tuple[list[bytes], list[str]]:
    """Pickle all attributes together where that works, else one by one, naming those that do not."""
    try:
        return [_dump(changed, names)], []
    except Exception:
        parts, left = [], []
        for owner, values in changed.items():
            for key, value in values.items():
                try:
                    parts.append(_dump({owner: {key: value}}, names))
                except Exception:
                    left.append(f"{owner.replace(':', ' ').strip()}.{key}")
        return parts, left


class _Pickler(cloudpickle.Pickler):
    """Writes known objects as their names, and other tensors as if they were on the CPU: the driver may have
    no other device.
    """

    def __init__(self, file: io.BytesIO, names: dict[int, str]) -> None:
        super().__init__(file)  # type: ignore[no-untyped-call]
        self.names = names

    def persistent_id(self, item: Any) -> str | None:
        """Return the name of a known object."""
        return self.names.get(id(item))

    def reducer_override(self, item: Any) -> Any:
        """Return how to rebuild `item`, if not in the usual way."""
        if isinstance(item, Tensor) and item.device.type != "cpu":
            return item.detach().cpu().__reduce_ex__(pickle.HIGHEST_PROTOCOL)
        return super().reducer_override(item)  # type: ignore[no-untyped-call]


class _Unpickler(pickle.Unpickler):
    """Reads names as the driver's own objects."""

    def __init__(self, file: io.BytesIO, known: dict[str, Any]) -> None:
        super().__init__(file)
        self.known = known

    def persistent_load(self, name: str) -> Any:
        """Return the driver's object of that name."""
        return self.known.get(name)


def _dump(value: Any, names: dict[int, str]) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, names).dump(value)  # type: ignore[no-untyped-call]
    return buffer.getvalue()


def _load(data: bytes, known: dict[str, Any]) -> Any:
    return _Unpickler(io.BytesIO(data), known).load()
