"""WandbLogger against the real package, offline."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import orchestrator as pl
from orchestrator.loggers import WandbLogger
from tests.orchestrator.groups import Net, loader
from tests.orchestrator.loggers.offline import Fails, fit, nothing_sent, trainer_for

pytestmark = [
    pytest.mark.extras,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package, kept from talking, a home of its own, and no network."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    pytest.importorskip("wandb")
    with nothing_sent():
        yield
    assert not (tmp_path / "home").exists()


def offline(tmp_path: Path, **arguments: Any) -> WandbLogger:
    """A logger whose files are in `tmp_path`."""
    return WandbLogger(save_dir=tmp_path / "runs", offline=True, **arguments)


def parts(data: bytes) -> Iterator[bytes]:
    """The records of a run's file: LevelDB's log format, in blocks of 32 KiB, behind 7 bytes of W&B's own."""
    place, whole = 7, b""
    while place < len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a full record, or the last part of one
            yield whole
            whole = b""


def records(logger: WandbLogger) -> list[Any]:
    """All that the run's files hold, in the order in which the run was opened."""
    from wandb.proto.wandb_internal_pb2 import Record

    paths = sorted(Path(logger.save_dir).glob(f"wandb/offline-run-*-{logger.version}/*.wandb"))
    return [Record.FromString(part) for path in paths for part in parts(path.read_bytes())]


def history(logger: WandbLogger) -> list[dict[str, Any]]:
    """The rows of metrics."""
    return [
        {(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item}
        for record in records(logger)
        if record.HasField("history")
    ]


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.ray)])
def test_a_fit_is_one_run(devices: int, tmp_path: Path) -> None:
    """Metrics with their step, hyperparameters, gradients and the kept checkpoint are recorded under one id,
    in this process and on a group, and a later call goes on with it.
    """
    logger = offline(tmp_path, name="first", project="digits", log_model=True, prefix="p", tags=["quick"])
    trainer, net = trainer_for(logger, tmp_path, devices=devices), Net(width=4)
    logger.watch(net, log_freq=1, log_graph=False)
    trainer.fit(net, loader(16), loader(8))
    name = logger.version
    trainer.test(net, loader(8))
    logger.close()
    assert (logger.name, logger.version) == ("digits", name)
    rows = history(logger)
    losses = [row["p-train_loss"] for row in rows if "p-train_loss" in row]
    assert losses == [pytest.approx(float(trainer.callback_metrics.get("train_loss", losses[0])))]
    steps = 2 // devices
    assert [row["trainer/global_step"] for row in rows if "p-train_loss" in row] == [steps - 1]
    assert any("p-test_loss" in row for row in rows)
    assert any(key.startswith("gradients/") for row in rows for key in row)
    runs = [record.run for record in records(logger) if record.HasField("run")]
    assert {run.run_id for run in runs} == {name}
    assert {run.project for run in runs} == {"digits"}
    assert runs[0].display_name == "first"
    config = {
        item.key: json.loads(item.value_json)
        for record in records(logger)
        for item in [*record.config.update, *record.run.config.update]
    }
    assert (config["features"], config["width"]) == (8, 4)
    uploads = [record.artifact for record in records(logger) if record.HasField("artifact")]
    assert [(item.name, item.type, sorted(item.aliases)) for item in uploads] == [
        (f"model-{name}", "model", ["best", "latest"])
    ]
    assert all(not module._forward_hooks for module in net.modules())


def test_a_failed_fit_closes_the_run(tmp_path: Path) -> None:
    """After an exception the run has ended with a code that is not 0."""
    logger = offline(tmp_path)
    with pytest.raises(RuntimeError, match="enough"):
        fit(trainer_for(logger, tmp_path, Fails()))
    assert [record.exit.exit_code for record in records(logger) if record.HasField("exit")] == [1]


def test_the_run_stays_open_after_a_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One can go on recording after fit; a run that the user opened is used, and not closed."""
    import wandb

    folder = tmp_path / "runs"
    folder.mkdir()
    for kind in ("CACHE", "DATA", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{kind}_DIR", str(folder / kind))
    run = wandb.init(mode="offline", dir=str(folder), project="own", settings=wandb.Settings(silent=True))
    try:
        logger = WandbLogger(save_dir=folder)
        fit(trainer_for(logger, tmp_path))
        assert logger.experiment is run
        assert (logger.version, logger.name) == (run.id, "own")
        logger.close()
        run.log({"afterwards": 1})
    finally:
        run.finish()
        wandb.teardown()
    assert any("afterwards" in row for row in history(logger))


def test_media_and_tables(tmp_path: Path) -> None:
    """Tables, texts and images go where the metrics go, each image with its own caption."""
    logger = offline(tmp_path)
    logger.log_table("table", columns=["a", "b"], data=[[1, 2]], step=3)
    logger.log_text("text", columns=["said"], data=[["hello"]])
    logger.log_image("image", [torch.rand(3, 4, 4)], step=4, caption=["noise"])
    with pytest.raises(TypeError, match=r"log_image\(images=...\) got a Tensor. Give a list"):
        logger.log_image("image", torch.rand(3, 4, 4))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"log_image\(caption=...\) has 2 values for 1 images"):
        logger.log_image("image", [torch.rand(3, 4, 4)], caption=["a", "b"])
    logger.close()
    assert list(Path(logger.save_dir).rglob("*.table.json"))
    assert list(Path(logger.save_dir).rglob("*.png"))


def test_copies_in_other_processes_are_the_same_run(tmp_path: Path) -> None:
    """Pickling closes the run here, and the copy goes on with it."""
    logger = offline(tmp_path)
    logger.log_metrics({"loss": 1.0}, 0)
    copy = pickle.loads(pickle.dumps(logger))
    copy.log_hyperparams({"width": 3}, {"score": 2.0})
    copy.log_metrics({"loss": 0.5}, 1)
    copy.close()
    assert copy.version == logger.version
    assert [row["loss"] for row in history(logger)] == [1.0, 0.5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"version": "a", "id": "b"}, "names two runs"),
        ({"add_file_policy": "some"}, r"WandbLogger\(add_file_policy='some'\) is unknown"),
        ({"log_model": "some"}, r"WandbLogger\(log_model='some'\) is unknown"),
    ],
)
def test_arguments_that_cannot_work_are_refused(arguments: dict[str, Any], message: str) -> None:
    """Each error names the argument and what to write."""
    with pytest.raises(pl.MisconfigurationError, match=message):
        WandbLogger(**arguments)
