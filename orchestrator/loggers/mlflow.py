"""Record a run in MLflow: metrics, hyperparameters, and checkpoints as artifacts.

The experiment and the run are made once, in the driver, before anything starts; workers and later calls go
on with the same run. At the end of a call the run is marked finished or failed, and running again in the
next. Without `tracking_uri` everything stays in the folder `save_dir`. Fails with `ImportError` where the
package is missing, with `MisconfigurationError` for arguments that cannot work, and with MLflow's own errors
where its server refuses.
"""

from __future__ import annotations

import os
import re
import time
import warnings
from argparse import Namespace
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from orchestrator.errors import MisconfigurationError
from orchestrator.loggers import packages
from orchestrator.loggers.checkpoint_artifacts import CheckpointArtifacts, CheckpointFile
from orchestrator.loggers.hyperparameters import as_mapping, flatten, to_plain
from orchestrator.loggers.logger import Logger, as_number, with_prefix

if TYPE_CHECKING:
    from orchestrator.callbacks.model_checkpoint import ModelCheckpoint

_ALLOWED_CHARACTERS = re.compile(r"[^\w/. :-]+", re.ASCII)
_LONGEST_PARAMETER = 250
_PARAMETERS_AT_ONCE = 100
_STATUS = {"success": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
_LOCAL = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_FILE_STORE": "true",  # MLflow 3 asks for this before it writes into a folder
}


class MLFlowLogger(Logger):
    """Record metrics, hyperparameters and checkpoints in an MLflow run.

    Args:
        experiment_name: The experiment; made if there is none of this name.
        run_name: A name for the run; MLflow makes one up when None.
        tracking_uri: Where MLflow keeps its runs: a server, or ``file:`` and a folder. None takes the
            variable MLFLOW_TRACKING_URI, else `save_dir`.
        tags: Of the run.
        save_dir: A folder for the runs, where there is no `tracking_uri`.
        log_model: Upload checkpoints: True at the end those that are kept, "all" each as it is saved.
        prefix: Put before every metric's name, with a dash.
        artifact_location: Where artifacts go, where the experiment is made; MLflow decides when None.
        run_id: A run to go on with.
        synchronous: Whether MLflow waits until metrics are stored; as it is set up when None.

    Raises:
        ImportError: The package is missing.
        MisconfigurationError: An argument cannot work.
    """

    def __init__(
        self,
        experiment_name: str = "lightning_logs",
        run_name: str | None = None,
        tracking_uri: str | None = None,
        tags: dict[str, Any] | None = None,
        save_dir: str | os.PathLike[str] | None = "./mlruns",
        log_model: Literal["all"] | bool = False,
        prefix: str = "",
        artifact_location: str | None = None,
        run_id: str | None = None,
        synchronous: bool | None = None,
    ) -> None:
        if tracking_uri is None:
            tracking_uri = os.environ.get("MLFLOW_TRACKING_URI")
        if tracking_uri is None and save_dir is None:
            raise MisconfigurationError(
                "MLFlowLogger(tracking_uri=None, save_dir=None) has no place for runs. Give one of them."
            )
        if not isinstance(experiment_name, str) or not experiment_name:
            raise MisconfigurationError(
                f"MLFlowLogger(experiment_name={experiment_name!r}) is not a name. Write a str."
            )
        folder = "" if save_dir is None else os.path.abspath(os.path.expanduser(save_dir))
        self._tracking_uri = f"file:{folder}" if tracking_uri is None else tracking_uri
        self._artifacts = CheckpointArtifacts("MLFlowLogger", log_model)
        self._experiment_name = experiment_name
        self._run_name = run_name
        self._tags = dict(tags or {})
        self._prefix = prefix
        self._artifact_location = artifact_location
        self._run_id = run_id
        self._synchronous = synchronous
        self._experiment_id: str | None = None
        self._ended = run_id is not None
        self._client: Any = None
        self._load("mlflow")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_client": None}

    @property
    def experiment(self) -> Any:
        """MLflow's client, an `mlflow.tracking.MlflowClient`. The run's id is `run_id`."""
        if self._client is None:
            tracking = self._load("mlflow.tracking")
            with packages.surroundings(_LOCAL):
                client = tracking.MlflowClient(self._tracking_uri)
                self._settle(client)
            self._client = client
        return self._client

    @property
    def run_id(self) -> str:
        """The run's id. Makes the run if there is none yet."""
        if self._run_id is None:
            _ = self.experiment
        assert self._run_id is not None
        return self._run_id

    @property
    def experiment_id(self) -> str:
        """The experiment's id. Makes the experiment, and the run, if there is none yet."""
        if self._experiment_id is None:
            _ = self.experiment
        assert self._experiment_id is not None
        return self._experiment_id

    @property
    def name(self) -> str:
        """The experiment's id."""
        return self.experiment_id

    @property
    def version(self) -> str:
        """The run's id."""
        return self.run_id

    @property
    def save_dir(self) -> str | None:
        """The folder of the runs, or None where they are on a server."""
        return self._tracking_uri.removeprefix("file:") if self._tracking_uri.startswith("file:") else None

    def claim(self) -> None:
        """Make the experiment and the run, or mark the run there is as running again."""
        client = self.experiment
        if self._ended:
            client.update_run(self._run_id, status="RUNNING")
            self._ended = False

    def _settle(self, client: Any) -> None:
        """Find or make the experiment and the run."""
        if self._run_id is not None and self._experiment_id is None:
            self._experiment_id = client.get_run(self._run_id).info.experiment_id
        if self._experiment_id is None:
            found = client.get_experiment_by_name(self._experiment_name)
            self._experiment_id = (
                client.create_experiment(self._experiment_name, artifact_location=self._artifact_location)
                if found is None
                else found.experiment_id
            )
        if self._run_id is None:
            context = self._load("mlflow.tracking.context.registry")
            tags = context.resolve_tags({name: str(value) for name, value in self._tags.items()})
            run = client.create_run(self._experiment_id, tags=tags, run_name=self._run_name)
            self._run_id = run.info.run_id
        else:
            client.get_run(self._run_id)

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Record each number at `step` with the present time.

        Raises:
            TypeError: for a value that is not a number.
        """
        entities = self._load("mlflow.entities")
        now = int(time.time() * 1000)
        values = [
            entities.Metric(key=_allowed(name), value=as_number(name, value), timestamp=now, step=step or 0)
            for name, value in with_prefix(metrics, self._prefix).items()
        ]
        self.experiment.log_batch(self.run_id, metrics=values, **self._options())

    def log_hyperparams(
        self, params: Mapping[str, Any] | Namespace | None, metrics: Mapping[str, float] | float | None = None
    ) -> None:
        """Record `params`, nested names joined by slashes, each value as text of at most 250 characters;
        `metrics` become values of step 0."""
        entities = self._load("mlflow.entities")
        values = [
            entities.Param(key=_allowed(name), value=str(value)[:_LONGEST_PARAMETER])
            for name, value in flatten(as_mapping(params)).items()
        ]
        for start in range(0, len(values), _PARAMETERS_AT_ONCE):
            part = values[start : start + _PARAMETERS_AT_ONCE]
            self.experiment.log_batch(self.run_id, params=part, **self._options())
        if metrics is not None:
            self.log_metrics(metrics if isinstance(metrics, Mapping) else {"hp_metric": metrics}, 0)

    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        """Upload the checkpoint, or remember to upload what is kept at the end."""
        self._upload(self._artifacts.after_save(checkpoint_callback))

    def finalize(self, status: str) -> None:
        """Upload what is left to upload, and mark the run as finished or failed."""
        if self._run_id is None:
            return
        self._upload(self._artifacts.at_end())
        self.experiment.set_terminated(self._run_id, _STATUS.get(status, "FINISHED"))
        self._ended = True

    def _upload(self, checkpoints: list[CheckpointFile]) -> None:
        import tempfile

        import yaml

        for item in checkpoints:
            folder = f"model/checkpoints/{os.path.splitext(os.path.basename(item.path))[0]}"
            self.experiment.log_artifact(self.run_id, item.path, folder)
            with tempfile.TemporaryDirectory() as scratch:
                for name, content in (("metadata", item.metadata), ("aliases", item.aliases)):
                    path = os.path.join(scratch, f"{name}.yaml")
                    with open(path, "w", encoding="utf-8") as file:
                        yaml.safe_dump(to_plain(content), file, sort_keys=False)
                    self.experiment.log_artifact(self.run_id, path, folder)

    def _options(self) -> dict[str, Any]:
        return {} if self._synchronous is None else {"synchronous": self._synchronous}

    def _load(self, name: str) -> Any:
        return packages.load(name, logger="MLFlowLogger", extra="mlflow", variables=_LOCAL)


def _allowed(name: str) -> str:
    """Return `name` without the characters that MLflow refuses, and say so."""
    allowed = _ALLOWED_CHARACTERS.sub("", name)
    if allowed != name:
        warnings.warn(
            f"MLflow does not take the name {name!r}: it is recorded as {allowed!r}. Use letters, digits, "
            "and the characters _ / . : - and space.",
            stacklevel=4,
        )
    return allowed
