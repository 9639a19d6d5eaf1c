"""Record a run in Weights & Biases: metrics, hyperparameters, media, gradients, and checkpoints as artifacts.

The run's id is fixed in the driver before anything starts, so workers and later calls go on with the same
run. Only one process at a time has it open: going to a worker or coming back closes it, and it opens again at
the next use. Offline everything stays in `save_dir`. Fails with `ImportError` where the package is missing
and with `MisconfigurationError` for arguments that cannot work.
"""

from __future__ import annotations

import os
import secrets
import sys
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from orchestrator.errors import MisconfigurationError
from orchestrator.loggers import packages
from orchestrator.loggers.checkpoint_artifacts import CheckpointArtifacts, CheckpointFile
from orchestrator.loggers.hyperparameters import as_mapping, to_plain
from orchestrator.loggers.logger import Logger, as_number, with_prefix

if TYPE_CHECKING:
    from torch import nn

    from orchestrator.callbacks.model_checkpoint import ModelCheckpoint

_STEP = "trainer/global_step"
_OFFLINE_MODES = ("offline", "dryrun", "disabled")


class WandbLogger(Logger):
    """Record metrics, hyperparameters and whatever a W&B run can.

    Args:
        name: What the run is called; W&B makes a name up when None.
        save_dir: A folder for the run's files.
        version: The run's id, as `id`.
        offline: Send nothing; ``wandb sync`` sends the files later.
        dir: As `save_dir`, which it wins over.
        id: The run's id; a run of this id is continued.
        anonymous: As in `wandb.init`.
        project: The project; the variable WANDB_PROJECT or "lightning_logs" when None.
        log_model: Upload checkpoints: True at the end those that are kept, "all" each as it is saved.
        experiment: A run that is open already, to record in; it works in this process only.
        prefix: Put before every metric's name, with a dash.
        checkpoint_name: The artifact's name; ``model-`` and the run's id when None.
        add_file_policy: "mutable" copies a checkpoint before uploading it, "immutable" does not.
        **kwargs: Of `wandb.init`: `entity`, `group`, `tags`, `config`, `settings`, ...

    Raises:
        ImportError: The package is missing.
        MisconfigurationError: An argument cannot work.
    """

    def __init__(
        self,
        name: str | None = None,
        save_dir: str | os.PathLike[str] = ".",
        version: str | None = None,
        offline: bool = False,
        dir: str | os.PathLike[str] | None = None,
        id: str | None = None,
        anonymous: bool | None = None,
        project: str | None = None,
        log_model: Literal["all"] | bool = False,
        experiment: Any = None,
        prefix: str = "",
        checkpoint_name: str | None = None,
        add_file_policy: Literal["mutable", "immutable"] = "mutable",
        **kwargs: Any,
    ) -> None:
        if add_file_policy not in ("mutable", "immutable"):
            raise MisconfigurationError(
                f"WandbLogger(add_file_policy={add_file_policy!r}) is unknown. Use 'mutable' or 'immutable'."
            )
        if version is not None and id is not None and version != id:
            raise MisconfigurationError(
                f"WandbLogger(version={version!r}, id={id!r}) names two runs. Give one of them."
            )
        self._artifacts = CheckpointArtifacts("WandbLogger", log_model)
        self._offline = offline or os.environ.get("WANDB_MODE") in _OFFLINE_MODES
        self._save_dir = os.fspath(save_dir if dir is None else dir)
        self._project = project or os.environ.get("WANDB_PROJECT") or "lightning_logs"
        self._id = id or version or os.environ.get("WANDB_RUN_ID")
        self._arguments: dict[str, Any] = {"name": name, "resume": "allow", **kwargs}
        if anonymous is not None:
            self._arguments["anonymous"] = "allow" if anonymous else "never"
        if offline:
            self._arguments["mode"] = "offline"
        self._prefix = prefix
        self._checkpoint_name = checkpoint_name
        self._policy = add_file_policy
        self._watched: list[tuple[nn.Module, dict[str, Any]]] = []
        self._watching: list[nn.Module] = []
        self._run: Any = experiment
        self._is_given = experiment is not None
        if experiment is not None:
            self._adopt(experiment)
        self._load()

    def __getstate__(self) -> dict[str, Any]:
        self.close()
        return {**self.__dict__, "_run": None, "_is_given": False, "_watching": []}

    @property
    def experiment(self) -> Any:
        """The run, a `wandb.Run`. Opens it if it is not open in this process."""
        if self._run is None:
            wandb = self._load()
            self.claim()
            if wandb.run is not None and wandb.run.id == self._id:
                self._run, self._is_given = wandb.run, True
            else:
                folder = os.path.abspath(os.path.expanduser(self._save_dir))
                os.makedirs(folder, exist_ok=True)
                _wait_for_another_name(folder, str(self._id))
                with packages.surroundings(self._variables()):
                    self._run = wandb.init(project=self._project, dir=folder, id=self._id, **self._arguments)
            self._run.define_metric(_STEP)
            self._run.define_metric("*", step_metric=_STEP, step_sync=True)
        return self._run

    @property
    def name(self) -> str:
        """The project."""
        return self._project

    @property
    def version(self) -> str:
        """The run's id."""
        self.claim()
        assert self._id is not None
        return self._id

    @property
    def save_dir(self) -> str:
        """The folder that the user gave, as given."""
        return self._save_dir

    def claim(self) -> None:
        """Fix the run's id: that of a run that is open in this process already, else a new one."""
        wandb = sys.modules.get("wandb")
        if self._id is None and wandb is not None and getattr(wandb, "run", None) is not None:
            self._adopt(wandb.run)
        if self._id is None:
            self._id = secrets.token_hex(4)

    def _adopt(self, run: Any) -> None:
        self._id = run.id
        self._project = run.project or self._project

    def close(self) -> None:
        """Close the run in this process, unless the user has opened it; it goes on at the next use."""
        self._finish(0)

    def _finish(self, exit_code: int) -> None:
        run, self._run = self._run, None
        if run is None or self._is_given:
            return
        for module in self._watching:
            run.unwatch(module)
        self._watching = []
        with packages.surroundings(self._variables()):
            run.finish(exit_code=exit_code)
            wandb = self._load()
            if wandb.run is None:  # nobody else has a run open: end the service too
                wandb.teardown()

    # ---------------------------------------------------------------- what the trainer calls

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Record each number; `step` becomes the metric ``trainer/global_step``, which the charts' axis is.

        Raises:
            TypeError: for a value that is not a number.
        """
        values = {name: as_number(name, value) for name, value in metrics.items()}
        named: dict[str, Any] = with_prefix(values, self._prefix)
        self.experiment.log(named if step is None else {**named, _STEP: step})

    def log_hyperparams(
        self, params: Mapping[str, Any] | Namespace | None, metrics: Mapping[str, float] | float | None = None
    ) -> None:
        """Record `params` as the run's configuration, and `metrics` in its summary."""
        self.experiment.config.update(to_plain(as_mapping(params)), allow_val_change=True)
        if metrics is not None:
            found = metrics if isinstance(metrics, Mapping) else {"hp_metric": metrics}
            self.experiment.summary.update(with_prefix(found, self._prefix))

    def log_graph(self, model: nn.Module, input_array: Any = None) -> None:
        """Begin to watch what `watch` was given; called where the training is."""
        for module, options in self._watched:
            if not any(module is other for other in self._watching):
                self.experiment.watch(module, **options)
                self._watching.append(module)

    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        """Upload the checkpoint, or remember to upload what is kept at the end."""
        self._upload(self._artifacts.after_save(checkpoint_callback))

    def finalize(self, status: str) -> None:
        """Upload what is left to upload. After a failure also close the run, as a failed one."""
        if self._run is None:
            return
        self._upload(self._artifacts.at_end())
        if status != "success":
            self._finish(1)

    def _upload(self, checkpoints: list[CheckpointFile]) -> None:
        for item in checkpoints:
            with packages.surroundings(self._variables()):
                artifact = self._load().Artifact(
                    name=self._checkpoint_name or f"model-{self.experiment.id}",
                    type="model",
                    metadata=to_plain(item.metadata),
                )
                artifact.add_file(item.path, name="model.ckpt", policy=self._policy)
                self.experiment.log_artifact(artifact, aliases=item.aliases)

    # ---------------------------------------------------------------- what users call

    def watch(
        self,
        model: nn.Module,
        log: Literal["gradients", "parameters", "all"] | None = "gradients",
        log_freq: int = 100,
        log_graph: bool = True,
    ) -> None:
        """Record histograms of the gradients or parameters of `model` while it trains, from the next fit on.

        Args:
            model: The module, or a part of it.
            log: What to record.
            log_freq: Batches between two records.
            log_graph: Record the graph of modules too.
        """
        self._watched = [item for item in self._watched if item[0] is not model]
        self._watched.append((model, {"log": log, "log_freq": log_freq, "log_graph": log_graph}))

    def log_table(
        self,
        key: str,
        columns: list[str] | None = None,
        data: list[list[Any]] | None = None,
        dataframe: Any = None,
        step: int | None = None,
    ) -> None:
        """Record a table, of `columns` and rows `data`, or of a pandas `dataframe`."""
        with packages.surroundings(self._variables()):
            table = self._load().Table(columns=columns, data=data, dataframe=dataframe)
            self._log_media({key: table}, step)

    def log_text(
        self,
        key: str,
        columns: list[str] | None = None,
        data: list[list[str]] | None = None,
        dataframe: Any = None,
        step: int | None = None,
    ) -> None:
        """Record text as a table; see `log_table`."""
        self.log_table(key, columns, data, dataframe, step)

    def log_image(self, key: str, images: Sequence[Any], step: int | None = None, **kwargs: Any) -> None:
        """Record images: tensors, arrays, pictures or paths. Each of `kwargs` is a list as long as `images`
        of arguments of `wandb.Image`, such as `caption`."""
        self._log_each("Image", key, "images", images, step, kwargs)

    def log_audio(self, key: str, audios: Sequence[Any], step: int | None = None, **kwargs: Any) -> None:
        """Record sounds: arrays or paths; `kwargs` as for `log_image`, of `wandb.Audio`."""
        self._log_each("Audio", key, "audios", audios, step, kwargs)

    def log_video(self, key: str, videos: Sequence[Any], step: int | None = None, **kwargs: Any) -> None:
        """Record videos: arrays or paths; `kwargs` as for `log_image`, of `wandb.Video`."""
        self._log_each("Video", key, "videos", videos, step, kwargs)

    def _log_each(
        self, kind: str, key: str, argument: str, items: Any, step: int | None, options: dict[str, Any]
    ) -> None:
        if not isinstance(items, list):
            raise TypeError(
                f"WandbLogger.log_{kind.lower()}({argument}=...) got a {type(items).__name__}. Give a list."
            )
        for name, values in options.items():
            if len(values) != len(items):
                raise ValueError(
                    f"WandbLogger.log_{kind.lower()}({name}=...) has {len(values)} values for {len(items)} "
                    f"{argument}. Give one for each."
                )
        make = getattr(self._load(), kind)
        with packages.surroundings(self._variables()):
            found = [
                make(item, **{name: values[index] for name, values in options.items()})
                for index, item in enumerate(items)
            ]
            self._log_media({key: found}, step)

    def _log_media(self, values: dict[str, Any], step: int | None) -> None:
        named = with_prefix(values, self._prefix)
        self.experiment.log(named if step is None else {**named, _STEP: step})

    def use_artifact(self, artifact: str, artifact_type: str | None = None) -> Any:
        """Mark an artifact as an input of the run, and return it."""
        return self.experiment.use_artifact(artifact, type=artifact_type)

    @staticmethod
    def download_artifact(
        artifact: str,
        save_dir: str | os.PathLike[str] | None = None,
        artifact_type: str | None = None,
        use_artifact: bool | None = True,
    ) -> str:
        """Fetch an artifact and return the folder it is in.

        Args:
            artifact: Its name, as ``entity/project/name:alias``.
            save_dir: A folder for it; W&B chooses one when None.
            artifact_type: Its type.
            use_artifact: Mark it as an input of the run that is open, if there is one.
        """
        wandb = packages.load("wandb", logger="WandbLogger", extra="wandb", variables={})
        if wandb.run is not None and use_artifact:
            found = wandb.run.use_artifact(artifact, type=artifact_type)
        else:
            found = wandb.Api().artifact(artifact, type=artifact_type)
        return str(found.download(root=None if save_dir is None else os.fspath(save_dir)))

    # ---------------------------------------------------------------- the package

    def _variables(self) -> dict[str, str]:
        """Return what keeps an offline run to its own folder."""
        if not self._offline:
            return {}
        own = os.path.join(os.path.abspath(os.path.expanduser(self._save_dir)), "wandb")
        return {
            "WANDB_ERROR_REPORTING": "false",
            "WANDB_CACHE_DIR": os.path.join(own, "cache"),
            "WANDB_DATA_DIR": os.path.join(own, "data"),
            "WANDB_CONFIG_DIR": os.path.join(own, "config"),
        }

    def _load(self) -> Any:
        return packages.load("wandb", logger="WandbLogger", extra="wandb", variables=self._variables())


def _wait_for_another_name(folder: str, run_id: str) -> None:
    """Wait until an offline run would not get the folder of one of the same id that was opened in this
    second: W&B names them by the second, and would write over it."""
    while True:
        name = f"offline-run-{time.strftime('%Y%m%d_%H%M%S')}-{run_id}"
        if not os.path.exists(os.path.join(folder, "wandb", name)):
            return
        time.sleep(0.05)
