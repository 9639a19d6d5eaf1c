"""Kills a process at random points while it saves, and looks at what is left: run it as a program.

``python -m tests.orchestrator.checkpoint.kills TRIALS [FOLDER]`` prints, as JSON, how often what was left was
not as promised. The child is forked before torch has started threads. It saves over and over, as training
does: a file or a directory of two ranks' parts, then ``last`` as a second name of it, then the removal of the
one before; it says which are complete. After the kill the newest whole checkpoint must be at least that one,
and no file that has its name may be damaged.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
import warnings
from typing import Any

import torch

from modules.checkpoint import CheckpointError, read
from modules.checkpoint.shards import Parts
from orchestrator.checkpoint import local_files
from orchestrator.checkpoint.newest import checkpoints_in, first_usable, newest_first
from orchestrator.checkpoint.sharded_writer import write_parts, write_rest
from orchestrator.checkpoint.writer import write


def content_of(step: int) -> dict[str, Any]:
    """A checkpoint of about 200 KB that knows its step in each tensor."""
    weights = {f"layer{index}": torch.full((50, 100), float(step)) for index in range(10)}
    return {"state_dict": weights, "optimizer_states": [{}], "global_step": step}


def save(folder: str, step: int, kind: str) -> str:
    """Save one checkpoint as a run does, and return its path."""
    path = os.path.join(folder, f"step={step}.ckpt")
    if kind == "file":
        write(content_of(step), path)
        return path
    hidden = local_files.temporary_name(path)
    parts, marked = [], {}
    for rank in range(2):
        own = Parts()
        begin = 25 * rank
        marked = own.without(
            content_of(step),
            lambda item, begin=begin: (item[begin : begin + 25], tuple(item.shape), [begin, 0]),  # type: ignore[misc]
        )
        parts.append(own.content())
    other = threading.Thread(target=write_parts, args=(parts[1], path, hidden, 1))
    other.start()
    write_parts(parts[0], path, hidden, 0)
    write_rest(marked, path, hidden, 2, lambda: False)
    other.join()
    return path


def child(folder: str, told: int, kind: str, first: int) -> None:
    """Save until killed; tell the step of each save that is complete."""
    before = None
    for step in range(first, first + 10_000):
        path = save(folder, step, kind)
        local_files.give_second_name(path, os.path.join(folder, "last.ckpt"), symbolic=kind == "link")
        if before is not None:
            local_files.remove(before)
        before = path
        os.write(told, f"{step}\n".encode())


def trial(folder: str, kind: str, first: int, pause_s: float) -> tuple[list[str], int]:
    """Run a child, kill it after a while, and return what is wrong with what it left, and its newest step."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        child(folder, writing, "file" if kind == "link" else kind, first)
        os._exit(1)
    os.close(writing)
    os.read(reading, 1)  # the first save is complete: from here on there must always be one
    time.sleep(pause_s)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with os.fdopen(reading, "rb") as pipe:
        steps = [int(line) for line in pipe.read().split()[:-1]]
    told = max(steps, default=first)
    wrong = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        paths = newest_first(checkpoints_in([folder]))
        found = first_usable(paths, "trial", trains=True, stacklevel=1)
    wrong += [str(item.message) for item in caught]
    if found is None:
        return [*wrong, "nothing can be loaded"], told
    content = read(found)
    step = content["global_step"]
    if step < told:
        wrong.append(f"step {step} is there, and {told} was complete")
    if not all(torch.equal(item, torch.full_like(item, step)) for item in content["state_dict"].values()):
        wrong.append(f"the tensors of step {step} are of several steps")
    for path in paths:
        try:
            read(path)
        except CheckpointError as error:
            wrong.append(str(error))
    left = [name for name in os.listdir(folder) if name.endswith(".tmp")]
    if left:
        wrong.append(f"not tidied up: {left}")
    return wrong, step


def main() -> None:
    """Run the trials and print what was wrong."""
    torch.set_num_threads(1)
    trials = int(sys.argv[1])
    draw = random.Random(7)
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(dir=sys.argv[2] if len(sys.argv) > 2 else None) as root:
        for kind in ("file", "link", "shards"):
            folder = os.path.join(root, kind)
            os.mkdir(folder)
            step = 0
            for _ in range(-(-trials // 3)):
                found, step = trial(folder, kind, step + 1, draw.random() * 0.08)
                wrong += found
    print(json.dumps({"kills": 3 * -(-trials // 3), "wrong": wrong}))


if __name__ == "__main__":
    main()
