"""What ``configure_optimizers`` returned, checked, brought to the device and given to the module.

Done once before the first step, and again when a callback has changed what the module says. What cannot be
trained with the Trainer's arguments is a `MisconfigurationError` before any step; a module without an
optimizer is a warning.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch.optim import Optimizer

from modules.module import LightningModule
from modules.optimization import Optimization
from orchestrator import device
from orchestrator.hooks import overrides
from orchestrator.lightning_optimizer import AutomaticOptimization, LightningOptimizer
from orchestrator.manual import ManualOptimization, refuse_settings
from orchestrator.optimizers import parse, refuse_accumulation, refuse_optimizers, refuse_schedulers

if TYPE_CHECKING:
    from orchestrator.engine import Engine


def set_up_optimizers(engine: Engine) -> None:
    """Ask the module for optimizers and schedulers, and put them into the engine.

    Raises:
        MisconfigurationError: They cannot be used in this run.
    """
    module = engine.module
    engine.slots.enter("configure_optimizers")
    engine.optimizers, engine.schedulers = parse(
        module.configure_optimizers(), automatic=module.automatic_optimization
    )
    _take(engine)


def replace_optimizers(engine: Engine, given: Sequence[Optimizer]) -> None:
    """Train with other optimizers than the module has configured; schedulers stay with those of theirs.

    Raises:
        MisconfigurationError: They are none, or cannot be used in this run.
    """
    automatic = engine.module.automatic_optimization
    engine.optimizers, _ = parse(list(given), automatic=automatic)
    _take(engine)


def _take(engine: Engine) -> None:
    """Check the engine's optimizers and schedulers, and bring them where they are used."""
    module = engine.module
    if engine.logical is not None:
        engine.logical.refuse_module()
    refuse_settings(module, engine.settings)
    refuse_optimizers(
        engine.optimizers,
        automatic=module.automatic_optimization,
        ranks=engine.place.world_size,
        scales=engine.precision.scaler is not None,
        clips=bool(engine.settings.gradient_clip_val),
    )
    if module.automatic_optimization:
        own_step = overrides(module, "lr_scheduler_step", LightningModule)
        refuse_schedulers(engine.schedulers, own_step=own_step)
    refuse_accumulation(
        f"Trainer(accumulate_grad_batches={engine.accumulate})", engine.accumulate, module, engine.optimizers
    )
    if not engine.optimizers and engine.is_global_zero:
        warnings.warn(
            f"{type(module).__qualname__}.configure_optimizers returned no optimizer: training_step "
            "runs, but nothing is optimised. Return an optimizer, unless this is meant.",
            stacklevel=2,
        )
    for optimizer in engine.optimizers:
        device.move_optimizer_state(optimizer, engine.place.device)
    engine.strategy.optimizers = engine.optimizers = engine.strategy.adopt(module, engine.optimizers)
    _attach(engine)


def _attach(engine: Engine) -> None:
    """Give the module its optimizers, and what it optimises by hand with."""
    module = engine.module
    engine.lightning_optimizers = [LightningOptimizer(item, module) for item in engine.optimizers]
    if module.automatic_optimization:
        attached: Optimization = AutomaticOptimization(engine.lightning_optimizers)
    else:
        attached = engine.manual = ManualOptimization(
            module=module,
            strategy=engine.strategy,
            precision=engine.precision,
            hooks=engine.hooks,
            slots=engine.train_slots,
            state=engine.state,
            optimizers=engine.lightning_optimizers,
        )
    module.__dict__["_optimization"] = attached
