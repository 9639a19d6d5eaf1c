"""The command line's entry: the commands it knows, and how it ends."""

from __future__ import annotations

import subprocess
import sys

import pytest

import orchestrator
from orchestrator.cli import main


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """`orchestrator --version` prints the version and exits with 0."""
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"orchestrator {orchestrator.__version__}\n"


def test_alone_it_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    """`orchestrator` without a command prints what there is, and that is no error."""
    assert main([]) == 0
    printed = capsys.readouterr().out
    commands = ("fit", "validate", "test", "predict", "sweep", "runs", "report", "replay", "trace", "audit")
    for command in (*commands, "submit", "jobs", "manifest", "doctor", "info"):
        assert f"    {command} " in printed


def test_a_wrong_command_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    """A slip of the pen is told which command was probably meant."""
    with pytest.raises(SystemExit):
        main(["submti"])
    assert "there is no command 'submti'. Did you mean 'submit'?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["manifest", "k8s"])
    assert "there is no kind 'k8s'. There are kuberay, slurm, ray-up." in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["no-such-command"], ["info", "--no-such-flag"]])
def test_wrong_arguments_exit_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown command or flag is a usage error that names the program."""
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    assert "usage: orchestrator" in capsys.readouterr().err


def test_the_parser_loads_neither_torch_nor_ray() -> None:
    """`--help` answers without heavy imports."""
    program = """
import sys
from orchestrator.cli import main
try:
    main(["--help"])
finally:
    assert not {"jsonargparse", "ray", "torch", "pyarrow"} & set(sys.modules), "heavy imports"
"""
    completed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (completed.returncode, completed.stderr) == (0, "")
    assert "info" in completed.stdout
