"""What training on a GPU costs over the plain PyTorch loop: tokens, copies of batches, checkpoints, waits.

    python benchmarks/gpu.py                      # on a machine with a CUDA device
    python benchmarks/gpu.py --device cpu --tiny  # that the program itself works; its figures say nothing

Four questions, each beside its peers in the same process and run, the contenders in turn:

- *throughput*: tokens a second of a GPT of 124 M parameters in bf16-mixed, and the share of the device's peak
  that its matrix products are (MFU). Both loops have the same weights, batches and fused AdamW, and read the
  loss at the same steps; `ASKED_FOR` is what is asked of ours. ``--compile`` adds both under torch.compile.
- *prefetch*: a step whose batch of 64 MiB comes from the host: through the Trainer, and through a DataLoader
  that pins and ``.to(non_blocking=True)``, both without worker processes; and with batches on the device.
- *checkpoint*: seconds that the loop stands still for the model and AdamW's moments, until the file is
  complete: extra time over its median step. The first save of a run also reserves memory.
- *syncs*: how often the host waits for the device, and copies from it, in a step between log points: the
  difference of two profiled runs of unequal length, so that what the profiler does once does not count.

The device is waited for only where the clock is read: twice a run, and at each step for the checkpoints.
Without a CUDA device the program ends with status 2, and with ``--device cpu`` it leaves out *prefetch* and
*syncs*. It raises `RuntimeError` where the two loops have not done the same steps, or where the profiler may
not look at the device. At full size it takes about 10 GB of the device's memory and 5 GB of temporary files.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from harness import measure, report, summarize
from torch import Tensor, nn
from torch.utils.data import DataLoader

import orchestrator as pl
from modules.models.gpt import ByteGPT
from orchestrator.callbacks import ModelCheckpoint
from orchestrator.device_peaks import available_flops

ASKED_FOR = 0.98
"""Of the plain loop's tokens a second."""
NEVER = 10**9
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
PLAIN, OURS = "plain loop", "orchestrator"
At = Callable[[int], bool]
"""Called with the index of a batch before its step; whether to stop there."""
Contender = Callable[[], Mapping[str, float]]
Figures = Mapping[str, Mapping[str, list[float]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How large everything is.

    Attributes:
        model: Arguments of `GPT`.
        sequences: In a batch.
        steps: Of a run, of which the first `warm` and the last are not timed.
        log_every: Steps from one reading of the loss to the next.
        save_every: Steps from one checkpoint to the next.
        rows: Of a batch that is copied, with `features` float32 numbers each.
        hidden: Width of the perceptron that eats them.
    """

    model: Mapping[str, int]
    sequences: int
    steps: int
    warm: int
    log_every: int
    save_every: int
    rows: int
    features: int
    hidden: int


FULL = Size(
    model={"vocabulary": 50304, "context": 1024, "layers": 12, "heads": 12, "width": 768},
    sequences=8,
    steps=121,
    warm=20,
    log_every=50,
    save_every=150,
    rows=16384,
    features=1024,
    hidden=4096,
)
TINY = Size(
    model={"vocabulary": 64, "context": 16, "layers": 1, "heads": 2, "width": 16},
    sequences=2,
    steps=13,
    warm=2,
    log_every=5,
    save_every=10,
    rows=8,
    features=8,
    hidden=8,
)


class GPT(ByteGPT):
    """The product's GPT with a vocabulary of its own, and a fused optimizer."""

    def __init__(self, vocabulary: int, context: int, layers: int, heads: int, width: int) -> None:
        super().__init__(context=context, layers=layers, heads=heads, width=width)
        self.token, self.head = nn.Embedding(vocabulary, width), nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.token.weight
        nn.init.normal_(self.token.weight, std=0.02)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW in one kernel."""
        return torch.optim.AdamW(self.parameters(), lr=3e-4, betas=(0.9, 0.95), fused=True)


class Perceptron(pl.LightningModule):
    """Eats large batches."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, features))

    def loss(self, batch: Tensor) -> Tensor:
        """Return how far the batch is from what comes out, squared."""
        return nn.functional.mse_loss(self.net(batch), batch)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Return the loss."""
        return self.loss(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain gradient descent."""
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class Batches:
    """The same few batches again and again; counts what it has given.

    Attributes:
        samples: That were given.
    """

    def __init__(self, kept: Sequence[Tensor], length: int) -> None:
        self._kept, self._length = kept, length
        self.samples = 0

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Tensor:
        batch = self._kept[index % len(self._kept)]
        self.samples += len(batch)
        return batch

    def __iter__(self) -> Iterator[Tensor]:
        return (self[index] for index in range(self._length))


class Marks:
    """Reads the clock before some batches, or all, once the device has done what it was given.

    Attributes:
        at: Seconds by the index of the batch.
    """

    def __init__(self, device: torch.device, wanted: Collection[int] | None = None) -> None:
        self._device, self._wanted = device, wanted
        self.at: dict[int, float] = {}

    def __call__(self, index: int) -> bool:
        """Read it, if this batch is wanted; never stop."""
        if self._wanted is None or index in self._wanted:
            synchronize(self._device)
            self.at[index] = time.perf_counter()
        return False


class Watch(pl.Callback):
    """Calls `at` before each batch, where the plain loop does."""

    def __init__(self, at: At) -> None:
        self._at = at

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stop where told to."""
        if self._at(batch_idx):
            trainer.should_stop = True


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What both loops train.

    Attributes:
        make: Makes the module, always with the same weights, on the host.
        precision: The Trainer's name: bf16-mixed or 32-true.
        log_every: Steps from one reading of the loss to the next.
        compiled: Under torch.compile.
    """

    make: Callable[[], Any]
    device: torch.device
    precision: str = "bf16-mixed"
    log_every: int = NEVER
    compiled: bool = False

    def prepare(self) -> None:
        """Forget earlier runs: their memory, and how often torch.compile has compiled this code."""
        gc.collect()
        if self.compiled:
            torch.compiler.reset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A trained module, on the task's device, and how many steps it has made."""

    module: Any
    steps: int


def run_plain(
    task: Task, batches: Iterable[Tensor], at: At, after: Callable[[int, Any, Any], None] | None = None
) -> Trained:
    """Train with the loop that a user of plain PyTorch writes; `after` is called with each step's number,
    module and optimizer.
    """
    task.prepare()
    module = task.make().to(task.device)
    optimizer = module.configure_optimizers()
    loss_of = torch.compile(module.loss) if task.compiled else module.loss
    mixed = task.precision == "bf16-mixed"
    autocast = torch.autocast(task.device.type, torch.bfloat16) if mixed else contextlib.nullcontext()
    steps = 0
    for index, batch in enumerate(batches):
        moved = batch.to(task.device, non_blocking=True)
        if at(index):
            break
        optimizer.zero_grad()
        with autocast:
            loss = loss_of(moved)
        loss.backward()
        optimizer.step()
        steps += 1
        if steps % task.log_every == 0:
            loss.item()
        if after is not None:
            after(steps, module, optimizer)
    return Trained(module=module, steps=steps)


def run_ours(task: Task, batches: Iterable[Tensor], at: At, *callbacks: pl.Callback) -> Trained:
    """Train with the Trainer."""
    task.prepare()
    module = task.make()
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator="gpu" if task.device.type == "cuda" else "cpu",
            devices=1,
            precision=task.precision,
            compile=task.compiled,
            max_epochs=1,
            log_every_n_steps=task.log_every,
            logger=False,
            enable_checkpointing=bool(callbacks),
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            callbacks=[Watch(at), *callbacks],
        )
        trainer.fit(module, batches)
    return Trained(module=module.to(task.device), steps=trainer.global_step)


Loop = Callable[[Task, Iterable[Tensor], At], Trained]
LOOPS: dict[str, Loop] = {PLAIN: run_plain, OURS: run_ours}


def gpt_task(size: Size, device: torch.device, **options: Any) -> Task:
    """Return the training of the GPT."""

    def make() -> GPT:
        torch.manual_seed(0)
        return GPT(**size.model)

    return Task(make=make, device=device, **options)


def token_batches(size: Size, device: torch.device) -> list[Tensor]:
    """Return a few batches of shape (sequences, context + 1), int64, in pinned memory for a GPU."""
    generator = torch.Generator().manual_seed(0)
    shape = (size.sequences, size.model["context"] + 1)
    found = [torch.randint(0, size.model["vocabulary"], shape, generator=generator) for _ in range(8)]
    return [item.pin_memory() for item in found] if device.type == "cuda" else found


def flops_of_token(model: Mapping[str, int]) -> int:
    """Return the operations of matrix products for a token, forward and backward: 6 for each weight of one,
    and 12 * layers * width * context for attention without regard to its mask (Chowdhery et al., 2022,
    appendix B).
    """
    width, layers = model["width"], model["layers"]
    weights = 12 * layers * width**2 + model["vocabulary"] * width
    return 6 * weights + 12 * layers * width * model["context"]


# ---------------------------------------------------------------- the four questions


def measure_throughput(
    size: Size, device: torch.device, rounds: int, *, compiled: bool, precision: str = "bf16-mixed"
) -> tuple[list[dict[str, Any]], dict[str, dict[str, float]]]:
    """Return the rows, and by contender the steps and samples of its last run, and the loss of the first
    batch behind it.

    Raises:
        RuntimeError: Steps or samples of the two loops differ.
    """
    kept, work = token_batches(size, device), {}
    tokens = size.sequences * size.model["context"] * (size.steps - 1 - size.warm)
    peak = available_flops(device, precision)

    def contender(name: str, loop: Loop, task: Task) -> Contender:
        def run() -> Mapping[str, float]:
            batches, marks = Batches(kept, size.steps), Marks(device, {size.warm, size.steps - 1})
            trained = loop(task, batches, marks)
            with torch.no_grad():
                loss = trained.module.loss(kept[0].to(device)).item()
            work[name] = {"steps": trained.steps, "samples": batches.samples, "loss": loss}
            rate = tokens / (marks.at[size.steps - 1] - marks.at[size.warm])
            share = {"mfu_percent": 100 * rate * flops_of_token(size.model) / peak} if peak else {}
            return {"tokens_a_s": rate, **share}

        return run

    rows = []
    for suffix, with_compile in (("", False), (", compiled", True))[: 1 + compiled]:
        task = gpt_task(size, device, precision=precision, log_every=size.log_every, compiled=with_compile)
        contenders = {name + suffix: contender(name + suffix, loop, task) for name, loop in LOOPS.items()}
        rows += compared(contenders, rounds, PLAIN + suffix)
        done, peer = work[OURS + suffix], work[PLAIN + suffix]
        if any(done[key] != peer[key] for key in ("steps", "samples")):
            raise RuntimeError(f"The two loops have not done the same work: {work}. Nothing is compared.")
    return rows, work


def measure_prefetch(size: Size, device: torch.device, rounds: int) -> list[dict[str, Any]]:
    """Return the rows of steps whose batches come from the host."""
    generator = torch.Generator().manual_seed(0)
    kept = [torch.randn(size.rows, size.features, generator=generator) for _ in range(4)]
    there = [item.to(device) for item in kept]
    pins = device.type == "cuda"

    def make() -> Perceptron:
        torch.manual_seed(0)
        return Perceptron(size.features, size.hidden)

    def loader(*, pin_memory: bool) -> Iterable[Tensor]:
        batches: Any = Batches(kept, size.steps)
        return DataLoader(batches, batch_size=None, pin_memory=pin_memory)

    def contender(loop: Loop, batches: Callable[[], Iterable[Tensor]]) -> Contender:
        def run() -> Mapping[str, float]:
            marks = Marks(device, {size.warm, size.steps - 1})
            loop(Task(make=make, device=device, precision="32-true"), batches(), marks)
            seconds = marks.at[size.steps - 1] - marks.at[size.warm]
            return {"large_batch_step_ms": 1000 * seconds / (size.steps - 1 - size.warm)}

        return run

    contenders = {
        f"{PLAIN}, pin_memory": contender(run_plain, lambda: loader(pin_memory=pins)),
        f"{PLAIN}, batches on the device": contender(run_plain, lambda: Batches(there, size.steps)),
        f"{OURS}, host batches": contender(run_ours, lambda: loader(pin_memory=False)),
    }
    return compared(contenders, rounds, f"{PLAIN}, pin_memory")


def measure_checkpoint(size: Size, device: torch.device, rounds: int) -> list[dict[str, Any]]:
    """Return the rows of two saves in one run, each until its file is complete."""
    kept, every = token_batches(size, device), size.save_every
    task = gpt_task(size, device)

    def contender(run: Callable[[Path, Iterable[Tensor], At], object]) -> Contender:
        def saving() -> Mapping[str, float]:
            marks, seen = Marks(device), {}
            with tempfile.TemporaryDirectory() as name:

                def at(index: int) -> bool:
                    marks(index)
                    due = [number for number in (every, 2 * every) if number <= index and number not in seen]
                    seen.update(dict.fromkeys([n for n in due if (Path(name) / f"{n}.ckpt").exists()], index))
                    return len(seen) == 2

                # By the third save, which waits for the second, both files are there.
                run(Path(name), Batches(kept, 3 * every + 1), at)
            first, later = (stall_s(marks.at, every, number, seen[number]) for number in (every, 2 * every))
            return {"first_stall_s": first, "stall_s": later}

        return saving

    def by_torch(*, flushes: bool) -> Callable[[Path, Iterable[Tensor], At], object]:
        def run(folder: Path, batches: Iterable[Tensor], at: At) -> object:
            def after(steps: int, module: Any, optimizer: Any) -> None:
                if steps % every == 0:
                    with open(folder / f"{steps}.ckpt", "wb") as file:
                        torch.save({"model": module.state_dict(), "optimizer": optimizer.state_dict()}, file)
                        if flushes:
                            file.flush()
                            os.fsync(file.fileno())

            return run_plain(task, batches, at, after)

        return run

    def by_trainer(folder: Path, batches: Iterable[Tensor], at: At) -> object:
        saves = ModelCheckpoint(
            folder, "{step}", every_n_train_steps=every, save_top_k=-1, auto_insert_metric_name=False
        )
        return run_ours(task, batches, at, saves)

    contenders = {
        "torch.save": contender(by_torch(flushes=False)),
        "torch.save + fsync": contender(by_torch(flushes=True)),
        f"{OURS}, ModelCheckpoint": contender(by_trainer),
    }
    return compared(contenders, rounds, "torch.save")


def stall_s(marks: Mapping[int, float], first: int, saved: int, seen: int) -> float:
    """Return the seconds by which steps took longer for a save than the median step before the first save.

    Args:
        marks: The seconds at which each batch began, by its index.
        first: After so many steps came the first save.
        saved: After so many steps came this one.
        seen: Its file was complete before the batch with this index.

    >>> stall_s({0: 0.0, 1: 1.0, 2: 2.0, 3: 3.0, 4: 7.0, 5: 8.5}, 4, 4, 5)
    3.5
    """
    usual = statistics.median(marks[index + 1] - marks[index] for index in range(first // 2, first - 1))
    return max(0.0, marks[seen] - marks[saved - 1] - (seen - saved + 1) * usual)


def measure_syncs(size: Size, device: torch.device) -> list[dict[str, Any]]:
    """Return the rows of how often a step between log points waits for the device."""
    kept, task = token_batches(size, device), gpt_task(size, device)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)

    def counted(loop: Loop, steps: int) -> dict[str, float]:
        profiler = torch.profiler.profile(activities=activities)
        begin, end = size.warm, size.warm + steps

        def at(index: int) -> bool:
            if index in (begin, end):
                synchronize(device)
                (profiler.start if index == begin else profiler.stop)()
            return False

        loop(task, Batches(kept, end + 1), at)
        counts: Counter[str] = Counter()
        for item in profiler.key_averages():
            counts[item.key] += item.count
        if device.type == "cuda" and not any(name.startswith(("cudaLaunch", "cuLaunch")) for name in counts):
            raise RuntimeError(
                "The profiler has seen no kernel start, so it would see no wait either. Allow profiling "
                "of the device here (CUPTI, NVreg_RestrictProfilingToAdminUsers=0)."
            )
        return waits_in(counts)

    def contender(loop: Loop) -> Contender:
        def run() -> Mapping[str, float]:
            steps = size.warm
            fewer, more = counted(loop, steps), counted(loop, 2 * steps)
            return {name: (more[name] - fewer[name]) / steps for name in more}

        return run

    return compared({name: contender(loop) for name, loop in LOOPS.items()}, 1, PLAIN)


def waits_in(counts: Mapping[str, int]) -> dict[str, float]:
    """Return how often the host waited for the device and copied from it, by the profiler's names.

    >>> waits_in({"cudaStreamSynchronize": 2, "Memcpy DtoH (Device -> Pageable)": 1, "cudaMemcpyAsync": 9})
    {'waits_for_device_a_step': 2, 'copies_to_host_a_step': 1}
    """
    return {
        "waits_for_device_a_step": sum(counts.get(name, 0) for name in WAITS),
        "copies_to_host_a_step": sum(n for name, n in counts.items() if name.startswith("Memcpy DtoH")),
    }


# ---------------------------------------------------------------- one run


def compared(contenders: Mapping[str, Contender], rounds: int, against: str) -> list[dict[str, Any]]:
    """Return the rows of all contenders, after a run of each that is not counted where there are several
    rounds; without ratio where the peer's median is zero.
    """
    for contender in contenders.values() if rounds > 1 else ():
        contender()
    figures = measure(contenders, rounds)
    peer = {metric: values for metric, values in figures[against].items() if statistics.median(values)}
    return [row for row in summarize({**figures, "": peer}, "") if row["contender"]]


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Training on a GPU, beside the plain PyTorch loop.")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a model of some thousand weights, and few steps")
    parser.add_argument("--compile", action="store_true", help="tokens a second under torch.compile too")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each contender (default: 5)")
    parser.add_argument("--json", type=Path, default=None, help="write the figures to this file")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error(f"--rounds {arguments.rounds}: nothing would be measured. Use 1 or more.")
    return arguments


def main() -> int:
    """Measure, print and save."""
    arguments = parse()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print(
            "torch sees no CUDA device here: run this on a machine with one, or with --device cpu --tiny.",
            file=sys.stderr,
        )
        return 2
    warnings.filterwarnings("ignore")
    logging.getLogger("orchestrator").setLevel(logging.ERROR)
    device = torch.device("cuda", 0) if arguments.device == "cuda" else torch.device("cpu")
    if device.type == "cpu":
        torch.set_num_threads(1)
    size, rounds = TINY if arguments.tiny else FULL, arguments.rounds
    rows, work = measure_throughput(size, device, rounds, compiled=arguments.compile)
    skipped = {}
    if device.type == "cuda":
        rows += measure_prefetch(size, device, rounds)
    else:
        skipped = dict.fromkeys(("prefetch", "syncs"), "no CUDA device")
    rows += measure_checkpoint(size, device, rounds)
    if device.type == "cuda":
        rows += measure_syncs(size, device)
    name = "a tiny GPT" if arguments.tiny else "a GPT of 124 M parameters"
    question = f"What does training {name} on {arguments.device} cost over the plain loop?"
    report("gpu", question, rows, "the peer before it", arguments.json)
    for section, reason in skipped.items():
        print(f"  {section} is skipped: {reason}")
    rate = next(row for row in rows if row["contender"] == OURS and row["metric"] == "tokens_a_s")
    print(f"  {rate['ratio']:.3f} of the plain loop's tokens a second; asked for is {ASKED_FOR}.")
    if arguments.json is not None:
        add_facts(arguments.json, device, {"asked_for": ASKED_FOR, "work": work, "skipped": skipped})
    return 0


def add_facts(path: Path, device: torch.device, facts: Mapping[str, Any]) -> None:
    """Write `facts` into the file of results, and its device among what is said of the machine."""
    content = json.loads(path.read_text(encoding="utf-8"))
    content["machine"]["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    path.write_text(json.dumps({**content, **facts}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
