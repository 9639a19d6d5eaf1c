"""What stands in a checkpoint, and how a run takes it back.

Lightning's keys first, so that its readers find weights, optimizers, callbacks and hyperparameters; ours
under ``orchestrator``: the counters, the cursor, and each rank's random and reading state. Building one on a
group asks every rank for its part, so all ranks must build together. Only plain values and tensors go in;
what cannot is named once in a warning.
"""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from torch import Tensor

from modules import rng
from modules.checkpoint import format as checkpoint_format
from modules.checkpoint import hyperparameters
from modules.checkpoint.shards import Parts
from modules.combined_reading import Reader
from modules.cursor import Cursor
from modules.datamodule import LightningDataModule
from modules.module import LightningModule
from orchestrator.checkpoint import lightning_loops
from orchestrator.errors import MisconfigurationError
from orchestrator.feed import ReadingState
from orchestrator.state import TrainState

if TYPE_CHECKING:
    from orchestrator.engine import Engine

_LIGHTNING_VERSION = "2.6.0"
"""The version of Lightning whose keys these are; its readers refuse a file without one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    """What the loop needs to go on.

    Attributes:
        reading: This rank's random and reading state.
        cursor: Where the data stood.
        accumulate: Batches that made one step.
        totals: Batches and samples of the epoch that were used, over all ranks.
        metrics: What this rank has logged in the epoch.
        gradients: This rank's gradients by parameter, of a window of accumulated batches that was begun.
        manual: With manual optimization, what those gradients are.
    """

    reading: ReadingState
    cursor: Cursor
    accumulate: int
    totals: tuple[int, int]
    metrics: dict[str, Any]
    gradients: dict[str, Tensor]
    manual: dict[str, list[int]]


def build(engine: Engine, weights_only: bool, parts: Parts | None = None) -> dict[str, Any]:
    """Return the content of a checkpoint of the engine's run as it stands now. Communicates on a group.

    Args:
        engine: The run.
        weights_only: Leave out all that only training needs.
        parts: Takes this rank's parts of tensors that are dealt to ranks, of which marks are left in the
            content; None puts whole tensors there, on rank 0.
    """
    dropped: list[str] = []
    engine.strategy.before_save()
    content = _content(engine, weights_only, dropped, parts)
    return _plain(content, dropped, tells=engine.is_global_zero)


def shared(engine: Engine) -> dict[str, Any]:
    """Return what all ranks of a data-parallel run have alike, as it stands now and as it is: for a rank that
    takes another's place. Communicates with nobody.
    """
    content = _content(engine, False, [], None, apart=True)
    content["trainable"] = [name for name, item in engine.module.named_parameters() if item.requires_grad]
    return content


def _content(
    engine: Engine, weights_only: bool, dropped: list[str], parts: Parts | None, *, apart: bool = False
) -> dict[str, Any]:
    """Return a checkpoint's content; `apart` leaves out what each rank has for itself."""
    from orchestrator import __version__

    trainer = engine.trainer
    is_last_batch = engine.feed is None or engine.feed.is_last
    strategy = engine.strategy
    dealing = strategy.dealing
    if parts is None or dealing is None:
        weights, whole = strategy.module_state(engine.module), strategy.whole
    else:
        whole = functools.partial(parts.without, part_of=dealing.part_of)
        weights = whole(dealing.state(engine.module))
    content = _weights(engine.module, weights, engine.datamodule, engine.state, is_last_batch, dropped)
    if not weights_only:
        states = {callback.state_key: callback.state_dict() for callback in trainer.callbacks}
        content["callbacks"] = {key: value for key, value in states.items() if value}
        content["optimizer_states"] = [whole(optimizer.state_dict()) for optimizer in engine.optimizers]
        content["lr_schedulers"] = [config.scheduler.state_dict() for config in engine.schedulers]
        if engine.datamodule is not None:
            own = engine.datamodule.state_dict()
            if own:
                content[type(engine.datamodule).__qualname__] = own
        content["orchestrator"] = {
            "format": checkpoint_format.FORMAT_VERSION,
            "version": __version__,
            "world_size": engine.place.world_size,
            "accumulate_grad_batches": engine.accumulate,
            "precision": engine.precision.name,
            "scaler": engine.precision.state_dict(),
            "strategy": engine.strategy.state_dict(),
            "metrics": engine.board.state(),
            "counters": engine.state.counters(),
            **({} if engine.ledger is None else {"ledger": engine.ledger.state_dict()}),
            **({} if apart else _progress(engine)),
        }
        for hook in engine.hooks.of_callbacks("on_save_checkpoint"):
            hook(content)
    for hook in engine.hooks.of_module("on_save_checkpoint"):
        hook(content)
    return content


def build_weights(
    module: LightningModule, datamodule: LightningDataModule | None, state: TrainState
) -> dict[str, Any]:
    """Return the content of a checkpoint of weights where no run is: in the driver, after a run on a group.

    Args:
        module: Whose weights and hyperparameters.
        datamodule: Whose hyperparameters, or None.
        state: The counters after the run.
    """
    dropped: list[str] = []
    content = _weights(module, module.state_dict(), datamodule, state, True, dropped)
    module.on_save_checkpoint(content)
    return _plain(content, dropped, tells=True)


def _weights(
    module: LightningModule,
    weights: dict[str, Any],
    datamodule: LightningDataModule | None,
    state: TrainState,
    is_last_batch: bool,
    dropped: list[str],
) -> dict[str, Any]:
    """Return what every checkpoint holds; add to `dropped` the hyperparameters that it leaves out."""
    content: dict[str, Any] = {
        "epoch": state.epoch,
        "global_step": state.global_step,
        "pytorch-lightning_version": _LIGHTNING_VERSION,
        "state_dict": weights,
        "loops": lightning_loops.loops(state, is_last_batch=is_last_batch),
    }
    for owner, prefix in ((module, ""), (datamodule, "datamodule_")):
        if owner is not None:
            content.update(hyperparameters.content_of(owner, prefix, dropped))
    return content


def _way_to_leave_out(dropped: list[str]) -> str:
    """Return how the user leaves out by themselves what a checkpoint cannot hold."""
    if any("hyper_parameters" in item for item in dropped):
        return "Use save_hyperparameters(ignore=[...]) to leave it out yourself."
    return "Leave it out of what state_dict() or on_save_checkpoint() gives."


def _plain(content: dict[str, Any], dropped: list[str], *, tells: bool) -> dict[str, Any]:
    """Return `content` as plain values and tensors; warn of what was left out if this process `tells`."""
    plain = {
        key: value if key == "state_dict" else checkpoint_format.plain(value, key, dropped)
        for key, value in content.items()
    }
    if dropped and tells:
        warnings.warn(
            f"The checkpoint leaves out {', '.join(dropped)}: only tensors, numbers, strings and "
            "containers of them are kept, so that "
            f"a file can be loaded without running code. {_way_to_leave_out(dropped)}",
            stacklevel=3,
        )
    return plain


def _progress(engine: Engine) -> dict[str, Any]:
    state, feed = engine.state, engine.feed
    now = rng.capture() if engine.rng_to_resume is None else engine.rng_to_resume
    if feed is None:
        batches, samples, fingerprint, in_window = 0, 0, "", False
        reading = ReadingState(rng=now, generators=[], epoch_rng={}, epoch_generators=[])
    else:
        batches, samples = feed.totals(state.epoch_batches)
        fingerprint, reading = feed.loader.fingerprint, feed.reading(now)
        in_window = bool(state.epoch_batches % engine.accumulate) and not feed.is_last
    if engine.manual is not None:
        in_window = engine.manual.holds_gradients
    if in_window and engine.logical is not None:
        raise RuntimeError(
            f"Trainer(strategy='elastic') cannot save a checkpoint after batch {state.epoch_batches} of the "
            f"epoch, within a window of {engine.accumulate} accumulated batches: only the first logical rank "
            "of each process has run it. Save after an optimizer step."
        )
    if in_window and engine.strategy.in_step:
        raise RuntimeError(
            f"Trainer(strategy={engine.strategy.name!r}) cannot save a checkpoint after batch "
            f"{state.epoch_batches} of the epoch, within a window of {engine.accumulate} accumulated "
            "batches: ranks hold gradients that are not reduced yet. Save after an optimizer step."
        )
    cursor = Cursor(
        epoch=state.epoch,
        position=samples,
        batches=state.epoch_batches,
        seed=engine.order_seed,
        fingerprint=fingerprint,
    )
    own = {
        "reading": {field.name: getattr(reading, field.name) for field in fields(reading)},
        "metrics": {} if state.epoch_ended else engine.train_slots.state(),
        "gradients": {
            name: item.grad
            for name, item in engine.module.named_parameters()
            if in_window and item.grad is not None
        },
        "manual": {} if engine.manual is None else engine.manual.state_dict(),
    }
    return {
        "cursor": cursor.to_dict(),
        "epoch_totals": [batches, samples],
        "ranks": engine.strategy.gather(own) if engine.logical is None else _by_logical_rank(engine, own),
    }


def _by_logical_rank(engine: Engine, own: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what each logical rank has for itself, by logical rank. Communicates."""
    logged = own["metrics"].get("ranks", {})
    mine = {rank: {**own, "metrics": logged.get(rank, {})} for rank in engine.logical.hosted}  # type: ignore[union-attr]
    found = {rank: item for part in engine.strategy.gather(mine) for rank, item in part.items()}
    return [found[rank] for rank in sorted(found)]


def read_for(engine: Engine) -> dict[str, Any]:
    """Return the checkpoint that the job starts from."""
    assert engine.job.ckpt_path is not None
    own = engine.trainer.plugins.checkpoint_io
    if own is not None:
        return own.load_checkpoint(engine.job.ckpt_path, "cpu")
    once_per_node = engine.place.local_rank == 0 and not engine.job.is_verified
    return checkpoint_format.read(engine.job.ckpt_path, verify=once_per_node, later=_read_later(engine))


def _read_later(engine: Engine) -> frozenset[str]:
    """Return what a run of dealt tensors takes one at a time, so that it never holds them all whole: the
    optimizers' state, unless hooks of the user's look at it.
    """
    hooks = engine.hooks
    looked_at = hooks.of_module("on_load_checkpoint") or hooks.of_callbacks("on_load_checkpoint")
    return frozenset() if engine.strategy.dealing is None or looked_at else frozenset({"optimizer_states"})


def order_of(content: dict[str, Any], seed: int) -> tuple[int, int]:
    """Return the seed of the order of samples that a run of ours goes on with, else `seed`; and its epoch.

    Known before the training state is restored, for data that is loaded earlier.
    """
    ours = content.get("orchestrator")
    if ours is None:
        return seed, lightning_loops.place(content)[0]
    counters = ours["counters"]
    return ours["cursor"]["seed"], counters["epoch"] + bool(counters["epoch_ended"])


def restore_module(engine: Engine, content: dict[str, Any]) -> None:
    """Load the weights, after the module's hook, then the data module's and the callbacks' states.

    Outside of fit our own callbacks keep what they know, which is about training: how a checkpoint tests must
    not take back what the run has done since.
    """
    for hook in engine.hooks.of_module("on_load_checkpoint"):
        hook(content)
    engine.strategy.load_weights(engine.module, content["state_dict"], strict=engine.module.strict_loading)
    if engine.datamodule is not None:
        own = content.get(type(engine.datamodule).__qualname__)
        if own:
            engine.datamodule.load_state_dict(own)
    restore_callbacks(engine, content)


def restore_callbacks(engine: Engine, content: dict[str, Any]) -> None:
    """Give callbacks their states back; those of this package only in fit."""
    training = engine.job.fn == "fit"
    for hook in engine.hooks.of_callbacks("on_load_checkpoint", lambda item: training or _is_users(item)):
        hook(content)
    states = content.get("callbacks") or {}
    for callback in engine.trainer.callbacks:
        if callback.state_key in states and (training or _is_users(callback)):
            callback.load_state_dict(states[callback.state_key])


def restore_shared(engine: Engine, content: dict[str, Any]) -> None:
    """Take what `shared` returned on another rank; all ranks call `strategy.load_state_dict` afterwards."""
    trainable = frozenset(content["trainable"])
    for name, parameter in engine.module.named_parameters():
        parameter.requires_grad_(name in trainable)
    restore_module(engine, content)
    for optimizer, saved in zip(engine.optimizers, content["optimizer_states"], strict=True):
        engine.strategy.load_optimizer(optimizer, saved)
    for config, saved in zip(engine.schedulers, content["lr_schedulers"], strict=True):
        config.scheduler.load_state_dict(saved)
    _take_ours(engine, {**content["orchestrator"], "strategy": {}})


def _is_users(callback: Any) -> bool:
    """Whether a callback's class comes neither with this package nor with Lightning."""
    return type(callback).__module__.partition(".")[0] not in (
        "orchestrator",
        "lightning",
        "pytorch_lightning",
    )


def restore_training(engine: Engine, content: dict[str, Any]) -> Resumed | None:
    """Take back optimizers, schedulers, scaler and counters; return what the loop needs to go on.

    Raises:
        MisconfigurationError: The checkpoint has no training state, or another shape of it.
    """
    path = engine.job.ckpt_path
    states = content.get("optimizer_states")
    if states is None:
        raise MisconfigurationError(
            f"fit(ckpt_path={path!r}): the file holds weights only, so training cannot go on from it. "
            "Load the weights with load_from_checkpoint, and call fit without ckpt_path."
        )
    schedulers = content.get("lr_schedulers") or []
    for name, saved, present in (
        ("optimizers", states, engine.optimizers),
        ("learning-rate schedulers", schedulers, engine.schedulers),
    ):
        if len(saved) != len(present):
            raise MisconfigurationError(
                f"fit(ckpt_path={path!r}): the file has {len(saved)} {name}, configure_optimizers "
                f"returned {len(present)}. "
                "Use the same configuration as in the run that wrote it."
            )
    for optimizer, saved in zip(engine.optimizers, states, strict=True):
        engine.strategy.load_optimizer(optimizer, saved)
    for config, saved in zip(engine.schedulers, schedulers, strict=True):
        config.scheduler.load_state_dict(saved)
    ours = content.get("orchestrator")
    if ours is None:
        _take_from_lightning(engine, content)
        return None
    _take_ours(engine, ours)
    if engine.ledger is not None:
        engine.ledger.load_state_dict(ours.get("ledger") or {})
    batches, samples = ours["epoch_totals"]
    ranks = ours["ranks"]
    mine = ranks[engine.place.rank] if engine.place.rank < len(ranks) else None
    if engine.logical is not None and len(ranks) == engine.place.world_size:
        logged = {rank: ranks[rank]["metrics"] for rank in engine.logical.hosted if ranks[rank]["metrics"]}
        mine = {**ranks[0], "metrics": {"ranks": logged}}
    state = engine.state
    if state.epoch_ended:
        state.end_epoch(batches, samples)
    elif state.epoch_batches and len(ranks) != engine.place.world_size:
        raise MisconfigurationError(
            f"fit(ckpt_path={path!r}): the file was written in the middle of an epoch by {len(ranks)} "
            "ranks, and there are "
            f"{engine.place.world_size}. Use {len(ranks)}, or a checkpoint of the end of an epoch."
        )
    if mine is None:
        return None
    return Resumed(
        reading=ReadingState(**mine["reading"]),
        cursor=Cursor.from_dict(ours["cursor"]),
        accumulate=ours["accumulate_grad_batches"],
        totals=(batches, samples),
        metrics=mine["metrics"],
        gradients=mine["gradients"],
        manual=mine.get("manual", {}),
    )


def _take_ours(engine: Engine, ours: dict[str, Any]) -> None:
    engine.precision.load_state_dict(ours.get("scaler") or {})
    engine.strategy.load_state_dict(ours.get("strategy") or {})
    engine.state.restore(ours["counters"])
    engine.board.restore(ours["metrics"])


def _take_from_lightning(engine: Engine, content: dict[str, Any]) -> None:
    """Take Lightning's counters. It keeps neither random states nor the order of samples: an epoch starts."""
    engine.precision.load_state_dict(content.get("MixedPrecision") or {})
    epoch, batches = lightning_loops.place(content)
    steps = content["global_step"]
    windows = lightning_loops.batches_that_stepped(content, steps)
    engine.state.restore({"epoch": epoch, "global_step": steps, "windows": windows})
    if batches and engine.is_global_zero:
        warnings.warn(
            f"{engine.job.ckpt_path} was written by Lightning after {batches} batches of epoch {epoch}, and "
            "does not say which samples those were: this epoch starts again. "
            "Use a checkpoint of the end of an epoch to avoid it.",
            stacklevel=2,
        )


def check_data(resumed: Resumed, loader: Reader, state: TrainState, accumulate: int) -> None:
    """Refuse to go on in the middle of an epoch where that cannot be done exactly.

    Args:
        resumed: What the checkpoint said.
        loader: The training data now.
        state: The counters that were restored.
        accumulate: Batches that make one step now.

    Raises:
        MisconfigurationError: The data, the batch size or the accumulation is another.
    """
    if not state.epoch_batches:
        return
    cursor, found = resumed.cursor, loader.fingerprint
    advice = "Use the same, or a checkpoint of the end of an epoch."
    if cursor.fingerprint and found and cursor.fingerprint != found:
        raise MisconfigurationError(
            f"The checkpoint was written in the middle of an epoch of {cursor.fingerprint}, and the training "
            f"data is {found}. {advice}"
        )
    if loader.plan is not None and loader.plan.samples_before(state.epoch_batches) != cursor.position:
        raise MisconfigurationError(
            f"The checkpoint was written after {cursor.position} samples of an epoch, in {cursor.batches} "
            f"batches a rank, which are {loader.plan.samples_before(state.epoch_batches)} samples now: the "
            f"batch size or the way samples are dealt is another. {advice}"
        )
    if accumulate != resumed.accumulate:
        raise MisconfigurationError(
            f"The checkpoint was written in the middle of an epoch with accumulate_grad_batches="
            f"{resumed.accumulate}, and it is {accumulate} now. {advice}"
        )
