"""Older forms that scripts and articles still use: they work, and each says once what to write today.

Arguments of the Trainer from before Lightning 2 become today's before anything looks at them. What has no
counterpart is refused in one line that says what to write, and so is a hook that nobody would call any more:
a script must never run with a part of it silently left out. Nothing here runs in the loop, but for modules
that define ``validation_epoch_end`` and the like (`orchestrator.epoch_outputs`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from typing import Any

from orchestrator.errors import MisconfigurationError

_told: set[str] = set()
"""The forms that this process was told about."""


def tell(form: str, instead: str, stacklevel: int) -> None:
    """Warn, once in this process, that `form` is an older form, and what to write `instead`."""
    if form in _told:
        return
    _told.add(form)
    warnings.warn(f"{form} is an older form. {instead}", FutureWarning, stacklevel=stacklevel + 1)


# -------------------------------------------------------------------- arguments of the Trainer

_RENAMED = {
    "distributed_backend": "strategy",
    "replace_sampler_ddp": "use_distributed_sampler",
    "row_log_interval": "log_every_n_steps",
    "max_nb_epochs": "max_epochs",
    "min_nb_epochs": "min_epochs",
    "nb_gpu_nodes": "num_nodes",
    "train_percent_check": "limit_train_batches",
    "val_percent_check": "limit_val_batches",
    "test_percent_check": "limit_test_batches",
    "overfit_pct": "overfit_batches",
}
_REMOVED: dict[str, tuple[str, tuple[Any, ...]]] = {
    "amp_backend": ("Mixed precision is torch's own: use precision='16-mixed'.", (None, "native")),
    "amp_level": ("Mixed precision is torch's own: use precision='16-mixed'.", (None,)),
    "auto_lr_find": ("Add a callbacks.LearningRateFinder().", (None, False)),
    "auto_scale_batch_size": ("Add a callbacks.BatchSizeFinder().", (None, False)),
    "auto_select_gpus": ("Ray gives each worker its GPUs.", (None, False, True)),
    "early_stop_callback": ("Add callbacks.EarlyStopping(monitor=...).", (None, False)),
    "flush_logs_every_n_steps": (
        "Loggers write in the background; a CSVLogger takes flush_logs_every_n_steps.",
        (None, *range(1, 10_001)),
    ),
    "ipus": ("IPUs are not supported.", (None, 0)),
    "hpus": ("HPUs are not supported.", (None, 0)),
    "log_gpu_memory": ("Add a callbacks.DeviceStatsMonitor().", (None, False)),
    "move_metrics_to_cpu": ("Metrics reach the host at log points.", (None, False, True)),
    "multiple_trainloader_mode": (
        "Give fit a utilities.CombinedLoader(loaders, mode=...).",
        (None, "max_size_cycle"),
    ),
    "prepare_data_per_node": (
        "Set it on the data module or module: self.prepare_data_per_node.",
        (None, True),
    ),
    "process_position": ("Progress is drawn by the driver alone.", (None, 0)),
    "stochastic_weight_avg": ("Add callbacks.StochasticWeightAveraging(swa_lrs=...).", (None, False)),
    "terminate_on_nan": ("Use detect_anomaly=True, or EarlyStopping(check_finite=True).", (None, False)),
    "tpu_cores": ("TPUs are not supported.", (None, 0)),
    "track_grad_norm": ("Log utilities.grad_norm(self, 2) in on_before_optimizer_step.", (None, -1)),
    "truncated_bptt_steps": ("Split the batch in training_step, with manual optimization.", (None, 0)),
    "weights_save_path": ("Use callbacks.ModelCheckpoint(dirpath=...).", (None,)),
}
"""What to do instead, and the values that asked for nothing: those are let pass."""
_OLD_BACKENDS = {"ddp": "ddp", "ddp_spawn": "ddp", "ddp_cpu": "ddp", "dp": "dp", "ddp2": "ddp2"}

Arguments = dict[str, Any]


def modernize(given: Arguments, known: Collection[str], stacklevel: int = 2) -> Arguments:
    """Return today's form of the arguments that a user gave to the Trainer.

    Args:
        given: As they were written.
        known: The names of the arguments that the Trainer has.
        stacklevel: Of the warning: whose line it names, counted from the caller.

    Raises:
        TypeError: An argument has no counterpart; the message says what to write.
        MisconfigurationError: An older argument has a value that never was one, or contradicts a newer one.
    """
    arguments = {name: value for name, value in given.items() if name in known or not _is_old(name)}
    notices: list[tuple[str, str]] = []
    for name, value in given.items():
        if name in known:
            continue
        if name in _REMOVED:
            instead, harmless = _REMOVED[name]
            if not any(value is item or (type(value) is type(item) and value == item) for item in harmless):
                raise TypeError(f"Trainer({name}={value!r}): this argument is gone. {instead}")
            notices.append((f"Trainer({name}=...)", f"Leave it out. {instead}"))
        elif name in _RENAMED:
            newer = _RENAMED[name]
            _put(arguments, newer, value, name)
            notices.append((f"Trainer({name}=...)", f"Write {newer}=."))
        elif name in _CHANGES:
            notices.append((f"Trainer({name}=...)", _CHANGES[name](value, arguments)))
    if "max_steps" in arguments and arguments["max_steps"] is None:
        arguments["max_steps"] = -1
        notices.append(("Trainer(max_steps=None)", "Leave it out, or write -1."))
    if not isinstance(arguments.get("precision"), bool) and arguments.get("precision") in (16, "16"):
        arguments["precision"] = "16-mixed"
        notices.append(("Trainer(precision=16)", "Write precision='16-mixed'."))
    _split_backend(arguments, notices)
    for name in ("enable_model_summary", "reload_dataloaders_every_n_epochs"):
        if name not in known:
            arguments.pop(name, None)
    for form, instead in notices:
        tell(form, instead, stacklevel + 1)
    return arguments


def _is_old(name: str) -> bool:
    return name in _REMOVED or name in _RENAMED or name in _CHANGES


def _put(arguments: Arguments, name: str, value: Any, older: str) -> None:
    if name in arguments and arguments[name] != value:
        raise MisconfigurationError(
            f"Trainer({older}={value!r}, {name}={arguments[name]!r}) say two things. Leave {older} out."
        )
    arguments[name] = value


def _split_backend(arguments: Arguments, notices: list[tuple[str, str]]) -> None:
    """Turn the accelerators that were strategies into strategies."""
    accelerator = arguments.get("accelerator")
    if isinstance(accelerator, str) and accelerator in _OLD_BACKENDS:
        strategy = _OLD_BACKENDS[accelerator]
        notices.append((f"Trainer(accelerator={accelerator!r})", f"Write strategy={strategy!r}."))
        del arguments["accelerator"]
        _put(arguments, "strategy", strategy, "accelerator")
        if accelerator == "ddp_cpu":
            arguments["accelerator"] = "cpu"
    if arguments.get("strategy") == "ddp_cpu":
        notices.append(("Trainer(strategy='ddp_cpu')", "Write strategy='ddp'."))
        arguments["strategy"] = "ddp"


def _gpus(value: Any, arguments: Arguments) -> str:
    """Read ``gpus``: a number, a list of indices, "0,1", -1 for all, None or 0 for none."""
    number = _how_many(value)
    if number is None:
        return "Leave it out."
    if number == 0:
        _put(arguments, "accelerator", "cpu", "gpus")
        return "Write accelerator='cpu'."
    if arguments.get("accelerator") not in _OLD_BACKENDS:
        if arguments.get("accelerator") in ("cpu", "tpu", "mps"):
            raise MisconfigurationError(
                f"Trainer(gpus={value!r}, accelerator={arguments['accelerator']!r}) say two things. "
                "Leave gpus out."
            )
        arguments["accelerator"] = "gpu"
    elif "strategy" not in arguments:
        arguments["strategy"] = _OLD_BACKENDS[arguments["accelerator"]]
        arguments["accelerator"] = "gpu"
    devices = -1 if number < 0 else number
    _put(arguments, "devices", devices, "gpus")
    return f"Write accelerator='gpu', devices={devices}."


def _how_many(value: Any) -> int | None:
    """Return how many GPUs an old ``gpus`` means: -1 for all, None where it says nothing."""
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and value >= -1:
        return value
    if isinstance(value, (list, tuple)) and all(type(item) is int and item >= 0 for item in value):
        return len(set(value))
    if isinstance(value, str):
        parts = [part.strip() for part in value.split(",") if part.strip()]
        if value.strip() == "-1":
            return -1
        if parts and all(part.isdecimal() for part in parts):
            return len(set(parts)) if "," in value else int(parts[0])
    raise MisconfigurationError(
        f"Trainer(gpus={value!r}). Use accelerator='gpu' and devices=N, a whole number of at least 1."
    )


def _num_processes(value: Any, arguments: Arguments) -> str:
    if value is None:
        return "Leave it out."
    if "devices" not in arguments:  # next to gpus=N it said the same
        arguments["devices"] = value
    return f"Write devices={value!r}."


def _checkpoint_callback(value: Any, arguments: Arguments) -> str:
    if value is None:
        return "Leave it out."
    if isinstance(value, bool):
        _put(arguments, "enable_checkpointing", value, "checkpoint_callback")
        return f"Write enable_checkpointing={value}."
    callbacks = arguments.get("callbacks")
    before = (
        [] if callbacks is None else list(callbacks) if isinstance(callbacks, (list, tuple)) else [callbacks]
    )
    arguments["callbacks"] = [*before, value]
    return "Put it among callbacks."


def _progress_bar_refresh_rate(value: Any, arguments: Arguments) -> str:
    if value == 0 and not isinstance(value, bool):
        _put(arguments, "enable_progress_bar", False, "progress_bar_refresh_rate")
        return "Write enable_progress_bar=False."
    return "Leave it out: progress is drawn a few times a second, however quick the steps are."


def _weights_summary(value: Any, arguments: Arguments) -> str:
    _put(arguments, "enable_model_summary", value is not None, "weights_summary")
    return f"Write enable_model_summary={value is not None}."


def _reload_every_epoch(value: Any, arguments: Arguments) -> str:
    _put(arguments, "reload_dataloaders_every_n_epochs", int(bool(value)), "reload_dataloaders_every_epoch")
    return f"Write reload_dataloaders_every_n_epochs={int(bool(value))}."


def _resume_from_checkpoint(value: Any, arguments: Arguments) -> str:
    arguments["resume_from_checkpoint"] = value
    return "Write fit(ckpt_path=...)."


_CHANGES: dict[str, Callable[[Any, Arguments], str]] = {
    "checkpoint_callback": _checkpoint_callback,
    "gpus": _gpus,
    "num_processes": _num_processes,
    "progress_bar_refresh_rate": _progress_bar_refresh_rate,
    "reload_dataloaders_every_epoch": _reload_every_epoch,
    "resume_from_checkpoint": _resume_from_checkpoint,
    "weights_summary": _weights_summary,
}
"""Change the arguments as the old one meant, and return what to write instead."""

# -------------------------------------------------------------------- hooks

_GONE = {
    "training_step_end": "Put its lines at the end of training_step.",
    "validation_step_end": "Put its lines at the end of validation_step.",
    "test_step_end": "Put its lines at the end of test_step.",
    "on_epoch_start": "Write on_train_epoch_start.",
    "on_epoch_end": "Write on_train_epoch_end.",
    "on_batch_start": "Write on_train_batch_start.",
    "on_batch_end": "Write on_train_batch_end.",
    "on_pretrain_routine_start": "Write on_fit_start.",
    "on_pretrain_routine_end": "Write on_fit_start.",
    "tbptt_split_batch": "Split the batch in training_step, with manual optimization.",
}


EPOCH_END_HOOKS = {
    "train": "training_epoch_end",
    "validation": "validation_epoch_end",
    "test": "test_epoch_end",
}
"""The hooks of older versions that `orchestrator.epoch_outputs` calls, by stage."""


def tell_of_epoch_ends(module: Any) -> None:
    """Say once what to write instead of a module's older hooks that get all outputs of an epoch."""
    for stage, name in EPOCH_END_HOOKS.items():
        if callable(getattr(module, name, None)):
            step = "training_step" if stage == "train" else f"{stage}_step"
            tell(
                f"{type(module).__qualname__}.{name}(outputs)",
                f"Keep what you need in a list of your own in {step}, and use it in on_{stage}_epoch_end().",
                stacklevel=6,
            )


def refuse_gone_hooks(owners: Collection[Any]) -> None:
    """Refuse hooks of modules and callbacks that nobody calls any more.

    Raises:
        MisconfigurationError: The first of them; it names the hook that took its place.
    """
    for owner in owners:
        for name, instead in _GONE.items():
            if callable(getattr(type(owner), name, None)):
                raise MisconfigurationError(
                    f"{type(owner).__qualname__}.{name}() is a hook of older versions, which nobody calls. "
                    f"{instead}"
                )
