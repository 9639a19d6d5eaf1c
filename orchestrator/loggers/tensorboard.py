"""Record a run for TensorBoard: `tensorboard --logdir lightning_logs` shows it while it goes on.

Everything goes into one event file of the version directory at a time, so TensorBoard, which follows only
the newest, misses nothing. Scalars and hyperparameters need only the `tensorboard` package's message types;
PyTorch's SummaryWriter is loaded when `experiment` is first read, and then writes to the same file. Fails
with `MisconfigurationError` for arguments that cannot work, and with `TypeError` naming the metric for a
value that is not a number.
"""

from __future__ import annotations

import os
import warnings
from argparse import Namespace
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from orchestrator.errors import MisconfigurationError, suggest
from orchestrator.loggers import hparams_tab
from orchestrator.loggers.event_file import EventFile, summary_writer
from orchestrator.loggers.hyperparameters import as_mapping, flatten, write_yaml
from orchestrator.loggers.logger import as_number
from orchestrator.loggers.version_directory import VersionDirectoryLogger

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.tensorboard import SummaryWriter

_WRITER_ARGUMENTS = ("comment", "filename_suffix", "max_queue", "purge_step")


class TensorBoardLogger(VersionDirectoryLogger):
    """Record metrics, hyperparameters and whatever a `SummaryWriter` can, in ``save_dir/name/version_N``.

    Args:
        save_dir: A local directory.
        name: The experiment, a directory in `save_dir`; None or "" for no such level.
        version: None takes the next number; an int N means ``version_N``; a str is the directory's name.
        log_graph: Also record the module's graph; it needs `example_input_array`.
        default_hp_metric: Give the HParams tab a metric called ``hp_metric`` (-1 until logged) when
            hyperparameters come without metrics. prefix: Put before every metric's name, with a dash.
            sub_dir: A directory in the version directory for the event files. flush_secs: Seconds for which
            scalars may be held in memory while more are coming; 0 writes each at once. **kwargs: `comment`,
            `filename_suffix`, `max_queue` and `purge_step` of `SummaryWriter`.

    Raises:
        MisconfigurationError: for an argument that cannot work.
    """

    def __init__(
        self,
        save_dir: str | os.PathLike[str],
        name: str | None = "lightning_logs",
        version: int | str | None = None,
        log_graph: bool = False,
        default_hp_metric: bool = True,
        prefix: str = "",
        sub_dir: str | os.PathLike[str] | None = None,
        flush_secs: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(save_dir, name, version, prefix)
        if not _is_time(flush_secs):
            raise MisconfigurationError(
                f"TensorBoardLogger(flush_secs={flush_secs!r}) is not a time. Write seconds, 0 or more."
            )
        for argument in kwargs:
            if argument not in _WRITER_ARGUMENTS:
                near = suggest(argument, _WRITER_ARGUMENTS)
                raise MisconfigurationError(
                    f"TensorBoardLogger got an unknown argument: {argument!r}.{near} "
                    f"SummaryWriter's are {', '.join(_WRITER_ARGUMENTS)}."
                )
        self._log_graph = log_graph
        self._default_hp_metric = default_hp_metric
        self._sub_dir = None if sub_dir is None else os.fspath(sub_dir)
        self._flush_secs = flush_secs
        self._writer_arguments = kwargs
        self._restart_step: int | None = self._writer_arguments.pop("purge_step", None)
        self.hparams: dict[str, Any] = {}
        self._run_state = "unannounced"  # to the HParams tab: unannounced, started or ended
        self._events: EventFile | None = None
        self._experiment: SummaryWriter | None = None

    def __getstate__(self) -> dict[str, Any]:
        self.save()
        return {**self.__dict__, "_events": None, "_experiment": None}

    @property
    def sub_dir(self) -> str | None:
        """The directory of the event files in the version directory, or None when it is that directory
        itself."""
        return self._sub_dir

    @property
    def log_dir(self) -> str:
        """``save_dir/name/version_N[/sub_dir]``. Claims the version when none is claimed yet."""
        version_dir = super().log_dir
        return version_dir if self._sub_dir is None else os.path.join(version_dir, self._sub_dir)

    @property
    def experiment(self) -> SummaryWriter:
        """PyTorch's SummaryWriter on this run's event file: histograms, images, text and the rest."""
        if self._experiment is None:
            self._experiment = summary_writer(
                self._open_events(), flush_secs=max(1, round(self._flush_secs)), **self._writer_arguments
            )
        return self._experiment

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Record each number at `step` with the present time. A value may also be a dict of numbers: one
        chart of several lines, as `SummaryWriter.add_scalars` draws it.

        Raises:
            TypeError: for a value that is neither.
        """
        scalars: dict[str, float] = {}
        for name, value in self._prefixed(metrics).items():
            if isinstance(value, Mapping):
                self.experiment.add_scalars(
                    name, {tag: as_number(f"{name}.{tag}", v) for tag, v in value.items()}, step
                )
            else:
                scalars[name] = as_number(name, value)
        if scalars:
            self._open_events().add_scalars(scalars, step)

    def log_hyperparams(
        self,
        params: Mapping[str, Any] | Namespace | None,
        metrics: Mapping[str, float] | float | None = None,
        step: int | None = None,
    ) -> None:
        """Write `params` to hparams.yaml and to the HParams tab, with `metrics` as the scalars to compare
        runs by.

        TensorBoard reads a run's hyperparameters once: to have metrics of one's own in the tab, make the
        logger with ``default_hp_metric=False`` and call this before training. A single number is the metric
        ``hp_metric``.
        """
        self.hparams |= as_mapping(params)
        if self.hparams:
            write_yaml(os.path.join(super().log_dir, "hparams.yaml"), self.hparams)
        if metrics is None:
            announced = self._run_state != "unannounced"
            metrics = {"hp_metric": -1} if self.hparams and self._default_hp_metric and not announced else {}
        elif not isinstance(metrics, Mapping):
            metrics = {"hp_metric": metrics}
        if metrics:
            self.log_metrics(metrics, 0 if step is None else step)
        if metrics or self.hparams:
            started = hparams_tab.run_started(flatten(self.hparams), self._prefixed(metrics))
            self._open_events().add_event(started)
            self._open_events().flush()
            self._run_state = "started"

    def log_graph(self, model: nn.Module, input_array: Any = None) -> None:
        """Record the graph of `model` if ``log_graph=True``: `input_array` is a tensor or a tuple of
        arguments.

        What cannot be traced is told in a warning and does not end training.
        """
        if not self._log_graph:
            return
        if input_array is None:
            input_array = getattr(model, "example_input_array", None)
        if input_array is None:
            warnings.warn(
                "TensorBoardLogger(log_graph=True) has no input to trace the module with. "
                "Set `example_input_array` in the module's __init__.",
                stacklevel=2,
            )
            return
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # the writer traces with torch.jit
                self.experiment.add_graph(model, input_array)
        except Exception as error:
            warnings.warn(
                f"TensorBoardLogger could not record the module's graph: {type(error).__name__}: {error}. "
                "Give `example_input_array` the form that forward takes, or write log_graph=False.",
                stacklevel=2,
            )

    def rewind(self, step: int) -> None:
        """Hide what was recorded at `step` and later from TensorBoard; it stays in the file."""
        if self._events is None:
            self._restart_step = step
        else:
            self._events.add_restart(step)

    def save(self) -> None:
        """Write to disk what is held in memory."""
        if self._experiment is not None:
            self._experiment.flush()
        if self._events is not None:
            self._events.flush()

    def finalize(self, status: str) -> None:
        """Record how the run ended and close the file. What is recorded later goes into a new one."""
        if self._run_state == "started":
            self._open_events().add_event(hparams_tab.run_ended(succeeded=status == "success"))
            self._run_state = "ended"
        if self._experiment is not None:
            self._experiment.close()
        if self._events is not None:
            self._events.close()

    def _open_events(self) -> EventFile:
        if self._events is None:
            suffix = self._writer_arguments.get("filename_suffix", "")
            self._events = EventFile(self.log_dir, flush_secs=self._flush_secs, suffix=suffix)
            if self._restart_step is not None:
                self._events.add_restart(self._restart_step)
                self._restart_step = None
        return self._events


def _is_time(seconds: Any) -> bool:
    return isinstance(seconds, int | float) and not isinstance(seconds, bool) and seconds >= 0
