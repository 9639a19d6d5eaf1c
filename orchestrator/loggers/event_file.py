"""TensorBoard's event files, written with no more of the `tensorboard` package than its message types.

The package's own writer imports a stand-in for TensorFlow, or TensorFlow itself where it is installed, and
runs a thread per file. An event file needs neither: it is a sequence of records (length, checksum, message,
checksum), appended to. Loading the message types takes a tenth of the time of loading
`torch.utils.tensorboard`.

Records are whole in the file or not there at all, unless the machine stops; readers skip a torn last one. A
new file's name sorts after every other in its directory, because TensorBoard reads them in order of name
and never returns to an earlier one. Writing fails with the operating system's error.
"""

from __future__ import annotations

import itertools
import os
import re
import socket
import struct
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event

_NAME = re.compile(r"events\.out\.tfevents\.([0-9]+)\..*")
_file_numbers = itertools.count()


def _crc32c_table() -> tuple[int, ...]:
    # CRC-32C (Castagnoli), RFC 3720 section 12.1, bits reflected.
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return tuple(table)


_TABLE = _crc32c_table()


def crc32c(data: bytes) -> int:
    """Return the CRC-32C of `data`.

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    crc = 0xFFFFFFFF
    table = _TABLE
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def record(message: bytes) -> bytes:
    """Return `message` framed as TFRecord: uint64 length, its masked CRC-32C, the message, its masked
    CRC-32C."""
    length = struct.pack("<Q", len(message))
    return b"".join((length, _masked(crc32c(length)), message, _masked(crc32c(message))))


def _masked(crc: int) -> bytes:
    # The mask is TFRecord's: a checksum stored beside its data must not be the data's own.
    rotated = (crc >> 15) | (crc << 17) & 0xFFFFFFFF
    return struct.pack("<I", (rotated + 0xA282EAD8) & 0xFFFFFFFF)


class EventFile:
    """The event file of a directory: opened at the first event, and a new one at the first event after
    `close`.

    Usable from several threads. It has the methods that a `torch.utils.tensorboard.FileWriter` asks of its
    event writer.

    Args:
        directory: Made when the file is opened.
        flush_secs: Seconds between two writes to disk while events come fast; one that comes later than that
            after the last write is written at once. 0 writes each at once.
        suffix: Put at the end of the file's name.
    """

    def __init__(self, directory: str, *, flush_secs: float, suffix: str = "") -> None:
        self._directory = directory
        self._flush_secs = flush_secs
        self._suffix = suffix
        self._lock = threading.Lock()
        self._pending = bytearray()
        self._written_at = -float("inf")
        self._closer: weakref.finalize[[int, bytearray, int], EventFile] | None = None
        self._descriptor = -1

    def get_logdir(self) -> str:
        """Return the directory of the file."""
        return self._directory

    def add_event(self, event: Event) -> None:
        """Append `event`. It is on disk after at most `flush_secs` of further events, `flush` or `close`."""
        framed = record(event.SerializeToString())
        with self._lock:
            if self._closer is None:
                self._open()
            self._pending += framed
            if time.monotonic() - self._written_at >= self._flush_secs:
                self._write()

    def add_scalars(self, scalars: dict[str, float], step: int | None) -> None:
        """Append the value of every tag at `step`, in one event with the present time."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def add_restart(self, step: int) -> None:
        """Tell readers that the run goes on from `step`: they drop what came before with that step or a
        later one."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        start = SessionLog(status=SessionLog.START)
        self.add_event(Event(wall_time=time.time(), step=step, session_log=start))

    def flush(self) -> None:
        """Write to disk what is held in memory."""
        with self._lock:
            if self._closer is not None:
                self._write()

    def close(self) -> None:
        """Write what is held in memory and close the file."""
        with self._lock:
            if self._closer is not None:
                self._closer()
                self._closer = None
                self._written_at = -float("inf")

    def reopen(self) -> None:
        """Do nothing: the next event opens a new file."""

    def _open(self) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        os.makedirs(self._directory, exist_ok=True)
        path = os.path.join(self._directory, self._next_name())
        self._descriptor = os.open(
            path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o666
        )
        self._pending.clear()
        self._pending += record(
            Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString()
        )
        self._closer = weakref.finalize(self, _write_and_close, self._descriptor, self._pending, os.getpid())
        self._write()
        self._written_at = -float("inf")

    def _next_name(self) -> str:
        started = [int(match[1]) for match in map(_NAME.fullmatch, os.listdir(self._directory)) if match]
        stamp = max(int(time.time()), max(started, default=0) + 1)
        number = next(_file_numbers)
        return f"events.out.tfevents.{stamp:010d}.{socket.gethostname()}.{os.getpid()}.{number}{self._suffix}"

    def _write(self) -> None:
        _write_all(self._descriptor, self._pending)
        self._written_at = time.monotonic()


def _write_all(descriptor: int, pending: bytearray) -> None:
    while pending:
        del pending[: os.write(descriptor, pending)]


def _write_and_close(descriptor: int, pending: bytearray, owner: int) -> None:
    if os.getpid() != owner:  # a forked copy: the events are its parent's to write
        return
    try:
        _write_all(descriptor, pending)
    finally:
        os.close(descriptor)


def summary_writer(events: EventFile, **arguments: Any) -> Any:
    """Return a real `torch.utils.tensorboard.SummaryWriter` that appends to `events` and takes `arguments`.

    TensorBoard follows one file of a directory at a time, so the writer must not open another one beside
    `events`.
    """
    from torch.utils.tensorboard import FileWriter, SummaryWriter

    class _FileWriter(FileWriter):
        def __init__(self) -> None:
            self.event_writer = events

    class _SummaryWriter(SummaryWriter):
        file_writer: Any
        all_writers: Any

        def _get_file_writer(self) -> Any:
            if self.file_writer is None:
                self.file_writer = _FileWriter()
                self.all_writers = {events.get_logdir(): self.file_writer}
            return self.file_writer

    return _SummaryWriter(events.get_logdir(), **arguments)
