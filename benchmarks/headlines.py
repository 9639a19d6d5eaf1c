"""The figures that the README shows, each beside its peer of the same run and what it is to be.

Which they are stands in `HEADLINES`; the numbers come from benchmarks/results/*.json alone. A figure whose
benchmark has not been run is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

UNITS = {
    "us_a_step": "us",
    "M_rows_a_s": "M rows/s",
    "tokens_a_s": "tokens/s",
    "mib_per_100_trials": "MiB",
    "_ms": "ms",
    "_s": "s",
}
"""By how a metric's name ends; the first that fits counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Headline:
    """One line of the README's table.

    Attributes:
        what: What was measured, in words.
        file: The benchmark.
        metric: As the benchmark calls it.
        ours: Our contender.
        peer: The contender beside it, if there is one.
        other: A further peer whose figure is told.
        goal: What the ratio to the peer is to be, or, with a unit, the figure itself.
    """

    what: str
    file: str
    metric: str
    ours: str = "orchestrator"
    peer: str | None = None
    other: str | None = None
    goal: str = ""


HEADLINES = (
    Headline(
        what="a step of a tiny model, CPU time",
        file="step",
        metric="cpu_us_a_step",
        peer="plain PyTorch",
        other="Lightning",
    ),
    Headline(
        what="the same with 5 metrics logged",
        file="step",
        metric="cpu_us_a_step",
        ours="orchestrator, 5 metrics",
        peer="plain PyTorch",
        other="Lightning, 5 metrics",
    ),
    Headline(
        what="a step on two workers, `ddp`", file="ddp", metric="us_a_step", peer="plain DDP", goal="1.02"
    ),
    Headline(
        what="first step of a cold `fit` on two workers",
        file="startup",
        metric="call_to_first_step_s",
        ours="orchestrator, cold",
        peer="two bare actors",
        other="Ray TorchTrainer",
        goal="1.15",
    ),
    Headline(
        what="first step of a warm `fit`",
        file="startup",
        metric="call_to_first_step_s",
        ours="orchestrator, warm",
        other="Ray TorchTrainer",
        goal="0.15 s",
    ),
    Headline(
        what="killed worker to next step, a spare, 1 MB of state",
        file="recovery",
        metric="kill_to_commit_s",
        ours="killed with 1 MB",
        goal="1.0 s",
    ),
    Headline(what="the same, 1 GB", file="recovery", metric="kill_to_commit_s", ours="killed with 1 GB"),
    Headline(
        what="killed process to next step, `elastic`",
        file="resizing",
        metric="kill_to_commit_s",
        ours="processes killed",
        goal="0.3 s",
    ),
    Headline(
        what="a step, `elastic`, V=P=2",
        file="elastic",
        metric="step_ms",
        ours="elastic, V=2",
        peer="ddp",
        goal="1.10",
    ),
    Headline(
        what="exchange of gradients, V=P=2",
        file="elastic",
        metric="exchange_ms",
        ours="tree, V=2",
        peer="all-reduce",
        goal="1.30",
    ),
    Headline(
        what="exchange of gradients, V=6, P=2",
        file="elastic",
        metric="exchange_ms",
        ours="tree, V=6",
        peer="all-reduce",
        goal="1.30",
    ),
    Headline(
        what="a step with one of three at a third of the speed",
        file="resizing",
        metric="step_ms",
        ours="one at a third of the speed",
        peer="processes alike",
        goal="1.15",
    ),
    Headline(
        what="Parquet, shuffled in windows",
        file="data",
        metric="M_rows_a_s",
        ours="Parquet, windows",
        peer="tuned row-group reader",
        goal=">= 0.8",
    ),
    Headline(
        what="Parquet, shuffled in memory",
        file="data",
        metric="M_rows_a_s",
        ours="Parquet, all rows",
        peer="memory gather",
        goal=">= 0.5",
    ),
    Headline(
        what="Arrow, memory-mapped, shuffled",
        file="data",
        metric="M_rows_a_s",
        ours="Arrow, mapped",
        peer="mapped gather",
        goal=">= 1.0",
    ),
    Headline(
        what="an epoch of small images, CPU time",
        file="data",
        metric="cpu_s",
        ours="our epoch",
        peer="plain epoch",
        goal="0.85",
    ),
    Headline(
        what="stall for a checkpoint of 1.2 GB",
        file="checkpoint",
        metric="stall_s",
        peer="torch.save",
        goal="0.55",
    ),
    Headline(
        what="until it is on the disk",
        file="checkpoint",
        metric="durable_s",
        peer="torch.save + fsync",
        goal="1.5",
    ),
    Headline(what="loading it", file="checkpoint", metric="load_s", peer="torch.load", goal="0.25"),
    Headline(
        what="16 trials with ASHA", file="sweep", metric="wall_s", peer="Tune's class trainable", goal="1.0"
    ),
    Headline(
        what="overhead of each",
        file="sweep",
        metric="overhead_per_trial_s",
        peer="Tune's class trainable",
        goal="0.25 s",
    ),
    Headline(what="100 trials of 20 steps", file="sweep-many", metric="wall_s", goal="60 s"),
    Headline(
        what="a trial's stop to freed room, two workers",
        file="sweep-freed",
        metric="freed_s",
        ours="on two workers",
        goal="0.3 s",
    ),
    Headline(
        what="what 100 trials leave in the driver's memory",
        file="sweep-memory",
        metric="grown_mib_per_100_trials",
        goal="flat",
    ),
    Headline(
        what="GPT of 124 M parameters, bf16, on a GPU",
        file="gpu",
        metric="tokens_a_s",
        peer="plain loop",
        goal=">= 0.98",
    ),
)


def headlines(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table; a line for each figure that there is.

    Args:
        results: What the benchmarks have written, by their names.
    """
    lines = ["| what | here | beside it | x | goal |", "|---|---|---|---|---|"]
    for item in HEADLINES:
        medians = {
            row["contender"]: row["median"]
            for row in results.get(item.file, {"rows": []})["rows"]
            if row["metric"] == item.metric
        }
        if item.ours not in medians:
            continue
        beside = ", ".join(
            f"{name} {with_unit(medians[name], item.metric)}"
            for name in (item.peer, item.other)
            if name in medians
        )
        ratio = f"{medians[item.ours] / medians[item.peer]:.2f}" if item.peer in medians else ""
        here = with_unit(medians[item.ours], item.metric)
        goal = f"<= {item.goal}" if item.goal[:1].isdigit() else item.goal
        lines.append(f"| {item.what} | {here} | {beside} | {ratio} | {goal} |")
    return "\n".join(lines)


def with_unit(value: float, metric: str) -> str:
    """Return a figure with its unit.

    >>> with_unit(0.06269, "call_to_first_step_s"), with_unit(5.121, "M_rows_a_s")
    ('0.063 s', '5.12 M rows/s')
    """
    unit = next(unit for end, unit in UNITS.items() if metric.endswith(end))
    digits = 3 if value >= 1 else 2
    return f"{float(f'{value:.{digits}g}'):,.12g} {unit}"
