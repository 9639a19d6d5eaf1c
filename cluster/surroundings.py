"""Puts back what a callable changed of its process, so that a warm worker serves the next one as a fresh one
would.

Covered are the environment variables, the working directory, `sys.path`, and torch's thread count, default
dtype, grad mode, determinism and matmul precision. The random number generators are not: who wants a fixed
stream seeds it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def restored(threads: int) -> Iterator[None]:
    """Give the block `threads` intra-op threads, and afterwards undo what it changed of the process."""
    import torch

    torch.set_num_threads(threads)
    environ, cwd, path = dict(os.environ), os.getcwd(), list(sys.path)
    dtype, grad = torch.get_default_dtype(), torch.is_grad_enabled()
    deterministic, warn_only = _determinism()
    precision = torch.get_float32_matmul_precision()
    cudnn = torch.backends.cudnn
    cudnn_flags = (cudnn.enabled, cudnn.benchmark, cudnn.deterministic)
    try:
        yield
    finally:
        for name in os.environ.keys() - environ.keys():
            del os.environ[name]
        os.environ.update({name: value for name, value in environ.items() if os.environ.get(name) != value})
        os.chdir(cwd if os.path.isdir(cwd) else "/")
        sys.path[:] = path
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)
        if _determinism() != (deterministic, warn_only):  # setting it imports torch's compiler, for seconds
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.set_float32_matmul_precision(precision)
        cudnn.enabled, cudnn.benchmark, cudnn.deterministic = cudnn_flags


def _determinism() -> tuple[bool, bool]:
    """Whether torch is to compute deterministically, and only warns where it cannot."""
    import torch

    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
