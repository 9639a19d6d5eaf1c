"""Tells whether a checkpoint file is as it was written, down to the last bit.

A ``.ckpt`` file is a zip whose members, uncompressed, are the tensors. Each has a checksum (CRC-32) of its
own, which torch writes and never compares. What lies between the members (names, sizes, offsets) has none, so
a seal is added behind: a comment of the zip that holds the checksum of all the rest. `damaged_part` compares
both. A file without a seal, Lightning's say, is judged by its members alone. Nothing here reads tensors.
"""

from __future__ import annotations

import mmap
import os
import re
import struct
import threading
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

_SEAL = re.compile(rb"orchestrator-1 crc32=([0-9a-f]{8})")
_LENGTH = len(b"orchestrator-1 crc32=00000000")
_END = struct.Struct("<4s4H2LH")
"""The end of a zip: its last field is the length of the comment."""
_END_MARK = b"PK\x05\x06"
_HEADER = struct.Struct("<4s5H3L2H")
"""The header of a member: its last two fields are the lengths of its name and of its extra part."""
_CHUNK = 16 << 20
_APART = 64 << 20
"""Members of more bytes than this in all are compared by several threads."""

Span = tuple[int, int]


def seal(file: BinaryIO) -> str:
    """Add the seal to a zip that was just written, open for reading and writing; return its checksum.

    Args:
        file: A file of the operating system, unbuffered or flushed.
    """
    end = file.seek(0, os.SEEK_END)
    file.seek(end - _END.size)
    last = _END.unpack(file.read(_END.size))
    if last[0] != _END_MARK or last[-1]:
        raise ValueError("The zip has a comment already, or is none.")
    file.seek(end - _END.size)
    file.write(_END.pack(*last[:-1], _LENGTH))
    file.flush()
    infos = _members_without_comment(file, end)
    spans = [_span(file, info) for info in infos]
    checksum = 0
    for start, stop in _between(spans, end):
        file.seek(start)
        while start < stop:
            data = file.read(min(_CHUNK, stop - start))
            checksum = zlib.crc32(data, checksum)
            start += len(data)
    file.seek(end)
    file.write(b"orchestrator-1 crc32=%08x" % checksum)
    file.flush()
    return f"{checksum:08x}"


def damaged_part(path: str | os.PathLike[str], threads: int | None = None) -> str | None:
    """Return the first part of the zip `path` whose checksum is wrong, or None.

    Reads every byte once. None for a file that is no zip.

    Args:
        path: The file.
        threads: That compare; by default as many as there are processors, at most 4.

    Raises:
        zipfile.BadZipFile: It is a zip whose list of members makes no sense.
    """
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        infos, comment = archive.infolist(), archive.comment
    with (
        open(path, "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory,
        memoryview(memory) as view,
    ):
        if any(info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 for info in infos):
            return _testzip(path)
        spans = [_span(file, info) for info in infos]
        mark = _SEAL.fullmatch(comment)
        last = _END.unpack_from(view, len(view) - len(comment) - _END.size)
        if (last[0], last[-1]) != (_END_MARK, len(comment)) or (comment and mark is None):
            return "its end"
        if mark is not None:
            checksum = 0
            for start, stop in _between(spans, len(view) - len(comment)):
                checksum = zlib.crc32(view[start:stop], checksum)
            if checksum != int(mark[1], 16):
                return "its list of parts"
        return _compare(view, infos, spans, threads or min(4, os.cpu_count() or 1))


def read_seal(path: str | os.PathLike[str]) -> str | None:
    """Return the checksum in the seal of `path`, which stands for all that the file holds; None without."""
    with zipfile.ZipFile(path) as archive:
        mark = _SEAL.fullmatch(archive.comment)
    return None if mark is None else mark[1].decode()


def _compare(
    view: memoryview, infos: Sequence[zipfile.ZipInfo], spans: Sequence[Span], threads: int
) -> str | None:
    stop = threading.Event()

    def is_right(index: int) -> bool:
        start, end = spans[index]
        checksum = 0
        for place in range(start, end, _CHUNK):
            if stop.is_set():
                return True
            checksum = zlib.crc32(view[place : min(end, place + _CHUNK)], checksum)
        if checksum != infos[index].CRC:
            stop.set()
            return False
        return True

    order = sorted(range(len(infos)), key=lambda index: spans[index][0] - spans[index][1])
    if threads == 1 or sum(end - start for start, end in spans) < _APART:
        right = [is_right(index) for index in order]
    else:
        with ThreadPoolExecutor(threads, thread_name_prefix="orchestrator-verify") as pool:
            right = list(pool.map(is_right, order))
    wrong = [infos[index].filename for index, good in zip(order, right, strict=True) if not good]
    return min(wrong, default=None)


def _members_without_comment(file: BinaryIO, end: int) -> list[zipfile.ZipInfo]:
    """Return the members of a zip whose end speaks of a comment that is not there yet."""
    file.seek(end)
    file.write(b"\0" * _LENGTH)
    file.flush()
    file.seek(0)
    with zipfile.ZipFile(file) as archive:
        return archive.infolist()


def _span(file: BinaryIO, info: zipfile.ZipInfo) -> Span:
    """Return where a member's bytes begin and end."""
    file.seek(info.header_offset)
    header = file.read(_HEADER.size)
    if len(header) < _HEADER.size or header[:4] != b"PK\x03\x04":
        raise zipfile.BadZipFile(f"there is no member where {info.filename} should be")
    fields = _HEADER.unpack(header)
    start = info.header_offset + _HEADER.size + fields[-2] + fields[-1]
    return start, start + info.compress_size


def _between(spans: Sequence[Span], end: int) -> Iterator[Span]:
    """Yield the spans up to `end` that `spans` leave out, in order."""
    place = 0
    for start, stop in sorted(spans):
        if start > place:
            yield place, start
        place = max(place, stop)
    if place < end:
        yield place, end


def _testzip(path: str | os.PathLike[str]) -> str | None:
    with zipfile.ZipFile(path) as archive:
        return archive.testzip()
