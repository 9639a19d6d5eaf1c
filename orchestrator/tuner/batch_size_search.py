"""Searches the largest batch size that fits into memory, by trying a few steps of each.

Which sizes are tried is a pure decision (`search`). A trial runs on a copy of the module in every process by
itself, so that a rank which runs out of memory leaves no other waiting; all ranks then agree: a size fits
when it fits everywhere. Errors other than out of memory end the search as they are.
"""

from __future__ import annotations

import gc
from collections.abc import Generator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader

from modules.loader import RankLoader
from orchestrator.errors import MisconfigurationError
from orchestrator.tuner import attribute
from orchestrator.tuner.probe import Probe, copied

if TYPE_CHECKING:
    from orchestrator.engine import Engine
    from orchestrator.settings import Settings

MODES = ("power", "binsearch")
METHODS = ("fit", "validate", "test", "predict")
_KINDS = {"fit": "train", "validate": "val", "test": "test", "predict": "predict"}
_SIGNS = ("out of memory", "can't allocate memory", "CUDNN_STATUS_NOT_SUPPORTED", "CUDNN_STATUS_ALLOC_FAILED")

Search = Generator[int, tuple[bool, int | None], int]


def check_arguments(
    caller: str,
    mode: Any,
    steps_per_trial: Any,
    init_val: Any,
    max_trials: Any,
    batch_arg_name: Any,
    margin: Any,
    max_val: Any,
) -> None:
    """Refuse arguments of a search that cannot work; see `BatchSizeFinder` for them.

    Raises:
        MisconfigurationError: One of them cannot.
    """
    if mode not in MODES:
        raise MisconfigurationError(f"{caller}(mode={mode!r}) is unknown. Use 'power' or 'binsearch'.")
    for name, value in (
        ("steps_per_trial", steps_per_trial),
        ("init_val", init_val),
        ("max_trials", max_trials),
        ("max_val", max_val),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise MisconfigurationError(f"{caller}({name}={value!r}). Use a whole number of at least 1.")
    if init_val > max_val:
        raise MisconfigurationError(
            f"{caller}(init_val={init_val}, max_val={max_val}): the search starts above its end. Use a "
            "smaller init_val."
        )
    if not isinstance(batch_arg_name, str) or not batch_arg_name:
        raise MisconfigurationError(f"{caller}(batch_arg_name={batch_arg_name!r}). Use an attribute's name.")
    if isinstance(margin, bool) or not isinstance(margin, (int, float)) or not 0 <= margin < 1:
        raise MisconfigurationError(f"{caller}(margin={margin!r}). Use a share from 0.0 to below 1.0.")


def search(mode: str, init_val: int, max_trials: int, max_val: int, margin: float) -> Search:
    """Yield the sizes to try, and return the one to use.

    Sent back for each size: whether it fits, and the largest size that makes sense (the length of the data),
    or None where that is not known.

    Args:
        mode: ``"power"`` doubles until a size does not fit; ``"binsearch"`` then halves the gap.
        init_val: The first size.
        max_trials: At most so many trials.
        max_val: The largest size.
        margin: With binsearch, the share to take off a size that is next to one that does not fit.

    Raises:
        MisconfigurationError: Not even one sample fits, or no trial was left to find one that does.
    """
    fits, too_large, size = 0, 0, init_val
    limit = max_val
    for _ in range(max_trials):
        worked, longest = yield size
        if longest is not None:
            limit = max(1, min(limit, longest))
        if worked:
            fits = max(fits, min(size, limit))
        else:
            too_large = size
        next_to_it = too_large and fits == too_large - 1
        if fits >= limit or next_to_it or (too_large and fits and mode == "power"):
            break
        if not too_large:
            size = min(size * 2, limit)
        elif fits:
            size = (fits + too_large) // 2
        else:
            size = too_large // 2
    if not fits:
        raise MisconfigurationError(
            f"Batch size {too_large} does not fit into memory, and nothing smaller was found to. "
            "Use a smaller model or init_val, or more max_trials."
        )
    cut = mode == "binsearch" and too_large
    return max(1, int(fits * (1 - margin))) if cut else fits


def run_batch_size_search(
    engine: Engine,
    *,
    settings: Settings,
    mode: str,
    steps_per_trial: int,
    init_val: int,
    max_trials: int,
    batch_arg_name: str,
    margin: float,
    max_val: int,
) -> int:
    """Search within a call that is running, before its data is loaded; set and return the size.

    All ranks must call it. Where the search fails, the size is what it was.

    Args:
        engine: The engine that is running.
        settings: What trials run with, but for their own limits.
        mode: See `search`.
        steps_per_trial: Batches to run of each size.
        init_val: See `search`.
        max_trials: See `search`.
        batch_arg_name: The attribute of module or data module that holds the size.
        margin: See `search`.
        max_val: See `search`.

    Raises:
        MisconfigurationError: There is no such attribute, loaders were given whose size cannot be changed, or
            nothing fits.
    """
    fn, module, datamodule = engine.job.fn, engine.module, engine.datamodule
    kind = _KINDS[fn]
    if engine.job.loaders.get(kind) is not None:
        raise MisconfigurationError(
            f"The batch-size search cannot change loaders that were given to {fn}(). Define "
            f"{kind}_dataloader() in the module or a data module, with batch_size=self.{batch_arg_name}."
        )
    caller = f"batch_arg_name={batch_arg_name!r}"
    attribute.find_name((batch_arg_name,), caller, module, datamodule)
    before = attribute.read(batch_arg_name, module, datamodule)
    found = before
    sizes_read: dict[int, Any] = {}
    try:
        searching = search(mode, init_val, max_trials, max_val, margin)
        size = next(searching)
        while True:
            worked, longest, read = _try(engine, settings, batch_arg_name, size, steps_per_trial)
            sizes_read[size] = read
            _check_read(sizes_read, f"{kind}_dataloader()", batch_arg_name)
            worked = all(engine.strategy.gather(worked))
            engine.say(f"Batch size {size} {'fits' if worked else 'does not fit'}.")
            if longest is not None:
                longest = -(-longest // engine.place.world_size)
            try:
                size = searching.send((worked, longest))
            except StopIteration as end:
                found = int(end.value)
                return found
    finally:
        attribute.write(batch_arg_name, found, module, datamodule)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was not enough, on the host or on a device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def _try(
    engine: Engine, settings: Settings, name: str, size: int, steps: int
) -> tuple[bool, int | None, int | None]:
    """Run some batches of a size; return whether that worked, the length of the data, and the size that its
    loader has; None for what is not known.
    """
    fn = engine.job.fn
    limits: dict[str, Any] = {f"limit_{kind}_batches": steps for kind in ("val", "test", "predict")}
    if fn == "fit":
        limits["limit_val_batches"] = 0
    settings = replace(
        settings,
        **{
            **limits,
            "limit_train_batches": None,
            "max_epochs": -1,
            "min_epochs": None,
            "max_steps": steps,
            "min_steps": None,
            "num_sanity_val_steps": 0,
            "accumulate_grad_batches": 1,
        },
    )
    worked, loaders = True, []
    with copied(engine, "The batch-size search") as module:
        attribute.write(name, size, module, engine.datamodule)
        probe = _Trial(engine, module, [], settings, alone=True, fn=fn)
        try:
            probe.run()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            worked = False
        loaders = probe.loaders
        del probe
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    source = loaders[0].source if loaders else None
    dataset: Any = getattr(source, "dataset", None)
    length = len(dataset) if hasattr(dataset, "__len__") else None
    return worked, length, source.batch_size if isinstance(source, DataLoader) else None


class _Trial(Probe):
    """A probe that remembers its loaders."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.loaders: list[RankLoader] = []
        super().__init__(*args, **kwargs)

    def take_loader(self, loader: RankLoader, kind: str) -> None:
        """Remember a loader."""
        super().take_loader(loader, kind)
        self.loaders.append(loader)


def _check_read(sizes: dict[int, Any], method: str, name: str) -> None:
    """Refuse to search on when another size gives the same loader."""
    read = set(sizes.values())
    if len(sizes) > 1 and len(read) == 1 and None not in read:
        raise MisconfigurationError(
            f"{method} makes batches of {read.pop()} whatever self.{name} is: {sorted(sizes)} were tried. "
            f"Use DataLoader(..., batch_size=self.{name})."
        )
