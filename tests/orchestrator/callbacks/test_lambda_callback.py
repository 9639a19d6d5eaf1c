"""LambdaCallback: functions as hooks."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

import orchestrator as pl
from orchestrator.callbacks import LambdaCallback
from orchestrator.callbacks.lambda_callback import HOOKS
from orchestrator.errors import MisconfigurationError
from tests.orchestrator.groups import Net, group_trainer
from tests.orchestrator.groups import loader as group_loader
from tests.orchestrator.tiny import Validated, loader, quiet_trainer


def test_functions_are_called_like_methods(tmp_path: Path) -> None:
    """Each hook of a run calls its function with the trainer, the module and the hook's own arguments."""
    seen: dict[str, int] = {}

    def noting(name: str) -> Any:
        return lambda *arguments: seen.setdefault(name, len(arguments))

    callback = LambdaCallback(**{name: noting(name) for name in HOOKS})
    trainer = quiet_trainer(
        callback, enable_checkpointing=True, default_root_dir=tmp_path, num_sanity_val_steps=1
    )
    module = Validated()
    trainer.fit(module, loader(8), loader(4))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    trainer.test(module, loader(4), verbose=False)
    trainer.predict(module, loader(4))
    quiet_trainer(callback, max_epochs=2).fit(Validated(), loader(8), ckpt_path=tmp_path / "a.ckpt")
    with pytest.raises(TypeError):
        quiet_trainer(callback).fit(Validated(), [None])
    assert seen.keys() == set(HOOKS)
    for name, count in seen.items():
        parameters = inspect.signature(getattr(pl.Callback, name)).parameters.values()
        needed = [item for item in parameters if item.name != "self" and item.default is item.empty]
        assert count == len(needed)


def test_what_is_no_hook_is_refused() -> None:
    """An unknown name is an error that says which was meant; so is what cannot be called."""
    with pytest.raises(MisconfigurationError, match="Did you mean 'on_train_epoch_end'"):
        LambdaCallback(on_train_epoch_ends=print)
    with pytest.raises(MisconfigurationError, match="setup=3"):
        LambdaCallback(setup=3)  # type: ignore[arg-type]
    assert LambdaCallback(setup=None).__dict__ == {}


@pytest.mark.ray
@pytest.mark.timeout(60)
def test_lambdas_travel_to_workers(tmp_path: Path) -> None:
    """A lambda of the script runs on the ranks of a group."""
    path = tmp_path / "rank"
    callback = LambdaCallback(
        on_fit_end=lambda trainer, module: Path(f"{path}{trainer.global_rank}").write_text("")
    )
    group_trainer(tmp_path, callbacks=[callback], max_epochs=1).fit(Net(), group_loader(16))
    assert sorted(item.name for item in tmp_path.iterdir()) == ["rank0", "rank1"]
