"""`orchestrator fit` and the others: training without a script, and how they end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from orchestrator.cli import main
from tests.orchestrator.cli.parts import QUIET

SPIRALS = ["--model=MLPClassifier", "--model.in_features=2", "--model.classes=3", "--data=Spirals"]


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


def test_it_trains_and_tests_without_code(capsys: pytest.CaptureFixture[str]) -> None:
    """A ready module learns ready data, and its configuration tests its checkpoint."""
    words = [word for word in QUIET if "logger" not in word and "checkpointing" not in word]
    assert (
        main(["fit", *SPIRALS, *words, "--trainer.max_epochs=10", "--model.lr=0.03", "--data.batch_size=128"])
        == 0
    )
    run = Path("lightning_logs/version_0")
    (checkpoint,) = (run / "checkpoints").glob("*.ckpt")
    capsys.readouterr()
    assert main(["test", f"--config={run / 'config.yaml'}", f"--ckpt_path={checkpoint}"]) == 0
    printed = capsys.readouterr().out.splitlines()
    (accuracy,) = [float(line.split()[1]) for line in printed if line.startswith("test_acc")]
    assert accuracy > 0.9


def test_the_users_own_file_is_found(tmp_path: Path) -> None:
    """A class in a file of the working directory is named by that file, in the installed command too."""
    (tmp_path / "own_net.py").write_text(
        "from tests.orchestrator.cli.parts import Net\n\n\nclass Own(Net):\n    pass\n"
    )
    root = Path(__file__).parents[3]
    program = (
        f"import sys; sys.path.append({str(root)!r}); from orchestrator.cli import main; sys.exit(main())"
    )
    command = [sys.executable, "-c", program, "fit", "--model=own_net.Own"]
    completed = subprocess.run(
        [*command, "--data=tests.orchestrator.cli.parts.Data", *QUIET, "--print_config"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (completed.returncode, completed.stderr) == (0, "")
    assert "class_path: own_net.Own" in completed.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--trainer.max_epochs=-7"], "Trainer(max_epochs=-7). Use a whole number of at least -1 or None."),
        (["--ckpt_path=no.ckpt"], "fit(ckpt_path='no.ckpt'): there is no file"),
        (["--data=Table", "--data.path=no.csv", "--data.target=y"], "Table(path='no.csv') is not a file."),
        (["--model.in_features=5"], "MLPClassifier(in_features=5) got 2 features a row. Set in_features=2."),
    ],
)
def test_what_cannot_work_is_one_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Values that only training can judge end it with status 2 and the message alone."""
    assert main(["fit", *SPIRALS, *QUIET, *words]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("Seed")]
    assert len(lines) == 1
    assert lines[0].startswith("orchestrator fit: ")
    assert said in lines[0]


def test_the_users_own_errors_keep_their_traceback(tmp_path: Path) -> None:
    """An exception out of the user's module is not made shorter."""
    (tmp_path / "own_broken.py").write_text(
        "from tests.orchestrator.cli.parts import Net\n\n\nclass Broken(Net):\n"
        "    def training_step(self, batch, batch_idx):\n        raise ValueError('mine')\n"
    )
    with pytest.raises(ValueError, match="mine"):
        main(["fit", "--model=own_broken.Broken", "--data=tests.orchestrator.cli.parts.Data", *QUIET])


def test_a_folder_of_our_packages_name_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A user's own `modules` folder would be hidden by ours, so it is refused before anything is imported."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "mine.py").touch()
    assert main(["fit", *SPIRALS]) == 2
    assert f"Rename {tmp_path / 'modules'}." in capsys.readouterr().err


@pytest.mark.extras
def test_a_real_lightning_module_trains(tmp_path: Path) -> None:
    """A module of an installed Lightning is named like any other."""
    pytest.importorskip("lightning")
    (tmp_path / "own_lightning.py").write_text(
        "from lightning.pytorch.demos.boring_classes import BoringModel\n\n\nclass Net(BoringModel):\n"
        "    def __init__(self, width: int = 3):\n        super().__init__()\n        self.width = width\n"
    )
    assert main(["fit", "--model=own_lightning.Net", "--model.width=4", *QUIET]) == 0
