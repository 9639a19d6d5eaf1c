"""Runs a command on a Ray cluster from outside: sends the code, starts a job, follows its log, stops it.

It speaks the HTTP of Ray's job server (``ray job submit`` speaks the same), so nothing of Ray is imported and
a laptop needs no route to the cluster but that one address. Code goes once: a package that the cluster has is
not sent again. A job outlives this process. Everything that fails is a `JobError` that names the address and
says what to do; an address where no job server answers is found out before code is packed.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.errors import JobError

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
MAX_UPLOAD_BYTES = 100 * 2**20
"""What Ray's job server takes as one upload."""
ENDED = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})
_TIMEOUT_S = 30.0
_UPLOAD_TIMEOUT_S = 600.0
_READY_S, _RETRY_S = 60.0, 1.0
_NOT_READY = "No available agent"  # as Ray says it while the agents of a cluster's nodes come up
_PORT = 8265


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a job server says of a job.

    Attributes:
        id: Its name.
        status: ``PENDING``, ``RUNNING``, ``SUCCEEDED``, ``FAILED`` or ``STOPPED``.
        entrypoint: The command.
        message: Why it stands as it does, in Ray's words.
        start_time: Seconds since 1970, or None.
        end_time: Likewise.
    """

    id: str
    status: str
    entrypoint: str
    message: str
    start_time: float | None = None
    end_time: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """A job to be started.

    Attributes:
        entrypoint: The command, as a shell understands it.
        package: The name of uploaded code, which becomes the command's working directory; or None.
        env_vars: Environment variables of the command and of all workers.
        pip: Requirements that the cluster installs for this job first.
        id: The job's name; the server finds one when None.
        cpus: CPUs that the command itself reserves; 0 where it only drives.
        gpus: GPUs that it reserves.
    """

    entrypoint: str
    package: str | None = None
    env_vars: Mapping[str, str] = field(default_factory=dict)
    pip: tuple[str, ...] = ()
    id: str | None = None
    cpus: float = 0
    gpus: float = 0

    def as_json(self) -> dict[str, Any]:
        """Return the body that Ray's job server takes."""
        environment: dict[str, Any] = {}
        if self.package is not None:
            environment["working_dir"] = f"gcs://{self.package}"
        if self.env_vars:
            environment["env_vars"] = dict(self.env_vars)
        if self.pip:
            environment["pip"] = list(self.pip)
        body: dict[str, Any] = {"entrypoint": self.entrypoint, "runtime_env": environment}
        optional = {
            "submission_id": self.id,
            "entrypoint_num_cpus": self.cpus or None,
            "entrypoint_num_gpus": self.gpus or None,
        }
        return body | {name: value for name, value in optional.items() if value is not None}


def find_address(given: str | None, environment: Mapping[str, str]) -> str:
    """Return the job server's address: what was given, else what the environment says, else this machine's.

    ``RAY_API_SERVER_ADDRESS`` names a job server. ``RAY_ADDRESS`` does too where it begins with ``http``;
    where it names a cluster, ``host:6379``, the job server is looked for on that host.

    >>> find_address(None, {"RAY_ADDRESS": "10.0.0.5:6379"})
    'http://10.0.0.5:8265'

    Raises:
        JobError: The address is not one of HTTP.
    """
    address = given or environment.get("RAY_API_SERVER_ADDRESS") or environment.get("RAY_ADDRESS") or ""
    if address in ("", "auto", "local"):
        return DEFAULT_ADDRESS
    if not address.startswith(("http://", "https://")):
        scheme, _, rest = address.rpartition("://")
        if scheme not in ("", "ray"):
            raise JobError(f"--address={address} is not an address of a job server. Use http://HOST:{_PORT}.")
        host, _, port = rest.rpartition(":")
        if given is not None and not scheme and host and port != "6379":
            return f"http://{rest}"
        return f"http://{host or rest}:{_PORT}"
    return address.rstrip("/")


class JobServer:
    """A cluster's job server.

    Args:
        address: ``http://HOST:8265``.
        token: Of a cluster with token authentication; else None.

    Raises:
        JobError: No job server answers there.
    """

    def __init__(self, address: str, token: str | None = None) -> None:
        self.address = address
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        answer = self._ask("GET", "/api/version")
        if not isinstance(answer, dict) or "ray_version" not in answer:
            raise JobError(
                f"{address} answers, but is not a job server of Ray. Correct --address: it is the address of "
                f"the cluster's dashboard, usually port {_PORT}."
            )
        self.ray_version = str(answer["ray_version"])

    def has_package(self, name: str) -> bool:
        """Whether the cluster has a package, which it then keeps for a while."""
        return self._ask("GET", f"/api/packages/gcs/{name}", missing_is_none=True) is not None

    def upload(self, name: str, data: bytes) -> None:
        """Send a package."""
        self._ask("PUT", f"/api/packages/gcs/{name}", data=data, timeout_s=_UPLOAD_TIMEOUT_S)

    def submit(self, request: JobRequest) -> str:
        """Start a job and return its name. A cluster that has just started gets a minute."""
        body = json.dumps(request.as_json()).encode()
        until = time.monotonic() + _READY_S
        while True:
            try:
                return str(self._ask("POST", "/api/jobs/", data=body)["submission_id"])
            except JobError as error:
                if _NOT_READY not in str(error) or time.monotonic() >= until:
                    raise
            time.sleep(_RETRY_S)

    def job(self, name: str) -> Job:
        """Return how a job stands."""
        return _job(self._ask("GET", f"/api/jobs/{_quoted(name)}", subject=name))

    def jobs(self) -> list[Job]:
        """Return all submitted jobs that the cluster knows, the newest first."""
        found = [_job(item) for item in self._ask("GET", "/api/jobs/") if item.get("submission_id")]
        return sorted(found, key=lambda job: -(job.start_time or 0))

    def logs(self, name: str) -> str:
        """Return all that a job has printed."""
        return str(self._ask("GET", f"/api/jobs/{_quoted(name)}/logs", subject=name)["logs"] or "")

    def stop(self, name: str) -> bool:
        """Ask a job to stop; False when it had ended."""
        return bool(self._ask("POST", f"/api/jobs/{_quoted(name)}/stop", data=b"", subject=name)["stopped"])

    def follow(self, name: str, interval_s: float = 0.5) -> Iterator[str]:
        """Yield what a job prints, as it prints it, until it has ended.

        Args:
            name: The job.
            interval_s: Between two looks; longer once the log is long, because the server sends all of it.
        """
        seen = 0
        while True:
            ended = self.job(name).status in ENDED
            text = self.logs(name)
            if len(text) > seen:
                yield text[seen:]
                seen = len(text)
            if ended:
                return
            time.sleep(interval_s * (1 + len(text) / 2**20))

    def _ask(
        self,
        method: str,
        path: str,
        *,
        data: bytes | None = None,
        timeout_s: float = _TIMEOUT_S,
        subject: str | None = None,
        missing_is_none: bool = False,
    ) -> Any:
        """Return the answer's JSON; an empty dictionary when it has none."""
        request = urllib.request.Request(
            self.address + path, data=data, method=method, headers=dict(self._headers)
        )
        if data is not None:
            request.add_header(
                "Content-Type", "application/json" if method == "POST" else "application/octet-stream"
            )
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as response:
                body = response.read()
        except urllib.error.HTTPError as error:
            if error.code == 404 and missing_is_none:
                error.close()
                return None
            raise self._refused(error, path, subject) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise JobError(
                f"No job server answers at {self.address}: {reason}. Correct --address, or forward the port "
                f"(kubectl port-forward svc/NAME-head-svc {_PORT}). On the cluster's head node, the "
                f"server needs "
                "pip install 'ray[default]' before `ray start --head`."
            ) from None
        try:
            return json.loads(body) if body.strip() else {}
        except json.JSONDecodeError:
            return {}

    def _refused(self, error: urllib.error.HTTPError, path: str, subject: str | None) -> JobError:
        with error:
            text = error.read().decode(errors="replace").strip()
        said = [line for line in text.splitlines() if re.match(r"[\w.]+: ", line)]  # by a Python exception
        last = (said or text.splitlines() or [str(error.reason)])[-1][:500]
        if error.code in (401, 403):
            return JobError(
                f"The job server at {self.address} refused the token ({error.code}). Set "
                f"RAY_AUTH_TOKEN to the "
                "cluster's."
            )
        if error.code == 404 and subject is not None:
            return JobError(
                f"The cluster at {self.address} knows no job {subject!r}. `orchestrator jobs list`."
            )
        if error.code == 404 and path == "/api/version":
            return JobError(
                f"{self.address} answers, but has no job server. Correct --address, or install "
                "'ray[default]' on the head node and restart it."
            )
        return JobError(f"The job server at {self.address} refused ({error.code}): {last}")


def find_token(environment: Mapping[str, str]) -> str | None:
    """Return the token for clusters with token authentication, from where Ray looks for it too."""
    if environment.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return None
    if token := environment.get("RAY_AUTH_TOKEN"):
        return token.strip()
    path = environment.get("RAY_AUTH_TOKEN_PATH") or os.path.expanduser("~/.ray/auth_token")
    try:
        return Path(path).read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def _job(answer: Mapping[str, Any]) -> Job:
    def seconds(name: str) -> float | None:
        value = answer.get(name)
        return None if value is None else value / 1000

    return Job(
        id=str(answer.get("submission_id") or answer.get("job_id")),
        status=str(answer.get("status")),
        entrypoint=str(answer.get("entrypoint") or ""),
        message=str(answer.get("message") or ""),
        start_time=seconds("start_time"),
        end_time=seconds("end_time"),
    )


def _quoted(name: str) -> str:
    return urllib.parse.quote(name, safe="")
