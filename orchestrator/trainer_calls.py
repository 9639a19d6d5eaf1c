"""How the Trainer runs one call: what was given becomes a job, which runs here or on a group.

After every call the trainer holds what the run left, whichever way it ended: a failure goes on to the caller
once the driver's objects are as the run left them. A process that runs a trial of a sweep reports to it.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch

from modules.datamodule import LightningDataModule
from modules.module import LightningModule
from orchestrator import announcements, environments, foreign, starting_point
from orchestrator.arguments import checkpoints_last
from orchestrator.board import Board
from orchestrator.call_arguments import check_loaders, make_job, with_module_callbacks
from orchestrator.compile import is_compiled, unwrap
from orchestrator.hooks import HookTable
from orchestrator.job import Job, new_attempt
from orchestrator.launch import run_in_process, run_on_group
from orchestrator.manual import refuse_settings
from orchestrator.plan import Plan, make_plan
from orchestrator.plugins import Plugins
from orchestrator.progress import Progress
from orchestrator.requeue import checkpoint_to_resume, find_requeue
from orchestrator.run import RunRecord
from orchestrator.saving import LastFit
from orchestrator.stops import AgreedStop, Interrupted
from orchestrator.sweep.stopped import TrialStopped
from orchestrator.trainer_view import TrainerView
from orchestrator.writable import refuse_unwritable

if TYPE_CHECKING:
    from cluster.spec import GroupSpec
    from orchestrator.launch import Show
    from orchestrator.sweep.trial import Trial
    from orchestrator.trainer import Trainer


class TrainerCalls(TrainerView):
    """The Trainer's way from an entry point's arguments to its result.

    Attributes:
        plugins: How checkpoints are written, and where the processes come from.
        should_stop: Somebody has asked for the end of training.
        trial: The trial of a sweep that this process runs; None outside of one.
        fit_from: The checkpoint that `fit` starts from where none is named; None for none.
        record: Keeps the record of the running call; None outside of one, and on workers.
        goodput: Where the time of the last call went: seconds by kind (`orchestrator.goodput.KINDS`); None
            before the first. On rank 0 only where a launcher has started the ranks.
    """

    plugins: Plugins
    should_stop: bool
    trial: Trial | None
    fit_from: str | os.PathLike[str] | None
    record: RunRecord | None
    goodput: dict[str, float] | None
    _scaling_config: Any
    _placement_group: Any
    _last_fit: LastFit
    _verified: set[str]

    def _call(
        self,
        fn: str,
        model: LightningModule | None,
        datamodule: LightningDataModule | None,
        ckpt_path: str | os.PathLike[str] | None,
        weights_only: bool | None,
        *,
        return_predictions: bool = True,
        verbose: bool = True,
        **loaders: Any,
    ) -> Any:
        compiled = self.settings.compile
        if is_compiled(model):
            model, compiled = unwrap(model)
        if datamodule is None and model is None and all(item is None for item in loaders.values()):
            datamodule = self._datamodule
        job = make_job(
            fn,
            self._module if model is None else model,
            datamodule,
            loaders,
            return_predictions=return_predictions,
            verbose=verbose,
        )
        job.compile = compiled
        check_loaders(job, self.settings, self.plan.num_workers)
        if fn == "fit":
            refuse_settings(job.module, self.settings)
            job.attempt = new_attempt() if self.settings.ledger else None
        starting_point.check_weights_only(fn, weights_only, stacklevel=3)
        takes_best = model is None and fn != "fit"
        job.ckpt_path = self._starting_point(fn, ckpt_path, takes_best)
        job.is_verified = job.ckpt_path in self._verified
        if fn == "fit" and job.ckpt_path is None and not self.plan.on_group:
            requeue = find_requeue(os.environ, self.plugins.environment, self.settings.default_root_dir)
            job.ckpt_path = self._ckpt_path = checkpoint_to_resume(os.environ, requeue)
        trial = current_trial()
        if fn == "fit" and trial is not None:
            job.ckpt_path = trial.take_start(job.ckpt_path)
        self._module, self._datamodule = job.module, job.datamodule
        self.callbacks = with_module_callbacks(self.callbacks, job.module)
        self.should_stop = False
        if fn == "fit":
            refuse_unwritable(cast("Trainer", self))
        self._enter_trial()
        if self.plan.launched is None:
            for logger in self.loggers:
                foreign.claim(logger)
        try:
            return self._run(job)
        except Interrupted as told:  # a script that lets it pass ends with 130 for this very class only
            raise KeyboardInterrupt(str(told)) from None

    def _starting_point(
        self, fn: str, ckpt_path: str | os.PathLike[str] | None, takes_best: bool
    ) -> str | None:
        """Return the checkpoint that a call starts from: as given, else as `ckpt_path` was set."""
        if ckpt_path is not None:
            self._keeps_ckpt_path = False
        elif self._keeps_ckpt_path:
            ckpt_path = self._ckpt_path
        elif fn == "fit":
            ckpt_path = self.fit_from
        savers, verified = self.checkpoint_callbacks, self._verified
        verified.clear()
        if fn == "fit" and ckpt_path is None and self.settings.resume == "auto":
            root = self.settings.default_root_dir
            found = starting_point.newest_of_run(savers, self.loggers, root, stacklevel=4, verified=verified)
        else:
            found = starting_point.resolve_checkpoint(
                fn, ckpt_path, savers, best=takes_best, stacklevel=4, verified=verified
            )
        if not self._keeps_ckpt_path:
            self._ckpt_path = found
        return found

    def _run(self, job: Job) -> Any:
        plan = self.plan
        trial = self.trial
        first = plan.launched is None or plan.launched.rank == 0
        bar = self.progress_bar_callback if trial is None and first else None
        progress = Progress(bar=bar) if bar is not None and bar.wants_display else None
        show = progress.update if progress is not None else None
        if first:
            announcements.announce(plan)
            announcements.announce_data(job.loaders)
        self.board = Board()
        record = self.record = RunRecord(cast("Trainer", self), job) if first else None
        try:
            if plan.group is not None:
                result = self._run_on_group(job, plan.group, show)
            else:
                result = self._run_here(job, show)
        except BaseException as error:
            self._end_record(record, error)
            raise
        else:
            self._end_record(record, None)
        finally:
            if progress is not None:
                progress.close()
        if record is not None and record.has_trained and trial is None:
            announcements.tell(record.describe())
        if job.fn in ("validate", "test") and job.verbose and trial is None and first:
            announcements.print_results(job.fn, result)
        return result

    def _end_record(self, record: RunRecord | None, error: BaseException | None) -> None:
        self.record = None
        if record is not None:
            self.goodput = record.total.seconds()
            record.end(error)

    def _run_here(self, job: Job, show: Show | None) -> Any:
        if job.fn == "fit":
            self._last_fit = LastFit()
        try:
            return run_in_process(cast("Trainer", self), job, self.plan, show)
        finally:
            if job.fn == "fit" and self.engine is not None and self.engine.job is job:
                self._last_fit = LastFit(engine=self.engine)

    def _run_on_group(self, job: Job, group: GroupSpec, show: Show | None) -> Any:
        hooks = HookTable(self, job.module, job.datamodule, ())
        job.module.trainer = hooks.trainer_for(job.module)
        if job.datamodule is not None:
            job.datamodule.trainer = hooks.trainer_for(job.datamodule)
        before = self.state.counters()
        try:
            result = run_on_group(cast("Trainer", self), job, group, show)
        except (TrialStopped, AgreedStop):  # after everything has come back
            self._last_fit = LastFit()
            raise
        except BaseException:
            if self.state.counters() != before:
                self._last_fit = LastFit(lost=job.module)
            raise
        if job.fn == "fit":
            self._last_fit = LastFit()
        return result

    def _make_plan(self, trial: Trial | None) -> Plan:
        return make_plan(
            self.settings,
            cuda_devices=torch.cuda.device_count(),
            scaling_config=self._scaling_config,
            placement_group=self._placement_group,
            reservation=trial,
            mps=torch.backends.mps.is_available(),
            launched=environments.find(os.environ, self.plugins.environment),
        )

    def _enter_trial(self) -> None:
        """When this process runs a trial of a sweep, report to it and run where it has reserved."""
        trial = current_trial()
        if trial is None or self.trial is trial:
            return
        self.plan = self._make_plan(trial)
        self.trial = trial
        self.callbacks = checkpoints_last([*self.callbacks, trial.reporter()])

    def __getstate__(self) -> dict[str, Any]:
        """Leave behind what belongs to this process."""
        return {
            **self.__dict__,
            "engine": None,
            "trial": None,
            "record": None,
            "preemption_notice": None,
            "plan": replace(self.plan, group=None),
            "_last_fit": LastFit(),
            "_placement_group": None,
            "_scaling_config": None,
        }


def current_trial() -> Trial | None:
    """Return the trial of a sweep that this process runs; outside of one nothing is imported."""
    module = sys.modules.get("orchestrator.sweep.trial")
    return None if module is None else cast("Trial | None", module.current())
