"""The process in which a sweep's trials run, one after another, as Ray Tune calls it.

Tune asks for one result after another. The trial itself is ordinary code that runs from its beginning to its
end, so it has a thread of its own here, which stops at each report until Tune has decided. Between two trials
the process is put back to what it was (`isolation`), and keeps its imports and its group of workers. A
checkpoint is made when Tune asks for one, at the report that the trial stands at. What a trial raises is
raised to Tune as it was; the process is then given up, and its group with it.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray import tune

from cluster.serialization import Parcel, load
from orchestrator.stops import Preempted
from orchestrator.sweep.dialogue import GO_ON, SAVE, STOP, Dialogue, Ended, Report, Saved
from orchestrator.sweep.isolation import fresh_process, trial_seed
from orchestrator.sweep.lines import number_of
from orchestrator.sweep.stopped import TrialStopped
from orchestrator.sweep.trial import CHECKPOINT_NAME, Origin, Trial, set_current

_ORIGIN_NAME = "trial.json"
_END_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialJob:
    """What all trials of a sweep have in common.

    Attributes:
        train: The user's function, pickled; each trial gets its own copy.
        metric: What trials are compared by.
        mode: ``"min"`` or ``"max"``.
        saves: Make a checkpoint at each report.
        seed: Of the sweep; None for random ones.
        num_workers: Workers that a trial has reserved besides its own process.
        resources_per_worker: What each of them has reserved.
        threads: Of torch's kernels in a trial that trains in its own process.
        has_gpu: A trial has reserved a GPU, or a part of one, for its own process.
        folder: The driver's working directory.
        env: The driver's variables that trials get.
    """

    train: Parcel
    metric: str
    mode: str
    saves: bool
    seed: int | None
    num_workers: int
    resources_per_worker: dict[str, float]
    threads: int
    has_gpu: bool
    folder: str
    env: dict[str, str]


class TrialActor(tune.Trainable):
    """Runs trials for Ray Tune. `trainable_for` makes the class that Tune is given.

    Args:
        job: What all trials of the sweep have in common.
        tunes: What Tune passes to its trainables.
    """

    def __init__(self, *, job: TrialJob, **tunes: Any) -> None:
        self._job = job
        super().__init__(**tunes)

    def setup(self, config: dict[str, Any]) -> None:
        """Take the first trial's configuration."""
        import orchestrator.trainer  # noqa: F401  all trials need it

        gc.freeze()  # what was imported is never garbage, so collecting after a trial is quick
        if not self._job.has_gpu:  # Ray lets a process see the GPUs that it has not reserved
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        self._config = config
        self._origin: Origin | None = None
        self._inbox: str | None = None
        self._thread: threading.Thread | None = None
        self._dialogue = Dialogue()
        self._reported: dict[str, Any] = {}
        self._reports = 0

    def step(self) -> dict[str, Any]:
        """Let the trial go on to its next report, and return that."""
        if self._thread is None:
            self._start()
        else:
            self._dialogue.decide(GO_ON)
        message = self._dialogue.hear()
        if isinstance(message, Report):
            self._reported = dict(message.metrics)
            self._reports += 1
            return {**self._reported, "should_checkpoint": self._job.saves}
        assert isinstance(message, Ended)
        self._join()
        if message.error is not None:
            raise message.error
        if not self._reports and not self._restored:
            raise RuntimeError(
                f"The trial {self.trial_name} has reported nothing: it called Trainer.fit for no validation "
                "and no epoch, or not at all. Let train(config) call Trainer.fit."
            )
        return {"__duplicate__": True, "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write the trial's checkpoint of its last report."""
        self._dialogue.decide(SAVE)
        message = self._dialogue.hear()
        if isinstance(message, Ended):
            self._join()
            raise message.error or RuntimeError("The trial ended while a checkpoint was asked for.")
        assert isinstance(message, Saved)
        torch.save(message.content, os.path.join(checkpoint_dir, CHECKPOINT_NAME))
        about = {"step": self._reported["global_step"], "config": _as_json(self._config)}
        with open(os.path.join(checkpoint_dir, _ORIGIN_NAME), "w", encoding="utf-8") as file:
            json.dump(about, file)

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Let the next start of the trial go on from a checkpoint, which may be gone by then."""
        self._end_trial()
        self._inbox = self._inbox or tempfile.mkdtemp(prefix="orchestrator-trial-")
        path = os.path.join(self._inbox, CHECKPOINT_NAME)
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)
        source = os.path.join(checkpoint, CHECKPOINT_NAME)
        try:
            os.link(source, path)
        except OSError:  # on another file system
            shutil.copyfile(source, path)
        with open(os.path.join(checkpoint, _ORIGIN_NAME), encoding="utf-8") as file:
            about = json.load(file)
        other = about["config"] != _as_json(self._config)
        self._origin = Origin(path=path, step=about["step"], other_config=other)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take another trial over, in the same process."""
        self._end_trial()
        self._config = new_config
        return True

    def cleanup(self) -> None:
        """End the trial, and the workers that were kept warm for the next one."""
        from cluster import pool

        try:
            self._end_trial()
        finally:
            pool.end()

    def _start(self) -> None:
        job = self._job
        self._dialogue = dialogue = Dialogue()
        assert self._storage is not None
        trial = Trial(
            name=self.trial_name,
            number=number_of(self.trial_name),
            config=self._config,
            metric=job.metric,
            mode=job.mode,
            directory=self._storage.trial_fs_path,
            num_workers=job.num_workers,
            resources_per_worker=job.resources_per_worker,
            placement_group=ray.util.get_current_placement_group() if job.num_workers else None,
            talk=dialogue.ask,
            origin=self._origin,
        )
        self._thread = threading.Thread(target=run_trial, args=(job, trial, dialogue), name=trial.name)
        self._thread.start()

    def _end_trial(self) -> None:
        """Stop the trial that stands at a report, if any, and wait until its last line has run.

        Raises:
            TimeoutError: It does not come to its end.
        """
        if self._thread is not None:
            self._dialogue.decide(STOP)
            while not isinstance(self._dialogue.hear(_END_TIMEOUT_S), Ended):
                self._dialogue.decide(STOP)
            self._join()
        if self._inbox is not None:
            shutil.rmtree(self._inbox, ignore_errors=True)
        self._inbox = self._origin = None
        self._reported, self._reports = {}, 0

    def _join(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()


def trainable_for(name: str, resources: Any) -> type[TrialActor]:
    """Return the class that Tune runs trials with.

    It refers to nothing of the sweep: Tune keeps each class that it was given until the process ends.

    Args:
        name: Of the user's function.
        resources: What a trial reserves, as a `PlacementGroupFactory`.
    """

    def default_resource_request(cls: type, config: Mapping[str, Any]) -> Any:
        return resources

    return type(name, (TrialActor,), {"default_resource_request": classmethod(default_resource_request)})


def run_trial(job: TrialJob, trial: Trial, dialogue: Dialogue) -> None:
    """Body of a trial's thread: call the user's function in a process as good as new."""
    error: BaseException | None = None
    set_current(trial)
    try:
        seed = trial_seed(job.seed, trial.number)
        with fresh_process(seed=seed, threads=job.threads, folder=job.folder, env=job.env):
            try:
                _call(job.train, trial.config)
            except TrialStopped:
                pass
            except Preempted as told:  # an exit of this thread would not end the process
                error = RuntimeError(str(told))
            except BaseException as raised:
                error = (
                    raised
                    if isinstance(raised, Exception)
                    else RuntimeError(f"The trial left by {raised!r}.")
                )
    except BaseException as raised:
        error = error or raised
    finally:
        set_current(None)
        dialogue.end(error)


def _call(train: Parcel, config: Mapping[str, Any]) -> None:
    """Call this trial's own copy of the user's function with the trial's own configuration."""
    function: Callable[[dict[str, Any]], Any] = load(train)
    function(dict(config))


def _as_json(config: Mapping[str, Any]) -> Any:
    """Return a configuration as JSON would give it back, to be compared."""
    return json.loads(json.dumps(config, default=repr, sort_keys=True))
