"""Event files as TensorBoard's own readers see them."""

from __future__ import annotations

import gc
import struct
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.loggers.event_file import EventFile, crc32c, record, summary_writer


def read_events(path: Path) -> list[Any]:
    """Return the events of one file, read and checked by the tensorboard package."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    return list(EventFileLoader(str(path)).Load())


def scalars(directory: Path, tag: str = "a") -> list[tuple[int, float]]:
    """Return (step, value) of one tag over all files of a directory, as TensorBoard follows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return [(event.step, event.value) for event in EventAccumulator(str(directory)).Reload().Scalars(tag)]


# RFC 3720, appendix B.4.
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(reversed(range(32))), 0x113FDB5C),
        (b"", 0),
    ],
)
def test_the_checksum_is_the_standards(data: bytes, expected: int) -> None:
    """CRC-32C gives the values of its specification."""
    assert crc32c(data) == expected


@given(st.binary(max_size=300))
def test_the_checksum_agrees_with_tensorboards(data: bytes) -> None:
    """A record carries the masked checksums that TensorBoard computes itself."""
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    framed = record(data)
    length, of_length = struct.unpack("<QI", framed[:12])
    (of_data,) = struct.unpack("<I", framed[-4:])
    assert length == len(data)
    assert of_length == masked_crc32c(framed[:8])
    assert of_data == masked_crc32c(data)


def test_a_file_appears_with_the_first_event(tmp_path: Path) -> None:
    """Nothing is made before there is something to record."""
    events = EventFile(str(tmp_path / "new"), flush_secs=0)
    events.flush()
    events.close()
    assert list(tmp_path.iterdir()) == []
    events.add_scalars({"a": 1.0}, 0)
    assert len(list((tmp_path / "new").iterdir())) == 1
    events.close()


def test_events_carry_version_time_step_and_values(tmp_path: Path) -> None:
    """The first event names the format; a scalar event has its step, the present time and all values."""
    events = EventFile(str(tmp_path), flush_secs=0)
    before = time.time()
    events.add_scalars({"a": 1.5, "b": -2.0}, 7)
    events.add_scalars({"a": 1.5}, None)
    events.close()
    (path,) = tmp_path.iterdir()
    first, second, third = read_events(path)
    assert first.file_version == "brain.Event:2"
    assert second.step == 7
    assert [value.tag for value in second.summary.value] == ["a", "b"]
    assert before <= second.wall_time <= third.wall_time <= time.time()
    assert third.step == 0


def test_a_reader_sees_events_while_the_file_is_open(tmp_path: Path) -> None:
    """With flush_secs=0 each event is readable at once, without any further call."""
    events = EventFile(str(tmp_path), flush_secs=0)
    for step in range(3):
        events.add_scalars({"a": step}, step)
        assert scalars(tmp_path)[-1] == (step, step)
    events.close()


def test_fast_events_are_written_together(tmp_path: Path) -> None:
    """Within flush_secs of a write events stay in memory, and flush writes them."""
    events = EventFile(str(tmp_path), flush_secs=3600)
    events.add_scalars({"a": 0}, 0)
    (path,) = tmp_path.iterdir()
    size = path.stat().st_size
    events.add_scalars({"a": 1}, 1)
    assert path.stat().st_size == size
    events.flush()
    assert scalars(tmp_path) == [(0, 0), (1, 1)]
    events.close()


def test_what_is_in_memory_is_written_when_the_object_goes(tmp_path: Path) -> None:
    """An event file that nobody closed loses nothing when it is collected."""
    events = EventFile(str(tmp_path), flush_secs=3600)
    for step in range(3):
        events.add_scalars({"a": step}, step)
    del events
    gc.collect()
    assert scalars(tmp_path) == [(0, 0), (1, 1), (2, 2)]


def test_what_is_in_memory_is_written_when_the_program_ends(tmp_path: Path) -> None:
    """A program that ends without closing loses nothing; nor do its forked copies write anything twice."""
    import subprocess
    import sys

    program = f"""
import os
from orchestrator.loggers.event_file import EventFile
events = EventFile({str(tmp_path)!r}, flush_secs=3600)
for step in range(3):
    events.add_scalars({{"a": step}}, step)
if os.fork() == 0:
    raise SystemExit
os.wait()
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    assert scalars(tmp_path) == [(0, 0), (1, 1), (2, 2)]


def test_each_new_file_sorts_last(tmp_path: Path) -> None:
    """TensorBoard reads files by name and follows the last, so a new one comes after all others, whatever
    the clock."""
    (tmp_path / "events.out.tfevents.4000000000.otherhost.1.9").touch()
    names = []
    for step in range(3):
        events = EventFile(str(tmp_path), flush_secs=0)
        events.add_scalars({"a": step}, step)
        events.close()
        events.add_scalars({"a": 10 + step}, 10 + step)
        events.close()
        names.append(sorted(path.name for path in tmp_path.iterdir()))
    assert names[2][:3] == names[0]
    assert names[2][:5] == names[1]
    assert scalars(tmp_path) == [(0, 0), (10, 10), (1, 1), (11, 11), (2, 2), (12, 12)]


def test_threads_write_whole_events(tmp_path: Path) -> None:
    """Events of several threads do not mix."""
    events = EventFile(str(tmp_path), flush_secs=0)

    def write(tag: str) -> None:
        for step in range(50):
            events.add_scalars({tag: step}, step)

    threads = [threading.Thread(target=write, args=(tag,)) for tag in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    events.close()
    for tag in "abcd":
        assert scalars(tmp_path, tag) == [(step, step) for step in range(50)]


def test_a_restart_hides_what_is_repeated(tmp_path: Path) -> None:
    """Readers drop what was recorded at the restart's step and later before it."""
    events = EventFile(str(tmp_path), flush_secs=0)
    for step in range(5):
        events.add_scalars({"a": step}, step)
    events.add_restart(3)
    events.add_scalars({"a": 33}, 3)
    events.close()
    assert scalars(tmp_path) == [(0, 0), (1, 1), (2, 2), (3, 33)]


def test_a_summary_writer_shares_the_file(tmp_path: Path) -> None:
    """PyTorch's writer appends to the same file, in the order of the calls, also after it was closed."""
    import torch
    from torch.utils.tensorboard import SummaryWriter

    events = EventFile(str(tmp_path), flush_secs=3600)
    events.add_scalars({"a": 0}, 0)
    writer = summary_writer(events)
    assert isinstance(writer, SummaryWriter)
    writer.add_scalar("a", 1, 1)
    events.add_scalars({"a": 2}, 2)
    writer.add_histogram("h", torch.arange(10.0), 2)
    writer.flush()
    assert len(list(tmp_path.iterdir())) == 1
    assert scalars(tmp_path) == [(0, 0), (1, 1), (2, 2)]
    writer.close()
    writer.add_scalar("a", 3, 3)
    writer.close()
    assert scalars(tmp_path) == [(0, 0), (1, 1), (2, 2), (3, 3)]
