"""Windows of rows, decoded ahead of use by a background thread, within a bound of bytes.

While the batches of one window are taken, the next ones are decoded: as many as the read-ahead allows, at
least one. Each window lies in a buffer that is used again when the window after it is asked for, so a window
is valid until then. An error in the thread is raised where the window is asked for. Closing the iterator ends
the thread and closes all files.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from modules.arrow_rows import Rows
from modules.arrow_source import Source
from modules.arrow_windows import Window


def read_windows(source: Source, windows: Sequence[Window], *, ahead: int, allow_nan: bool) -> Iterator[Rows]:
    """Return an iterator over the rows of each window.

    Args:
        source: What is read.
        windows: The windows, in the order in which they are wanted.
        ahead: Windows that are decoded in advance, at least 1.
        allow_nan: Take NaN.
    """
    capacity = max(window.rows for window in windows)
    free = [Rows(source.outputs, capacity) for _ in range(min(ahead + 1, len(windows)))]
    reader = source.open()
    pending: deque[tuple[Rows, Future[None]]] = deque()
    pool = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
    upcoming = iter(windows)
    try:
        for _ in windows:
            while free and (window := next(upcoming, None)) is not None:
                rows = free.pop()
                task = pool.submit(rows.fill, source, reader, window.blocks, allow_nan=allow_nan)
                pending.append((rows, task))
            rows, task = pending.popleft()
            task.result()
            yield rows
            free.append(rows)
    finally:
        for _, task in pending:
            task.cancel()
        pool.shutdown(wait=True)
        reader.close()
