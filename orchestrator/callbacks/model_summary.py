"""Says at the start of fit what the module consists of: layers, parameters, sizes.

The table goes through the log named ``orchestrator``, as the plan does, once and from rank 0. It is drawn
before the first batch and costs nothing afterwards. See `orchestrator.summary` for what it shows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orchestrator.callbacks.callback import Callback
from orchestrator.errors import MisconfigurationError
from orchestrator.summary import Summary, summarize

if TYPE_CHECKING:
    from modules.module import LightningModule
    from orchestrator.trainer import Trainer


class ModelSummary(Callback):
    """Shows a plain table when fit starts. The Trainer adds one unless ``enable_model_summary=False``.

    Args:
        max_depth: Layers within layers: 1 for the module's own, -1 for all, 0 shows nothing.
        summarize_kwargs: Accepted for subclasses, which find them in ``summarize_kwargs``.

    Raises:
        MisconfigurationError: There is no such depth.
    """

    def __init__(self, max_depth: int = 1, **summarize_kwargs: Any) -> None:
        if isinstance(max_depth, bool) or not isinstance(max_depth, int) or max_depth < -1:
            raise MisconfigurationError(
                f"{type(self).__name__}(max_depth={max_depth!r}). Use -1 for all layers, 0 for nothing, or "
                "1, 2, ..."
            )
        self.max_depth = max_depth
        self.summarize_kwargs = summarize_kwargs

    def unused_hooks(self) -> frozenset[str]:
        """With ``max_depth=0`` nothing is done."""
        return frozenset({"on_fit_start"}) if self.max_depth == 0 else frozenset()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the table, on rank 0."""
        if trainer.is_global_zero and trainer.engine is not None:
            trainer.engine.say(self.render(summarize(pl_module, self.max_depth)))

    def render(self, summary: Summary) -> str:
        """Return the text that is shown; override it to show something else."""
        return str(summary)
