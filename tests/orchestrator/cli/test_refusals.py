"""A wrong command line: one line that says what is wrong and what is near, status 2, no traceback."""

from __future__ import annotations

from pathlib import Path

import jsonargparse
import pytest

from orchestrator import LightningCLI
from tests.orchestrator.cli.parts import Data, Net

FILES = {
    "unknown.yaml": "modle: {width: 3}\n",
    "deep.yaml": "trainer: {max_epoch: 3}\n",
    "class.yaml": "trainer: {callbacks: [{class_path: EarlyStopping, init_args: {monitr: x}}]}\n",
    "pathless.yaml": "optimizer: {init_args: {lr: 0.1}}\n",
    "type.yaml": "trainer: {max_epochs: many}\n",
    "inner.yaml": "optimizer: {class_path: Adam, init_args: {lr: 0.1, weight_decay: many}}\n",
}
CASES = {
    "--modle.width=3": "there is no argument --modle.width. Did you mean '--model.width'?",
    "--trainer.max_epoch=3": "there is no argument --trainer.max_epoch. Did you mean '--trainer.max_epochs'?",
    "--trainer.max_epochs=many": "--trainer.max_epochs=many is not of the type int or null.",
    "--seed_everything=x": "--seed_everything=x is not of the type bool or int.",
    "--optimizer=Adan": "no Optimizer is known by that name. Did you mean 'Adam'?",
    "--optimizer=torch.optim.Adan": "torch.optim.Adan cannot be used: module 'torch.optim' has no attribute "
    "'Adan'. Did you mean 'Adam'?",
    "--trainer.callbacks=EarlyStoping": "no Callback is known by that name. Did you mean 'EarlyStopping'?",
    "--trainer.callbacks=no.such.Class": "no.such.Class cannot be used: No module named 'no'.",
    "--trainer.logger=CSVLogger": "CSVLogger needs save_dir. Add --trainer.logger.save_dir=...",
    "--optimizer=Adam --optimizer.lrr=1": "torch.optim.Adam has no argument 'lrr'. Did you mean 'lr'?",
    "--config=unknown.yaml": "there is no argument --modle.width. Did you mean '--model.width'?",
    "--config=deep.yaml": "Did you mean '--trainer.max_epochs'?",
    "--config=class.yaml": "EarlyStopping has no argument 'monitr'. Did you mean 'monitor'?",
    "--config=pathless.yaml": "Say which class it is: class_path is missing.",
    "--config=type.yaml": "--trainer.max_epochs=many is not of the type int or null.",
    "--config=inner.yaml": "--optimizer.weight_decay=many is not of the type",
    "--config=missing.yaml": "--config: File does not exist",
    "--trainer.scaling_config.num_workers=2": "trainer.scaling_config takes any object. Write it as a whole",
    "3": "'3' is more than any argument takes. Write arguments as --name=value.",
}


@pytest.fixture(autouse=True)
def _in_a_folder_with_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)


@pytest.mark.parametrize("words", list(CASES))
def test_a_slip_is_answered_in_one_line(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What is wrong, by the name that the user wrote, and the nearest; then where names are listed."""
    with pytest.raises(SystemExit) as ended:
        LightningCLI(Net, Data, args=["fit", *words.split()], parser_kwargs={"prog": "train.py"})
    assert ended.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert CASES[words] in said[0]
    assert said[0].startswith("train.py fit: ")
    assert said[1:] == ["`train.py fit --help` lists what there is."]


def test_a_missing_class_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    """Where the command line has to name the module and does not, it is told so."""
    with pytest.raises(SystemExit):
        LightningCLI(args=["fit"], parser_kwargs={"prog": "train.py"})
    said = capsys.readouterr().err
    assert said.startswith("train.py fit: --model is missing. Give it on the command line or in a file")


def test_a_class_of_another_kind_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """--model takes modules only."""
    with pytest.raises(SystemExit):
        LightningCLI(args=["fit", "--model=torch.nn.Identity"])
    assert "--model=torch.nn.Identity is not of the type LightningModule" in capsys.readouterr().err


def test_an_error_can_be_an_exception() -> None:
    """With exit_on_error=False a script gets an exception, with the same text."""
    with pytest.raises(jsonargparse.ArgumentError, match=r"Did you mean '--model\.width'"):
        LightningCLI(Net, Data, args=["--model.widht=3"], run=False, parser_kwargs={"exit_on_error": False})
