"""The numbers that a run's loggers have written, by name: from ``metrics.csv``, else from TensorBoard's
files.

A curve is a list of (step, value) in the order of steps; of several values at a step the last one counts.
What a crash has cut short is left out, as is what is not a number. Nothing of TensorBoard is loaded but its
record format.
"""

from __future__ import annotations

import csv
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Curve = list[tuple[int, float]]

_NO_CURVES = frozenset({"epoch", "step", "hp_metric"})
_LENGTH = struct.Struct("<Q")
_CHECKSUM_BYTES = 4


def read_curves(folder: Path, *, finite: bool = True) -> dict[str, Curve]:
    """Return the curves of the run in `folder`, in the order of their names.

    Args:
        folder: The run's.
        finite: Leave out what is not finite.
    """
    found: dict[str, dict[int, float]] = {}
    for name, step, value in [*_of_events(folder), *_of_table(folder / "metrics.csv")]:
        if name not in _NO_CURVES and (math.isfinite(value) or not finite):
            found.setdefault(name, {})[step] = value
    return {name: sorted(found[name].items()) for name in sorted(found)}


def _of_table(path: Path) -> Iterator[tuple[str, int, float]]:
    if not path.is_file():
        return
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            step = row.get("step") or ""
            if not step.isdigit():
                continue
            for name, text in row.items():
                try:
                    yield name, int(step), float(text)
                except (TypeError, ValueError):
                    continue


def _of_events(folder: Path) -> Iterator[tuple[str, int, float]]:
    for path in sorted(folder.glob("events.out.tfevents.*")):
        yield from read_scalars(path.read_bytes())


def read_scalars(data: bytes) -> Iterator[tuple[str, int, float]]:
    """Yield (tag, step, value) of the scalars in a TensorBoard file's bytes, up to where it is damaged."""
    from tensorboard.compat.proto.event_pb2 import Event

    place = 0
    while place + _LENGTH.size + _CHECKSUM_BYTES <= len(data):
        (length,) = _LENGTH.unpack_from(data, place)
        start = place + _LENGTH.size + _CHECKSUM_BYTES
        place = start + length + _CHECKSUM_BYTES
        if place > len(data):
            return
        event: Any = Event()
        try:
            event.ParseFromString(data[start : start + length])
        except Exception:  # of protobuf, which is TensorBoard's dependency and not ours
            return
        for value in event.summary.value:
            kind = value.WhichOneof("value")
            if kind == "simple_value":
                yield value.tag, int(event.step), float(value.simple_value)
            elif kind == "tensor" and len(value.tensor.float_val) == 1:
                yield value.tag, int(event.step), float(value.tensor.float_val[0])


def thinned(curve: Curve, most: int = 400) -> Curve:
    """Return at most about `most` points: of each stretch of steps its least and its greatest value, so that
    spikes stay; the first and the last point always.

    >>> thinned([(step, float(step % 7)) for step in range(6)], 10)
    [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0), (5, 5.0)]
    """
    if len(curve) <= most:
        return curve
    width = math.ceil(2 * len(curve) / (most - 2))
    kept = {0, len(curve) - 1}
    for start in range(0, len(curve), width):
        places = range(start, min(start + width, len(curve)))
        kept.add(min(places, key=lambda place: curve[place][1]))
        kept.add(max(places, key=lambda place: curve[place][1]))
    return [curve[place] for place in sorted(kept)]
