"""Record a run in Neptune: metrics, hyperparameters, checkpoints and whatever a Neptune run can.

The run's own identifier is fixed in the driver before anything starts, so workers and later calls go on with
the same run. Only one process at a time has it open: going to a worker or coming back stops it there, and it
opens again at the next use. Offline, each such part is a folder under ``.neptune/offline`` in the working
directory, which ``neptune sync`` sends later. Fails with `ImportError` where the package is missing and with
`MisconfigurationError` for arguments that cannot work.
"""

from __future__ import annotations

import inspect
import os
import secrets
from argparse import Namespace
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from orchestrator.errors import MisconfigurationError, suggest
from orchestrator.loggers import packages
from orchestrator.loggers.checkpoint_artifacts import CheckpointArtifacts, CheckpointFile
from orchestrator.loggers.hyperparameters import as_mapping, flatten
from orchestrator.loggers.logger import Logger, as_number

if TYPE_CHECKING:
    from orchestrator.callbacks.model_checkpoint import ModelCheckpoint

_PLAIN = (bool, int, float, str)
_CAPTURES = ("capture_stdout", "capture_stderr", "capture_hardware_metrics")


class NeptuneLogger(Logger):
    """Record metrics, hyperparameters, checkpoints and whatever a Neptune run can.

    Args:
        api_key: Neptune's token; the variable ``NEPTUNE_API_TOKEN`` when None. Not needed offline.
        project: As ``workspace/project``; the variable ``NEPTUNE_PROJECT`` when None.
        name: The run's name.
        log_model_checkpoints: Upload the checkpoints that a ModelCheckpoint keeps, at the end of a fit.
        prefix: The part of the run under which everything is recorded.
        **neptune_run_kwargs: Of `neptune.init_run`: ``mode="offline"``, `tags`, `custom_run_id`, ...

    Raises:
        ImportError: The package is missing.
        MisconfigurationError: An argument cannot work.
    """

    def __init__(
        self,
        *,
        api_key: str | None = None,
        project: str | None = None,
        name: str | None = None,
        log_model_checkpoints: bool = True,
        prefix: str = "training",
        **neptune_run_kwargs: Any,
    ) -> None:
        known = inspect.signature(self._load().init_run).parameters
        unknown = next((item for item in neptune_run_kwargs if item not in known), None)
        if unknown is not None:
            raise MisconfigurationError(
                f"NeptuneLogger got an argument {unknown!r} that neptune.init_run does not take."
                f"{suggest(unknown, known)} Leave it out, or see its documentation."
            )
        if "run" in neptune_run_kwargs:
            raise MisconfigurationError(
                "NeptuneLogger(run=...): an open run cannot go to workers. Give its custom_run_id."
            )
        if not isinstance(prefix, str) or not prefix.strip("/"):
            raise MisconfigurationError(f"NeptuneLogger(prefix={prefix!r}). Use a name, such as 'training'.")
        self._start: dict[str, Any] = {"api_token": api_key, "project": project, "name": name}
        self._options = neptune_run_kwargs
        self._run_id: str | None = neptune_run_kwargs.get("custom_run_id")
        self._prefix = prefix.strip("/")
        self._artifacts = CheckpointArtifacts("NeptuneLogger", log_model_checkpoints)
        self._run: Any = None

    def __getstate__(self) -> dict[str, Any]:
        self.close()
        return {**self.__dict__, "_run": None}

    @property
    def experiment(self) -> Any:
        """Neptune's run. Opens it if it is not open in this process."""
        if self._run is None:
            self.claim()
            quiet = dict.fromkeys(_CAPTURES, False)
            self._run = self._load().init_run(
                **{**self._start, **quiet, **self._options, "custom_run_id": self._run_id}
            )
            self._run["source_code/integrations/ray-training-orchestrator"] = True
        return self._run

    run = experiment

    @property
    def name(self) -> str | None:
        """The run's name, as given."""
        found: str | None = self._start["name"]
        return found

    @property
    def version(self) -> str:
        """The run's own identifier."""
        self.claim()
        assert self._run_id is not None
        return self._run_id

    @property
    def save_dir(self) -> str:
        """The folder of what is not sent yet."""
        return os.path.join(os.getcwd(), ".neptune")

    def claim(self) -> None:
        """Fix the run's own identifier."""
        if self._run_id is None:
            self._run_id = secrets.token_hex(16)

    def close(self) -> None:
        """Stop the run in this process; it goes on at the next use."""
        run, self._run = self._run, None
        if run is not None:
            run.stop()

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Record each number at `step`.

        Raises:
            TypeError: for a value that is not a number.
        """
        for name, value in metrics.items():
            self.experiment[f"{self._prefix}/{name}"].append(as_number(name, value), step=step)

    def log_hyperparams(
        self, params: Mapping[str, Any] | Namespace | None, metrics: Mapping[str, float] | float | None = None
    ) -> None:
        """Record `params` by their nested names; `metrics` become values of step 0."""
        for name, value in flatten(as_mapping(params)).items():
            plain = value if isinstance(value, _PLAIN) else str(value)
            self.experiment[f"{self._prefix}/hyperparams/{name}"] = plain
        if metrics is not None:
            self.log_metrics(metrics if isinstance(metrics, Mapping) else {"hp_metric": metrics}, 0)

    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        """Remember to upload what is kept at the end."""
        self._upload(self._artifacts.after_save(checkpoint_callback))

    def save(self) -> None:
        """Have what is recorded so far written to disk; the package sends it by itself where it can."""
        if self._run is not None:
            self._run.wait(disk_only=True)

    def finalize(self, status: str) -> None:
        """Upload what is left to upload and note how the call ended. After a failure also stop the run."""
        if self._run is None:
            return
        self._upload(self._artifacts.at_end())
        self.experiment[f"{self._prefix}/status"] = status
        self.save()
        if status != "success":
            self.experiment["sys/failed"] = True
            self.close()

    def _upload(self, checkpoints: list[CheckpointFile]) -> None:
        for item in checkpoints:
            name = os.path.splitext(os.path.basename(item.path))[0]
            self.experiment[f"{self._prefix}/model/checkpoints/{name}"].upload(item.path)
            if item.is_best:
                self.experiment[f"{self._prefix}/model/best_model_path"] = item.path
                if item.score is not None:
                    self.experiment[f"{self._prefix}/model/best_model_score"] = item.score

    def _load(self) -> Any:
        return packages.load("neptune", logger="NeptuneLogger", extra="neptune", variables={})
