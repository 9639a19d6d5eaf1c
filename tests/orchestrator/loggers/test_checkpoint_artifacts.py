"""Which checkpoints are uploaded, and when."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.callbacks import ModelCheckpoint
from orchestrator.errors import MisconfigurationError
from orchestrator.loggers.checkpoint_artifacts import CheckpointArtifacts


def kept(tmp_path: Path, *names: str, save_top_k: int = 1) -> ModelCheckpoint:
    """A ModelCheckpoint that keeps files of these names, the first of which is the best."""
    callback = ModelCheckpoint(tmp_path, monitor="loss", save_top_k=save_top_k)
    for age, name in enumerate(reversed(names)):
        path = tmp_path / name
        path.write_text(name)
        os.utime(path, (age, age))
        callback.best_k_models[str(path)] = torch.tensor(float(age))
    callback.best_model_path = str(tmp_path / names[0])
    callback.best_model_score = torch.tensor(0.5)
    return callback


def names(files: Any) -> list[str]:
    """The files' names."""
    return [os.path.basename(item.path) for item in files]


def test_true_uploads_what_is_kept_at_the_end(tmp_path: Path) -> None:
    """While training nothing is uploaded, at the end what is kept, the oldest first, and nothing twice."""
    artifacts, callback = CheckpointArtifacts("Some", True), kept(tmp_path, "best", "older", "oldest")
    assert artifacts.after_save(callback) == []
    found = artifacts.at_end()
    assert names(found) == ["oldest", "older", "best"]
    assert [item.aliases for item in found] == [["latest"], ["latest"], ["latest", "best"]]
    assert found[2].metadata["ModelCheckpoint"]["monitor"] == "loss"
    assert [item.score for item in found] == [0.0, 1.0, 2.0]
    assert artifacts.at_end() == []


@pytest.mark.parametrize(("log_model", "save_top_k"), [("all", 1), (True, -1)])
def test_each_is_uploaded_once(log_model: Any, save_top_k: int, tmp_path: Path) -> None:
    """Each checkpoint is uploaded as it is saved, and again only after it has changed."""
    artifacts = CheckpointArtifacts("Some", log_model)
    callback = kept(tmp_path, "a", "b", save_top_k=save_top_k)
    assert names(artifacts.after_save(callback)) == ["b", "a"]
    assert artifacts.after_save(callback) == []
    os.utime(tmp_path / "b", (9, 9))
    os.unlink(tmp_path / "a")
    assert names(artifacts.after_save(callback)) == ["b"]
    assert artifacts.at_end() == []


def test_false_uploads_nothing(tmp_path: Path) -> None:
    """By default nothing is uploaded."""
    artifacts = CheckpointArtifacts("Some", False)
    assert artifacts.after_save(kept(tmp_path, "a")) == []
    assert artifacts.at_end() == []


def test_other_values_are_refused() -> None:
    """What is neither True, False nor "all" is an error that names the logger."""
    with pytest.raises(MisconfigurationError, match=r"Some\(log_model='best'\) is unknown"):
        CheckpointArtifacts("Some", "best")
