"""Traces operators, kernels and memory with torch's own profiler, a few batches at a time.

Each action of a run appears in the trace under its name. After every cycle of the schedule a Chrome trace is
written, by each rank into its own file; open it in chrome://tracing or Perfetto. At the end there is a table
of operators. Tracing every batch would fill the memory, so by default three are traced, after one that is
left out and one to warm up.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.autograd.profiler import record_function
from torch.profiler import ProfilerActivity, profile, schedule

from orchestrator.errors import MisconfigurationError, suggest
from orchestrator.profilers.profiler import Profiler

_OPTIONS = tuple(name for name in inspect.signature(profile.__init__).parameters if name != "self")


class PyTorchProfiler(Profiler):
    """A trace and a table of operators.

    Args:
        dirpath: See `Profiler`; traces go there too.
        filename: See `Profiler`.
        group_by_input_shapes: Tell operators with other input shapes apart.
        emit_nvtx: Mark operators for NVIDIA's tools, which must be running, instead of tracing here.
        export_to_chrome: Write traces.
        row_limit: Rows of the table.
        sort_by_key: What the table is sorted by: a total, such as ``"cpu_time_total"``. Time on the
            accelerator where there is one, when None.
        record_module_names: Show in the trace which submodule runs.
        table_kwargs: Further arguments of the table.
        profiler_kwargs: Further arguments of `torch.profiler.profile`, such as ``schedule``, ``activities``
            or ``on_trace_ready``.

    Attributes:
        traces: The files that were written in the last call.

    Raises:
        MisconfigurationError: torch's profiler has no such argument.
    """

    def __init__(
        self,
        dirpath: str | os.PathLike[str] | None = None,
        filename: str | None = None,
        group_by_input_shapes: bool = False,
        emit_nvtx: bool = False,
        export_to_chrome: bool = True,
        row_limit: int = 20,
        sort_by_key: str | None = None,
        record_module_names: bool = True,
        table_kwargs: dict[str, Any] | None = None,
        **profiler_kwargs: Any,
    ) -> None:
        super().__init__(dirpath, filename)
        for name in profiler_kwargs:
            if name not in _OPTIONS:
                raise MisconfigurationError(
                    f"PyTorchProfiler({name}=...): neither it nor torch.profiler.profile has this argument."
                    f"{suggest(name, _OPTIONS)} The latter has {', '.join(_OPTIONS)}."
                )
        self.group_by_input_shapes = group_by_input_shapes
        self.emit_nvtx = emit_nvtx
        self.export_to_chrome = export_to_chrome
        self.row_limit = row_limit
        self.sort_by_key = sort_by_key
        self.record_module_names = record_module_names
        self.table_kwargs = dict(table_kwargs or {})
        self.profiler_kwargs = profiler_kwargs
        self.traces: list[str] = []
        self._profile: Any = None
        self._nvtx: AbstractContextManager[Any] | None = None
        self._running: list[tuple[str, record_function]] = []
        self._undo: list[Callable[[], None]] = []
        self._table = ""

    def setup(
        self, stage: str, rank: int | None = None, log_dir: str | os.PathLike[str] | None = None
    ) -> None:
        """Begin to trace; see `Profiler`."""
        super().setup(stage, rank, log_dir)
        self.traces, self._table = [], ""
        if self.emit_nvtx:
            self._nvtx = torch.autograd.profiler.emit_nvtx()
            self._nvtx.__enter__()
            return
        options: dict[str, Any] = {
            "activities": [ProfilerActivity.CPU]
            + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else []),
            "schedule": schedule(wait=1, warmup=1, active=3, repeat=1),
            "record_shapes": self.group_by_input_shapes,
            "on_trace_ready": self._export,
            "acc_events": True,
            **self.profiler_kwargs,
        }
        self._profile = profile(**options)
        self._profile.__enter__()

    def watch(self, module: nn.Module) -> None:
        """Mark where each submodule's forward begins and ends, until `teardown`."""
        if not self.record_module_names:
            return
        for name, layer in module.named_modules():
            if name:
                self._mark(name, layer)

    def _mark(self, name: str, layer: nn.Module) -> None:
        label = f"{type(layer).__name__}: {name}"
        open_marks: list[record_function] = []

        def before(*ignored: Any) -> None:
            mark = record_function(label)
            mark.__enter__()
            open_marks.append(mark)

        def after(*ignored: Any) -> None:
            if open_marks:
                open_marks.pop().__exit__(None, None, None)

        self._undo.append(layer.register_forward_pre_hook(before).remove)
        self._undo.append(layer.register_forward_hook(after, always_call=True).remove)

    def start(self, action_name: str) -> None:
        """Mark where the action begins."""
        mark = record_function(action_name)
        mark.__enter__()
        self._running.append((action_name, mark))

    def stop(self, action_name: str) -> None:
        """Mark where the action ends."""
        if not self._running or self._running[-1][0] != action_name:
            running = ", ".join(repr(name) for name, _ in self._running) or "none"
            raise ValueError(
                f"The profiler's action {action_name!r} ended, and the innermost of those that run "
                f"({running}) is another. End actions in the opposite order of their beginning."
            )
        self._running.pop()[1].__exit__(None, None, None)

    def step(self) -> None:
        """Go on in the schedule."""
        if self._profile is not None:
            self._profile.step()

    def teardown(self, stage: str) -> None:
        """End the trace, keep the table, and let go of what does not pickle."""
        while self._running:
            self._running.pop()[1].__exit__(None, None, None)
        for undo in self._undo:
            undo()
        self._undo = []
        if self._nvtx is not None:
            self._nvtx.__exit__(None, None, None)
            self._nvtx = None
        if self._profile is None:
            return
        running, self._profile = self._profile, None
        running.__exit__(None, None, None)
        if running.profiler is not None:
            self._table = self._table_of(running)

    def summary(self) -> str:
        """Return the table of operators and where the traces are."""
        if not self._table:
            return ""
        written = "".join(f"\nTrace: {path}" for path in self.traces)
        return f"Operators in the traced batches of {self._stage}\n{self._table}{written}"

    def _table_of(self, running: Any) -> str:
        try:
            averages = running.key_averages(group_by_input_shape=self.group_by_input_shapes)
        except (AssertionError, RuntimeError):  # nothing was traced: the call was shorter than the schedule
            return ""
        if not len(averages):
            return ""
        key = self.sort_by_key or ("device_time_total" if torch.cuda.is_available() else "cpu_time_total")
        return str(averages.table(sort_by=key, row_limit=self.row_limit, **self.table_kwargs)).strip()

    def _export(self, running: Any) -> None:
        if not self.export_to_chrome:
            return
        path = self.path_for(".pt.trace.json", str(len(self.traces)) if self.traces else "")
        path.parent.mkdir(parents=True, exist_ok=True)
        running.export_chrome_trace(str(path))
        self.traces.append(str(path))
