"""Makes a warm process as good as a new one for each trial.

A trial takes over the process of the trial before it: interpreter, imports, worker group and data that are
kept once per node. What a trial could change of the process and the next one would see is put back here:

- the random generators of Python, NumPy and torch (CPU and CUDA), seeded from the sweep's seed and the
  trial's number, so that a trial's numbers do not depend on which process it lands in;
- environment variables (a seed of `seed_everything` among them), working directory and `sys.path`;
- torch's thread count, default dtype, determinism, matmul precision, TF32 and cuDNN switches;
- grad mode, autocast, inference mode and default device, which belong to the thread: each trial has its own;
- filters of the `warnings` module;
- the CUDA memory that torch has cached, and its peak statistics;
- the user's function and data module themselves, which each trial unpickles anew.

Left alone are imported modules with their globals, compiled kernels, and what other libraries keep.
"""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from cluster.surroundings import restored
from modules import rng
from orchestrator import from_environment


def trial_seed(seed: int | None, number: int) -> int | None:
    """Return the seed of trial `number` (from 0): 32 bits, the same on any machine; None without a seed.

    >>> trial_seed(0, 3) == trial_seed(0, 3) != trial_seed(0, 4)
    True
    """
    return None if seed is None else rng.fold("trial", seed, number)


@contextmanager
def fresh_process(*, seed: int | None, threads: int, folder: str, env: Mapping[str, str]) -> Iterator[None]:
    """Run a trial in this block, and leave no trace of it in the process.

    Args:
        seed: The trial's own; None for what a new process would draw.
        threads: Of torch's kernels.
        folder: What relative paths mean; ignored where this node lacks it.
        env: Variables of the driver, with its seed and all that give arguments to Trainers: those that this
            process was started with are of another time.
    """
    tf32 = torch.backends.cudnn.allow_tf32
    with restored(threads), warnings.catch_warnings():
        from_environment.drop_stale()
        os.environ.update(env)
        if os.path.isdir(folder):
            os.chdir(folder)
        rng.set_seed(int.from_bytes(os.urandom(4), "little") if seed is None else seed)
        try:
            yield
        finally:
            torch.backends.cudnn.allow_tf32 = tf32
            torch.clear_autocast_cache()
            gc.collect()  # the module, its optimizer and loaders go now
            if torch.cuda.is_available() and torch.cuda.is_initialized():
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
