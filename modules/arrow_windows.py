"""The plan of a block shuffle: which blocks are decoded together, in which order; pure.

Blocks (row groups, record batches) come in a keyed order, and as many as fit make a window, whose rows are
permuted together. So the sequence of samples depends on (seed, epoch, window size) alone, and where a sample
stands is found without reading anything. A block larger than a window is a window of its own.

Entropy: of n rows in b blocks and windows of w rows, there are about b! * (w!)**(n / w) orders out of n!. Two
rows of one block come within w places of each other, always; rows of one window are mixed perfectly. So a
window should hold many blocks, or files should be written in random order.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from modules.permutation import Ids, KeyedPermutation, order_key


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Rows that are held and permuted together.

    Attributes:
        start: The place of its first row in the epoch's order.
        rows: Its rows.
        blocks: The blocks that they come from, in the order in which they are decoded.
    """

    start: int
    rows: int
    blocks: tuple[int, ...]


def plan_windows(block_rows: Sequence[int], window_rows: int, key: int | None) -> tuple[Window, ...]:
    """Return the windows of an epoch.

    Args:
        block_rows: Rows of each block.
        window_rows: Rows that a window may have, unless a single block has more.
        key: The key of the order of blocks; None for the order in which they are stored.
    """
    order: Sequence[int] = range(len(block_rows))
    if key is not None:
        order = KeyedPermutation(len(block_rows), key)(np.arange(len(block_rows))).tolist()
    windows: list[Window] = []
    start, rows, blocks = 0, 0, list[int]()
    for block in order:
        if blocks and rows + block_rows[block] > window_rows:
            windows.append(Window(start=start, rows=rows, blocks=tuple(blocks)))
            start, rows, blocks = start + rows, 0, []
        rows += block_rows[block]
        blocks.append(block)
    if blocks:
        windows.append(Window(start=start, rows=rows, blocks=tuple(blocks)))
    return tuple(windows)


def find_window(windows: Sequence[Window], place: int) -> int:
    """Return the index of the window that has `place` of the epoch's order."""
    return bisect.bisect_right(windows, place, key=lambda window: window.start) - 1


def window_order(window: Window, seed: int, epoch: int) -> Ids:
    """Return the order of the rows inside a window, int64 of shape (rows,)."""
    generator = torch.Generator().manual_seed(order_key(seed, epoch, "window", window.start))
    return torch.randperm(window.rows, generator=generator).numpy()
