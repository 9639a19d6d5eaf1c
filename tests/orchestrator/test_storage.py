"""Where files would go when nodes do not share a disk: the decision, and what a rank sees."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.callbacks import ModelCheckpoint
from orchestrator.errors import MisconfigurationError
from orchestrator.loggers import CSVLogger
from orchestrator.storage import Sight, _folders, _leave_token, judge, look
from tests.orchestrator.groups import group_trainer


def sight(node: str, *folders: str | None, reads: bool = True) -> Sight:
    """What a rank on a node sees."""
    return Sight(node=node, folders=folders, reads=reads)


def test_a_shared_disk_is_no_news() -> None:
    """Where all ranks see all folders there is nothing to say."""
    assert judge(["/runs"], [sight("a", None), sight("b", None)], "fit", None) is None


def test_rank_0_beside_the_driver_is_enough() -> None:
    """Where only others lack the folder the run goes on, and the user is told what stays there."""
    note = judge(["/runs"], [sight("a", None), sight("b", "it is another disk")], "fit", None)
    assert note == (
        "/runs: not shared with node b. Rank 0 writes to this machine's disk; what other ranks write there "
        "themselves stays on their nodes."
    )


def test_rank_0_on_another_disk_is_refused() -> None:
    """Checkpoints that the user would not find are refused before training, with folder, node and reason."""
    with pytest.raises(
        MisconfigurationError, match=r"go to /logs, and rank 0 on node b .*: there, it cannot"
    ):
        judge(["/runs", "/logs"], [sight("b", None, "it cannot be written (Permission denied)")], "fit", None)


def test_a_checkpoint_that_a_rank_cannot_read_is_refused() -> None:
    """Every rank reads the checkpoint to start from; the nodes without it are named once each."""
    ranks = [sight("a"), sight("b", reads=False), sight("b", reads=False), sight("c", reads=False)]
    with pytest.raises(MisconfigurationError, match=r"test\(ckpt_path='/x'\): .* not on nodes b, c, and"):
        judge([], ranks, "test", "/x")


def test_a_rank_tells_its_own_disk_from_the_drivers(tmp_path: Path) -> None:
    """The driver's token is found or not; what is tried leaves nothing."""
    shared, other = tmp_path / "shared", tmp_path / "other"
    other.mkdir()
    token = _leave_token(str(shared))
    assert token is not None
    context: Any = SimpleNamespace(node_ip="b")
    folders = [str(shared), str(other), str(tmp_path / "none")]
    seen = look(context, folders, [token] * 3, None)
    assert seen == sight("b", None, "it is another disk", "there is no such folder")
    assert os.listdir(shared) == [token]
    assert os.listdir(other) == []
    assert not look(context, [], [], str(tmp_path / "no.ckpt")).reads


def test_all_folders_of_a_run_are_looked_at(tmp_path: Path) -> None:
    """Those of the trainer, its loggers and its savers, each once; none where nothing is written."""
    trainer = group_trainer(
        tmp_path / "root",
        logger=CSVLogger(tmp_path / "logs"),
        enable_checkpointing=True,
        callbacks=[ModelCheckpoint(dirpath=tmp_path / "saved")],
    )
    assert _folders(trainer) == [str(tmp_path / name) for name in ("root", "logs", "saved")]
    assert _folders(group_trainer(tmp_path)) == []
    assert _folders(group_trainer(tmp_path, fast_dev_run=True)) == []
