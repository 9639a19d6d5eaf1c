"""Random streams as state: seeded, folded by keys, saved and put back.

Covers Python's ``random``, NumPy's global generator (when NumPy is loaded) and torch's CPU and CUDA
generators. A captured state holds only tensors, numbers and tuples, so it fits into a checkpoint that loads
without pickle.
"""

from __future__ import annotations

import contextlib
import hashlib
import operator
import os
import random
import sys
from collections.abc import Iterator
from typing import Any

import torch

GLOBAL_SEED_VARIABLE = "ORCHESTRATOR_GLOBAL_SEED"
SEED_WORKERS_VARIABLE = "ORCHESTRATOR_SEED_WORKERS"
SEED_VARIABLES = (GLOBAL_SEED_VARIABLE, SEED_WORKERS_VARIABLE)
_MAX_SEED = 2**32 - 1


def seed_everything(seed: int | None = None, workers: bool = False, verbose: bool = True) -> int:
    """Seed Python, NumPy and torch, and remember the seed for the order of samples on every rank.

    Args:
        seed: 0 to 2**32 - 1. None takes the seed of an earlier call (it travels in the environment), else 0.
        workers: Accepted, and kept in the environment; torch gives each DataLoader worker process seeds of
            its own for Python's, NumPy's and torch's generators in any case.
        verbose: Print the seed.

    Returns:
        The seed that was set.

    Raises:
        ValueError: The seed is not a whole number in that range.
    """
    if seed is None:
        seed = global_seed() or 0
    if isinstance(seed, bool) or not hasattr(seed, "__index__") or not 0 <= seed <= _MAX_SEED:
        raise ValueError(
            f"seed_everything(seed={seed!r}): not a seed. Use a whole number from 0 to {_MAX_SEED}."
        )
    seed = operator.index(seed)  # NumPy's integers too
    if verbose:
        print(f"Seed set to {seed}", file=sys.stderr)
    os.environ[GLOBAL_SEED_VARIABLE] = str(seed)
    os.environ[SEED_WORKERS_VARIABLE] = str(int(workers))
    set_seed(seed)
    return seed


def global_seed() -> int | None:
    """Return the seed of the last `seed_everything`, here or in the process that started this; else None.

    Raises:
        ValueError: The environment variable that carries it was set to something else.
    """
    value = os.environ.get(GLOBAL_SEED_VARIABLE)
    if value is None:
        return None
    if not value.isdecimal():
        raise ValueError(
            f"The environment has {GLOBAL_SEED_VARIABLE}={value!r}: not a seed. Use a whole number from 0 to "
            f"{_MAX_SEED}, or unset it."
        )
    return int(value)


def set_seed(seed: int) -> None:
    """Seed all global generators of this process with `seed` (0 to 2**32 - 1)."""
    random.seed(seed)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(seed)
    torch.manual_seed(seed)


def fold(*keys: int | str) -> int:
    """Return a 32-bit seed that depends on every key and its place: the same on any machine, at any time."""
    digest = hashlib.blake2b(repr(keys).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")


def fold_rank(rank: int) -> None:
    """Give this process a random stream of its own, a function of the present one and of `rank`.

    Ranks that start from equal streams get different ones, and other ones each time.
    """
    present = hashlib.blake2b(torch.get_rng_state().numpy().tobytes()).hexdigest()
    set_seed(fold(present, "rank", rank))


def capture() -> dict[str, Any]:
    """Return the state of all global generators."""
    state: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        name, keys, position, has_gauss, cached = numpy.random.get_state()
        state["numpy"] = (name, torch.from_numpy(keys.astype("int64")), position, has_gauss, cached)
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore(state: dict[str, Any]) -> None:
    """Put back what `capture` returned."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    torch.set_rng_state(state["torch"].cpu())
    if "numpy" in state:
        import numpy

        name, keys, position, has_gauss, cached = state["numpy"]
        numpy.random.set_state((name, keys.cpu().numpy().astype("uint32"), position, has_gauss, cached))
    if "cuda" in state and torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([item.cpu() for item in state["cuda"]])


@contextlib.contextmanager
def isolated(seed: int | None = None) -> Iterator[None]:
    """Leave all global generators as they were; inside, they start from `seed` when one is given."""
    before = capture()
    if seed is not None:
        set_seed(seed)
    try:
        yield
    finally:
        restore(before)
