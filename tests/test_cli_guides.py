"""The code in docs/cli.md and docs/launching.md is what people paste, so it must do what is said there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from orchestrator.cli import main

DOCS = Path(__file__).resolve().parents[1] / "docs"


def blocks(guide: str, language: str) -> list[str]:
    """The code of a guide in one language, in order."""
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / guide).read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small matrices on many threads wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


def test_the_script_and_the_commands_train(tmp_path: Path) -> None:
    """The script runs as it says, the first command trains without code, and the file is read."""
    (script,) = blocks("cli.md", "python")
    (tmp_path / "train.py").write_text(script)
    ran = subprocess.run(
        [sys.executable, "train.py", "fit", "--data.batch_size=32", "--trainer.max_epochs=2"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert "steps: 4" in ran.stdout
    quiet = ["--trainer.enable_progress_bar=false"]
    assert main([*shlex.split(blocks("cli.md", "bash")[0])[1:], *quiet]) == 0
    (tmp_path / "run.yaml").write_text(blocks("cli.md", "yaml")[0])
    assert main(["fit", "--config=run.yaml", "--model.lr=1e-2"]) == 0


def test_the_long_command_is_understood(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every option of the example of one's own classes exists."""
    (tmp_path / "train.py").write_text(blocks("cli.md", "python")[0])
    words = shlex.split(blocks("cli.md", "bash")[1].replace("\\\n", " "))[1:]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--print_config"])
    assert ended.value.code == 0
    assert "class_path: torch.optim.lr_scheduler.CosineAnnealingLR" in capsys.readouterr().out


def test_the_manifests_are_written() -> None:
    """Each command of the guide writes its file, once what is yours has been filled in."""
    commands = blocks("launching.md", "bash")[1].strip().splitlines()
    for command in commands:
        assert main(shlex.split(command)[1:]) == 0
        kind, file = re.search(r"manifest (\S+).*--output=(\S+)", command).groups()  # type: ignore[union-attr]
        assert main(["manifest", kind, "--check", file]) == 0


def test_what_is_submitted_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command of the guide is one that `submit` takes."""
    (tmp_path / "train.py").touch()
    words = shlex.split(blocks("launching.md", "bash")[0])[1:]
    assert main([words[0], "--dry-run", *words[1:]]) == 0
    assert "train.py" in capsys.readouterr().out
