"""`orchestrator submit` and `orchestrator jobs`, against a server that answers as Ray's, and against Ray."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster import jobs
from cluster.errors import JobError
from orchestrator.cli import main
from tests.orchestrator.cli.job_server import FakeJobServer, serve


@pytest.fixture
def server() -> Iterator[FakeJobServer]:
    """A job server."""
    with serve() as fake:
        yield fake


@pytest.fixture(autouse=True)
def _in_a_folder_with_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "no-token"))
    (tmp_path / "train.py").write_text("print('trained')\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows.bin").write_bytes(b"x" * 1000)


def submit(server: FakeJobServer, *words: str) -> int:
    return main(["submit", f"--address={server.address}", *words])


def test_code_goes_and_the_log_comes(server: FakeJobServer, capsys: pytest.CaptureFixture[str]) -> None:
    """The code is uploaded, the command quoted, the log printed once, and the job's end is the command's."""
    words = ["--env=A=b=c", "--pip=x==1", "--gpus=2", "--name=mine", "--", "python", "train.py", "a b"]
    assert submit(server, *words) == 0
    (name,) = server.packages
    with zipfile.ZipFile(io.BytesIO(server.packages[name])) as archive:
        assert archive.namelist() == ["train.py"]
    assert server.requests == [
        {
            "entrypoint": "python train.py 'a b'",
            "runtime_env": {"working_dir": f"gcs://{name}", "env_vars": {"A": "b=c"}, "pip": ["x==1"]},
            "submission_id": "mine",
            "entrypoint_num_gpus": 2.0,
        }
    ]
    printed = capsys.readouterr().out
    assert printed.endswith("one\ntwo\n")
    assert "1 files, 0.0 KiB" in printed
    assert "train.py" in printed


def test_code_that_is_there_is_not_sent_again(server: FakeJobServer) -> None:
    """The second time, the package is found by its name."""
    submit(server, "--", "true")
    submit(server, "--", "true")
    assert (server.uploads, len(server.requests)) == (1, 2)


def test_a_cluster_that_has_just_started_gets_time(
    server: FakeJobServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The job is offered again until an agent takes it; not for ever."""
    monkeypatch.setattr(jobs, "_RETRY_S", 0.0)
    server.starting = 2
    submit(server, "--", "true")
    assert len(server.requests) == 1 and server.starting == 0
    monkeypatch.setattr(jobs, "_READY_S", 0.0)
    server.starting = 9
    assert main(["submit", f"--address={server.address}", "--", "true"]) == 2
    assert "please try again later" in capsys.readouterr().err and server.starting == 8


@pytest.mark.parametrize("status", ["FAILED", "STOPPED"])
def test_a_job_that_fails_is_told(
    status: str, server: FakeJobServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """A job that does not succeed gives status 1 and Ray's reason."""
    server.statuses = [status]
    assert submit(server, "--", "false") == 1
    assert f"Job job-1: {status}. It is {status}." in capsys.readouterr().err


def test_nothing_is_followed_or_sent_where_not_wanted(
    server: FakeJobServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """--no-wait ends after submitting; --dry-run only lists, without a server."""
    assert submit(server, "--no-wait", "--", "true") == 0
    assert "one" not in capsys.readouterr().out.splitlines()
    assert main(["submit", "--address=http://127.0.0.1:1", "--dry-run", "--", "true"]) == 0
    assert "train.py" in capsys.readouterr().out


def test_what_is_too_large_is_refused_with_the_list(
    server: FakeJobServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Nothing is uploaded, and the largest files are named."""
    monkeypatch.setattr(jobs, "MAX_UPLOAD_BYTES", 2**20)
    (tmp_path / "weights.bin").write_bytes(os.urandom(2 * 2**20))
    assert submit(server, "--", "true") == 2
    said = capsys.readouterr().err
    assert "The code is 2 MiB as an archive, and a job server takes 1" in said
    assert "weights.bin (2 MiB), train.py (0 MiB)" in said
    assert server.packages == {}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "There is no command to run"),
        (["--env=A", "--", "true"], "--env=A gives no value"),
        (["--working-dir=nowhere", "--", "true"], "is not a folder"),
        (["--name=taken", "--", "true"], "refused (500): ValueError: Job taken exists already."),
    ],
)
def test_what_cannot_be_submitted_is_refused(
    words: list[str], said: str, server: FakeJobServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line and status 2."""
    assert submit(server, *words) == 2
    assert said in capsys.readouterr().err


def test_jobs_are_listed_told_followed_and_stopped(
    server: FakeJobServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """The four actions of `orchestrator jobs`; jobs that were not submitted are not listed."""
    address = f"--address={server.address}"
    assert main(["jobs", "list", address]) == 0
    assert capsys.readouterr().out == "RUNNING       1.0 min  job-1  python train.py\n"
    assert main(["jobs", "status", "job-1", address]) == 0
    assert capsys.readouterr().out == "RUNNING  python train.py\nIt is RUNNING.\n"
    assert main(["jobs", "logs", "job-1", address]) == 0
    assert capsys.readouterr().out.startswith("one\n")
    assert main(["jobs", "stop", "job-1", address]) == 0
    assert server.stopped == ["job-1"]
    assert main(["jobs", "status", "other", address]) == 2
    assert "knows no job 'other'" in capsys.readouterr().err


def test_a_server_that_is_absent_is_explained(
    server: FakeJobServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where nothing answers, or something else does, it is said what to install and what to correct."""
    assert main(["submit", "--address=http://127.0.0.1:1", "--", "true"]) == 2
    said = capsys.readouterr().err
    assert "No job server answers at http://127.0.0.1:1" in said
    assert "pip install 'ray[default]'" in said
    server.version = None
    assert submit(server, "--", "true") == 2
    assert "has no job server. Correct --address, or install 'ray[default]'" in capsys.readouterr().err


def test_a_token_is_sent(
    server: FakeJobServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cluster with token authentication gets the token of the environment; without it, that is said."""
    server.token = "secret"
    assert submit(server, "--", "true") == 2
    assert "refused the token (401). Set RAY_AUTH_TOKEN" in capsys.readouterr().err
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    assert submit(server, "--no-wait", "--", "true") == 0


def test_ctrl_c_leaves_the_job(
    server: FakeJobServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Interrupting the log says how to go on, and does not stop the job."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    server.statuses = ["RUNNING"]
    own = SimpleNamespace(sleep=interrupt, monotonic=time.monotonic)  # for others time goes on
    monkeypatch.setattr(jobs, "time", own)
    assert submit(server, "--", "true") == 130
    assert "Job job-1 goes on." in capsys.readouterr().err
    assert server.stopped == []


@pytest.mark.parametrize(
    ("given", "environment", "address"),
    [
        (None, {}, "http://127.0.0.1:8265"),
        (None, {"RAY_ADDRESS": "auto"}, "http://127.0.0.1:8265"),
        (None, {"RAY_ADDRESS": "head:6379"}, "http://head:8265"),
        (None, {"RAY_ADDRESS": "ray://head:10001"}, "http://head:8265"),
        (None, {"RAY_ADDRESS": "http://head:9/"}, "http://head:9"),
        (None, {"RAY_API_SERVER_ADDRESS": "http://a:1", "RAY_ADDRESS": "b:2"}, "http://a:1"),
        ("head:8265", {}, "http://head:8265"),
        ("head:6379", {}, "http://head:8265"),
        ("head", {}, "http://head:8265"),
        ("https://head", {"RAY_ADDRESS": "b:2"}, "https://head"),
    ],
)
def test_addresses_are_found(given: str | None, environment: dict[str, str], address: str) -> None:
    """What is given wins over the environment, and a cluster's address leads to its job server."""
    assert jobs.find_address(given, environment) == address


def test_other_addresses_are_refused() -> None:
    """An address of another protocol is no job server's."""
    with pytest.raises(JobError, match="Use http://HOST:8265"):
        jobs.find_address("ftp://head", {})


@pytest.mark.ray
def test_on_a_real_cluster(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A cluster with its job server runs the code on two workers; another job is stopped."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        port, web, agent = (each.getsockname()[1] for each in sockets)
    scratch = Path("/tmp") / f"ray-job-test-{os.getpid()}"
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    environment.pop("RAY_ADDRESS")
    program = "from ray.scripts.scripts import main; main()"
    command = [sys.executable, "-c", program, "start", "--head", "--block", "--num-cpus=3", f"--port={port}"]
    command += [f"--dashboard-port={web}", "--dashboard-host=127.0.0.1", f"--temp-dir={scratch}"]
    command += [f"--dashboard-agent-listen-port={agent}"]  # the usual one may be another Ray's
    address = f"--address=http://127.0.0.1:{web}"
    (tmp_path / "train.py").write_text(
        "from tests.orchestrator.cli.parts import Data, Net\nimport orchestrator as pl\n"
        "trainer = pl.Trainer(accelerator='cpu', devices=2, max_epochs=1, logger=False, "
        "enable_checkpointing=False)\ntrainer.fit(Net(), datamodule=Data())\n"
        "print('steps', trainer.global_step)\n"
    )
    head = subprocess.Popen(
        command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 150
        while time.monotonic() < deadline:
            try:
                jobs.JobServer(f"http://127.0.0.1:{web}").jobs()
                break
            except JobError:
                time.sleep(1)
        paths = os.pathsep.join([str(Path(__file__).parents[3]), *filter(None, sys.path)])
        assert main(["submit", address, f"--env=PYTHONPATH={paths}", "--", "python", "train.py"]) == 0
        assert "steps 2" in capfd.readouterr().out
        assert main(["submit", address, "--no-wait", "--name=long", "--", "sleep", "100"]) == 0
        assert main(["jobs", "stop", "long", address]) == 0
        assert main(["jobs", "logs", "long", address]) == 1
        assert "Job long: STOPPED." in capfd.readouterr().err
    finally:
        head.send_signal(signal.SIGTERM)
        head.wait(60)
        subprocess.run(["rm", "-rf", str(scratch)], check=True)
