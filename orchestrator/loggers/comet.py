"""Record a run in Comet: metrics, hyperparameters and whatever a Comet experiment can.

The experiment's key is fixed in the driver before anything starts, so workers and later calls go on with
the same experiment. Only one process at a time has it open: going to a worker or coming back ends it there,
and it opens again at the next use. Offline each such part is an archive of its own, which ``comet upload``
sends later. Fails with `ImportError` where the package is missing and with `MisconfigurationError` for
arguments that cannot work.
"""

from __future__ import annotations

import os
import secrets
from argparse import Namespace
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from orchestrator.errors import MisconfigurationError
from orchestrator.loggers import packages
from orchestrator.loggers.hyperparameters import as_mapping, flatten
from orchestrator.loggers.logger import Logger, as_number

if TYPE_CHECKING:
    from torch import nn

_MODES = ("get_or_create", "get", "create")
_QUIET = {"COMET_ERROR_TRACKING_ENABLE": "false"}
_OLDER = {
    "save_dir": "offline_directory",
    "project_name": "project",
    "experiment_name": "name",
    "offline": "online",
}


class CometLogger(Logger):
    """Record metrics, hyperparameters and whatever a Comet experiment can.

    Args:
        api_key: Comet's key; its own settings when None. Not needed offline.
        workspace: The workspace.
        project: The project.
        experiment_key: An experiment to go on with, or the key of a new one.
        mode: "create" makes a new experiment, "get" goes on with `experiment_key`, "get_or_create" (the
            default) does what can be done.
        online: False writes archives that ``comet upload`` sends later.
        prefix: Put before every metric's name, with an underscore, as Comet does.
        **kwargs: Of `comet_ml.ExperimentConfig`: `name`, `tags`, `offline_directory`, `log_code`, ... The
            older names `save_dir`, `project_name`, `experiment_name` and `offline` are understood too.

    Raises:
        ImportError: The package is missing.
        MisconfigurationError: An argument cannot work.
    """

    def __init__(
        self,
        *,
        api_key: str | None = None,
        workspace: str | None = None,
        project: str | None = None,
        experiment_key: str | None = None,
        mode: Literal["get_or_create", "get", "create"] | None = None,
        online: bool | None = None,
        prefix: str | None = None,
        **kwargs: Any,
    ) -> None:
        if mode is not None and mode not in _MODES:
            raise MisconfigurationError(
                f"CometLogger(mode={mode!r}) is unknown. Use one of {', '.join(_MODES)}."
            )
        if mode == "get" and experiment_key is None:
            raise MisconfigurationError(
                "CometLogger(mode='get') goes on with an experiment. Give its experiment_key."
            )
        config = {_OLDER.get(name, name): value for name, value in kwargs.items()}
        project = config.pop("project", None) if project is None else project
        if "offline" in kwargs:
            online = not config.pop("online") if online is None else online
        if config.get("offline_directory") is not None:
            config["offline_directory"] = os.path.abspath(os.path.expanduser(config["offline_directory"]))
        self._start: dict[str, Any] = {
            "api_key": api_key,
            "workspace": workspace,
            "project": project,
            "online": online,
        }
        self._config = config
        self._mode = mode
        self._key = experiment_key or os.environ.get("COMET_EXPERIMENT_KEY")
        self._prefix = prefix
        self._experiment: Any = None
        try:
            self._load().ExperimentConfig(**config)
        except TypeError as error:
            raise MisconfigurationError(
                f"CometLogger got an argument that comet_ml.ExperimentConfig does not take: {error}. "
                "Leave it out, or see its documentation."
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        self.close()
        return {**self.__dict__, "_experiment": None}

    @property
    def experiment(self) -> Any:
        """Comet's experiment. Opens it if it is not open in this process."""
        if self._experiment is None:
            self.claim()
            comet = self._load()
            with packages.surroundings(_QUIET):
                self._experiment = comet.start(
                    **self._start,
                    experiment_key=self._key,
                    mode=self._mode,
                    experiment_config=comet.ExperimentConfig(**self._config),
                )
            self._mode = "get"  # from now on it is there
            self._experiment.log_other("Created from", "ray-training-orchestrator")
        return self._experiment

    @property
    def name(self) -> str | None:
        """The project; Comet's own default when None."""
        found: str | None = self._start["project"]
        return found

    @property
    def version(self) -> str:
        """The experiment's key."""
        self.claim()
        assert self._key is not None
        return self._key

    @property
    def save_dir(self) -> str | None:
        """The folder of offline archives, or None where none was given."""
        found: str | None = self._config.get("offline_directory")
        return found

    def claim(self) -> None:
        """Fix the experiment's key."""
        if self._key is None:
            self._key = secrets.token_hex(16)

    def close(self) -> None:
        """End the experiment in this process; it goes on at the next use. Offline this writes the archive."""
        experiment, self._experiment = self._experiment, None
        if experiment is not None:
            experiment.end()

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Record each number at `step`.

        Raises:
            TypeError: for a value that is not a number.
        """
        values = {name: as_number(name, value) for name, value in metrics.items()}
        epoch = values.pop("epoch", None)
        self.experiment.log_metrics(
            values, prefix=self._prefix, step=step, epoch=None if epoch is None else int(epoch)
        )

    def log_hyperparams(
        self, params: Mapping[str, Any] | Namespace | None, metrics: Mapping[str, float] | float | None = None
    ) -> None:
        """Record `params`, nested names joined by slashes; `metrics` become values of step 0."""
        self.experiment.log_parameters(flatten(as_mapping(params)))
        if metrics is not None:
            self.log_metrics(metrics if isinstance(metrics, Mapping) else {"hp_metric": metrics}, 0)

    def log_graph(self, model: nn.Module, input_array: Any = None) -> None:
        """Record what `model` is made of, if ``log_graph=True`` was given."""
        if self._config.get("log_graph"):
            self.experiment.set_model_graph(str(model))

    def save(self) -> None:
        """Send what is recorded so far; offline it is on disk when the experiment ends."""
        if self._experiment is not None and self._start["online"] is not False:
            self._experiment.flush()

    def finalize(self, status: str) -> None:
        """Send what is recorded. After a failure also end the experiment, and note the failure in it."""
        if self._experiment is None:
            return
        if status == "success":
            self.save()
            return
        self._experiment.log_other("status", status)
        self.close()

    def _load(self) -> Any:
        return packages.load("comet_ml", logger="CometLogger", extra="comet", variables=_QUIET)
