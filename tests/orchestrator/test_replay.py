"""A stretch of a run, run again: from which checkpoint, with which result, and what cannot be."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.cli import main
from orchestrator.errors import MisconfigurationError
from orchestrator.replay import bring_into_this_process, compare, last_checkpoint, refuse_sharding
from orchestrator.run_files import read_run
from tests.orchestrator.groups import group_trainer

SCRIPT = """
import torch
from tests.orchestrator.tiny import Tiny, loader, loss_of
import orchestrator as pl
from orchestrator.callbacks import ModelCheckpoint
from orchestrator.loggers import {logger}


class Net(Tiny):
    def training_step(self, batch, batch_idx):
        loss = loss_of(self.net, batch) * (1 + torch.rand(()))
        self.log("loss", loss)
        return loss


if __name__ == "__main__":
    pl.seed_everything(3)
    pl.Trainer(
        accelerator="cpu",
        max_epochs=2,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger={logger}("logs"),
        callbacks=[ModelCheckpoint(every_n_train_steps=3, save_top_k=-1)],
    ).fit(Net(dropout=0.5), loader(20, shuffle=True))
    with open("behind", "a") as file:
        file.write("x")
"""
# What a poisoned data set does to it: sample 13 has a target that is out of all proportion.
POISONED = SCRIPT.replace("loader(20, shuffle=True)", "poisoned()").replace(
    "if __name__",
    """
def poisoned():
    data = loader(40).dataset
    data.tensors[1][13] = 4e4
    return torch.utils.data.DataLoader(data, batch_size=4, shuffle=True)


if __name__""",
)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run_script(logger: str = "CSVLogger", text: str = SCRIPT) -> Path:
    """Run the script; return the run's folder, whose record names it as Python would have."""
    script = Path("train.py").absolute()
    script.write_text(text.replace("{logger}", logger))
    runpy.run_path(str(script), run_name="__main__")
    folder = Path("logs/lightning_logs/version_0").absolute()
    content = read_run(folder)
    content["code"] |= {"script": str(script), "arguments": []}
    (folder / "run.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("logger", ["CSVLogger", "TensorBoardLogger"])
def test_a_stretch_is_equal_to_what_was_recorded(logger: str, capsys: pytest.CaptureFixture[str]) -> None:
    """From the checkpoint before it, in the middle of an epoch, with random numbers; nothing else is left."""
    folder = run_script(logger)
    before = sorted(path.name for path in folder.rglob("*"))
    assert main(["replay", str(folder), "--step", "7"]) == 0
    said = capsys.readouterr().out
    assert "Steps 6 to 7 were run again" in said and "epoch=1-step=6.ckpt" in said
    assert "All 2 numbers that the run has logged in them are equal." in said
    assert main(["replay", str(folder), "--step", "10"]) == 2
    assert "has ended after 10 steps: the last one is 9." in capsys.readouterr().err
    assert sorted(path.name for path in folder.rglob("*")) == before
    assert Path("behind").read_text() == "x" and not Path("logs/lightning_logs/version_1").exists()


def test_without_a_checkpoint_before_it_the_run_begins_anew(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """From its seed, so the first steps are equal too. What it took of its time is not taken again."""
    caplog.set_level("INFO", logger="orchestrator")
    folder = run_script(text=SCRIPT.replace("max_epochs=2,", 'max_epochs=2,\n        profiler="simple",'))
    assert caplog.text.count("optimizer_zero_grad") == 1
    assert main(["replay", str(folder), "--step", "1"]) == 0
    assert "Steps 0 to 1 were run again, from the run's beginning." in capsys.readouterr().out
    assert caplog.text.count("optimizer_zero_grad") == 1


def test_a_difference_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """The first number that is not what was recorded comes first, and the status says so."""
    folder = run_script()
    table = folder / "metrics.csv"
    lines = table.read_text().splitlines()
    place = next(index for index, line in enumerate(lines) if ",7," in line or line.startswith("7,"))
    lines[place] = ",".join(["9.5" if "." in cell else cell for cell in lines[place].split(",")])
    table.write_text("\n".join(lines) + "\n")
    assert main(["replay", str(folder), "--step", "8"]) == 1
    said = capsys.readouterr().out
    assert "1 of 3 numbers differ, the first at step 7:" in said
    assert "loss: 9.5 recorded" in said


def test_the_poisoned_sample_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    """By its number in the data set, though the order was shuffled; the run's folder is left as it was."""
    folder = run_script(text=POISONED)
    before = sorted(path.name for path in folder.rglob("*"))
    capsys.readouterr()
    assert main(["replay", str(folder), "--bisect"]) == 0
    said = capsys.readouterr().out
    assert "number 13 of the data set" in said and "To blame: sample " in said
    assert sorted(path.name for path in folder.rglob("*")) == before


def test_the_poisoned_sample_of_logical_ranks_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    """Whichever logical rank had it, and on that one alone where one is named."""
    logical = "strategy=pl.strategies.ElasticStrategy(logical_ranks=2),\n        max_epochs=2,"
    folder = run_script(text=POISONED.replace("max_epochs=2,", logical))
    capsys.readouterr()
    found = []
    for words in ([], ["--logical-rank=0"], ["--logical-rank=1"]):
        status = main(["replay", str(folder), "--bisect", *words])
        found.append(("number 13 of the data set" in capsys.readouterr().out, status))
    assert found[0] == (True, 0)
    assert sorted(found[1:]) == [(False, 1), (True, 0)]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--step=N, or --bisect"),
        (["--step=-1"], "--step=-1 is no step"),
        (["--step=1", "--logical-rank=0"], "--logical-rank needs --bisect"),
        (["--bisect", "--logical-rank=-2"], "--logical-rank=-2 is no logical-rank"),
        (["--bisect"], "is other than finite, or jumps. Name a step"),
    ],
)
def test_a_search_for_nothing_is_refused(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Options that do not go together, and a run in which all is well."""
    Path("run.json").write_text(json.dumps({"format": 1, "calls": [], "code": {}}))
    assert main(["replay", ".", *words]) == 2
    assert said in capsys.readouterr().err


def test_a_run_of_the_command_line_is_replayed(capsys: pytest.CaptureFixture[str]) -> None:
    """From the configuration that was saved beside it."""
    words = ["--model=MLPClassifier", "--model.in_features=2", "--model.classes=3", "--data=Spirals"]
    words += ["--trainer.max_steps=6", "--trainer.log_every_n_steps=1", "--trainer.logger=CSVLogger"]
    words += ["--trainer.logger.save_dir=logs", "--trainer.enable_progress_bar=false"]
    assert main(["fit", *words, "--trainer.accelerator=cpu"]) == 0
    assert main(["replay", "logs/lightning_logs/version_0", "--step", "3"]) == 0
    assert "numbers that the run has logged in them are equal" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"script": None}, "a program without a file"),
        ({"script": "gone.py"}, "gone.py, which is not there"),
        ({"script": "idle.py"}, "ended without a call of fit"),
        ({"script": "tests.py"}, "calls test before fit"),
    ],
)
def test_what_cannot_be_started_again_is_refused(
    change: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line that says why, with status 2."""
    Path("idle.py").write_text("pass\n")
    Path("tests.py").write_text(
        "from tests.orchestrator.tiny import Validated, loader, quiet_trainer\n"
        "quiet_trainer().test(Validated(), loader(4))\n"
    )
    Path("run.json").write_text(json.dumps({"format": 1, "calls": [], "code": change}))
    assert main(["replay", ".", "--step", "3"]) == 2
    assert said in capsys.readouterr().err
    assert main(["replay", ".", "--step", "-1"]) == 2


def test_the_newest_checkpoint_that_is_not_too_late_is_taken(tmp_path: Path) -> None:
    """By the step that stands in the file; others' files and damaged ones are passed over."""
    (tmp_path / "checkpoints").mkdir()
    for name, step in (("b", 5), ("a", 9), ("c", 2)):
        content = {"global_step": step, "orchestrator": {}, "state_dict": {}}
        torch.save(content, tmp_path / "checkpoints" / f"{name}.ckpt")
    torch.save({"global_step": 7, "state_dict": {}}, tmp_path / "checkpoints" / "theirs.ckpt")
    (tmp_path / "checkpoints" / "damaged.ckpt").write_bytes(b"x")
    assert last_checkpoint(tmp_path, 8) == (str(tmp_path / "checkpoints" / "b.ckpt"), 5)
    assert last_checkpoint(tmp_path, 9)[1] == 9
    assert last_checkpoint(tmp_path, 1) == (None, 0)


def test_numbers_are_compared_as_precisely_as_they_were_recorded() -> None:
    """All digits, or those of 32 bits; the epoch is no number."""
    recorded = {"loss": {3: 0.10000000149011612, 4: 0.5, 9: 1.0}, "epoch": {3: 0.0}, "gone": {3: 1.0}}
    replayed = {"loss": {3: 0.1, 4: 0.5, 9: 1.0}, "epoch": {3: 1.0}}
    found = compare(recorded, replayed, 3, 8, exact=False)
    assert [(item.name, item.step, item.equal) for item in found] == [("loss", 3, True), ("loss", 4, True)]
    exact = compare(recorded, replayed, 3, 8, exact=True)
    assert [item.equal for item in exact] == [False, True]


def test_logical_ranks_are_replayed_in_this_process() -> None:
    """As many as the run had, also where that followed from its workers; other strategies stay where they
    were."""
    elastic = group_trainer(".", devices=3, strategy="elastic")
    bring_into_this_process(elastic)
    assert not elastic.plan.on_group and elastic.world_size == 3
    others = group_trainer(".", devices=3)
    bring_into_this_process(others)
    assert others.plan.on_group and others.world_size == 3


def test_single_samples_are_not_looked_for_where_weights_are_dealt() -> None:
    """No rank could run the module by itself."""
    with pytest.raises(MisconfigurationError, match=r"'fsdp'.*Replay the run without --bisect"):
        refuse_sharding(group_trainer(".", strategy="fsdp"))
