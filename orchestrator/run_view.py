"""Where a run stands, as it is read from the Trainer: counters, metrics, ranks, stage, numbers of batches.

Reading never communicates, and starts nothing; only an estimate may load the training data. During a call the
values are those of this process's run; afterwards they are what the run left, also where it ran on a group.
What only a run in this process has is zero without one, as each property says; an estimate that cannot be
made is a `RuntimeError`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import Tensor

from orchestrator.board import Board
from orchestrator.callbacks.callback import Callback
from orchestrator.errors import MisconfigurationError
from orchestrator.logical_ranks import logical_ranks_of
from orchestrator.optimizers import refuse_accumulation
from orchestrator.plan import Plan
from orchestrator.settings import Settings
from orchestrator.state import TrainState
from orchestrator.step_estimate import estimate_steps

if TYPE_CHECKING:
    from orchestrator.engine import Engine


class RunView:
    """The properties of a Trainer that a run changes; it holds what they read.

    Attributes:
        settings: The arguments.
        plan: Where calls run.
        state: The counters.
        board: The metrics.
        callbacks: All callbacks, those that save checkpoints last.
        engine: The run of this process, or its last one; None where there was none.
        batch_counts: Batches of each loader that the last call ran, by kind of data.
    """

    settings: Settings
    plan: Plan
    state: TrainState
    board: Board
    callbacks: list[Callback]
    engine: Engine | None
    batch_counts: dict[str, list[int | float]]

    @property
    def global_step(self) -> int:
        """Optimizer steps so far."""
        return self.state.global_step

    @property
    def current_epoch(self) -> int:
        """The running epoch, from 0; after fit, the number of epochs that have ended."""
        return self.state.epoch

    @property
    def batches_seen(self) -> int:
        """Training batches so far, over all ranks."""
        return self.state.batches_seen + self._in_epoch()[0]

    @property
    def samples_seen(self) -> int:
        """Training samples so far, over all ranks."""
        return self.state.samples_seen + self._in_epoch()[1]

    def _in_epoch(self) -> tuple[int, int]:
        if self.engine is None or self.engine.feed is None or not self.state.epoch_batches:
            return 0, 0
        return self.engine.feed.totals(self.state.epoch_batches)

    @property
    def accumulate_grad_batches(self) -> int:
        """Batches whose gradients make one step: as given, or as it was set last. What a hook sets holds from
        the next epoch that starts; in ``on_train_epoch_start``, from this one.

        Raises:
            MisconfigurationError: It is set to no whole number of at least 1, or where steps are not made of
                batches.
        """
        return self.state.accumulate or self.settings.accumulate_grad_batches

    @accumulate_grad_batches.setter
    def accumulate_grad_batches(self, batches: int) -> None:
        if isinstance(batches, bool) or not isinstance(batches, int) or batches < 1:
            raise MisconfigurationError(
                f"trainer.accumulate_grad_batches = {batches!r}. Use a whole number of at least 1."
            )
        if self.engine is not None:
            argument = f"trainer.accumulate_grad_batches = {batches}"
            refuse_accumulation(argument, batches, self.engine.module, self.engine.optimizers)
        self.state.accumulate = batches

    @property
    def callback_metrics(self) -> dict[str, Tensor]:
        """All metrics by name, as scalar tensors; equal on all ranks after epochs and validations."""
        return self.board.with_steps(None if self.engine is None else self.engine.train_slots)

    @property
    def logged_metrics(self) -> dict[str, Tensor]:
        """The metrics that were sent to loggers."""
        return dict(self.board.logged)

    @property
    def progress_bar_metrics(self) -> dict[str, float]:
        """The metrics that the progress display shows."""
        return dict(self.board.progress)

    @property
    def world_size(self) -> int:
        """Ranks."""
        if self.engine is not None:
            return self.engine.place.world_size
        return logical_ranks_of(self.settings, self.plan.num_workers) or self.plan.num_workers

    @property
    def global_rank(self) -> int:
        """This process's rank; under ``strategy="elastic"`` the logical rank that runs, else the first of
        those that it hosts.
        """
        if self.engine is not None:
            logical = self.engine.logical
            return self.engine.place.rank if logical is None else logical.shown
        return 0 if self.plan.launched is None else self.plan.launched.rank

    @property
    def local_rank(self) -> int:
        """This process's rank on its node."""
        if self.engine is not None:
            return self.engine.place.local_rank
        return 0 if self.plan.launched is None else self.plan.launched.local_rank

    @property
    def node_rank(self) -> int:
        """The rank of this process's node."""
        return 0 if self.engine is None else self.engine.place.node_rank

    @property
    def num_nodes(self) -> int:
        """Nodes."""
        return self.settings.num_nodes if self.engine is None else self.engine.place.num_nodes

    @property
    def num_devices(self) -> int:
        """Ranks on each node."""
        return max(1, self.world_size // max(1, self.num_nodes))

    @property
    def device_ids(self) -> list[int]:
        """The numbers of this node's devices that the ranks compute on, from 0."""
        return list(range(self.num_devices))

    @property
    def is_global_zero(self) -> bool:
        """Whether this process is rank 0."""
        return self.global_rank == 0

    @property
    def training(self) -> bool:
        """Whether training batches are running."""
        return self.state.stage == "train"

    @property
    def validating(self) -> bool:
        """Whether validation is running."""
        return self.state.stage == "validate"

    @property
    def testing(self) -> bool:
        """Whether testing is running."""
        return self.state.stage == "test"

    @property
    def predicting(self) -> bool:
        """Whether prediction is running."""
        return self.state.stage == "predict"

    @property
    def sanity_checking(self) -> bool:
        """Whether validation batches are being tried before training."""
        return self.state.stage == "sanity"

    @property
    def evaluating(self) -> bool:
        """Whether validation, a sanity check or testing is running."""
        return self.state.stage in ("validate", "sanity", "test")

    @property
    def interrupted(self) -> bool:
        """Whether the last call ended by an exception."""
        return self.state.status == "interrupted"

    @property
    def num_training_batches(self) -> int | float:
        """Training batches of an epoch on the rank that has most; infinite when not known, 0 before the data
        is loaded.
        """
        feed = None if self.engine is None else self.engine.feed
        if feed is None:
            return self.batch_counts.get("train", [0])[0]
        return math.inf if feed.num_batches is None else feed.num_batches

    @property
    def num_val_batches(self) -> list[int | float]:
        """Validation batches of each loader on the rank that has most; infinite when not known, empty without
        validation. Loaders that are read together count as one.
        """
        return list(self.batch_counts.get("val", []))

    @property
    def num_test_batches(self) -> list[int | float]:
        """Test batches of each loader, likewise."""
        return list(self.batch_counts.get("test", []))

    @property
    def num_predict_batches(self) -> list[int | float]:
        """Prediction batches of each loader, likewise."""
        return list(self.batch_counts.get("predict", []))

    @property
    def num_sanity_val_batches(self) -> list[int | float]:
        """Validation batches of each loader that are tried before training."""
        steps = self.settings.num_sanity_val_steps
        return [count if steps < 0 else min(steps, count) for count in self.num_val_batches]

    @property
    def is_last_batch(self) -> bool:
        """Whether the training batch that runs, or ran last, is the last of its epoch; False where that is
        not known.
        """
        feed = None if self.engine is None else self.engine.feed
        return feed is not None and feed.is_last

    @property
    def estimated_stepping_batches(self) -> int | float:
        """Optimizer steps of the whole fit, as far as limits and the length of the data say; infinite when
        they do not.

        Within fit, from ``configure_optimizers`` on, it loads the training data if the answer needs them, and
        they are not loaded again. So ``train_dataloader`` runs earlier than it would, and what it draws from
        the random generators comes earlier too.

        Raises:
            RuntimeError: The length of the training data is needed, and no fit runs or has run.
        """
        schedules = (getattr(item, "scheduling", None) for item in self.callbacks)
        planned = next((item for item in schedules if isinstance(item, dict)), None)
        accumulation = planned or {0: self.accumulate_grad_batches}
        steps = estimate_steps(self.settings, self._known_training_batches(), accumulation)
        if steps is None and self.engine is not None and self.engine.job.fn == "fit":
            self.engine.data.load_training()
            steps = estimate_steps(self.settings, self.num_training_batches, accumulation)
        if steps is None:
            raise RuntimeError(
                "trainer.estimated_stepping_batches is read before a fit has training data, and "
                f"Trainer(max_epochs={self.settings.max_epochs}, max_steps={self.settings.max_steps}) counts "
                "epochs. Read it in configure_optimizers or later, or set max_steps, and max_epochs=-1."
            )
        return steps

    def _known_training_batches(self) -> int | float | None:
        if self.settings.limit_train_batches == 0:
            return 0
        return self.num_training_batches if "train" in self.batch_counts else None
