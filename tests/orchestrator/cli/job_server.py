"""A job server of this process that answers as Ray's does, as far as `cluster.jobs` asks."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeJobServer:
    """What it was sent, and what it answers.

    Attributes:
        packages: Bytes by name.
        requests: Bodies of submitted jobs.
        logs: What the job has printed at each further look.
        statuses: The job's status at each further look; the last one stays.
        token: Wanted of every request, if any.
        starting: Requests for a job that are refused first, as by a cluster that is not ready.
        version: The answer to the question for it; None answers 404.
    """

    def __init__(self) -> None:
        self.packages: dict[str, bytes] = {}
        self.uploads = 0
        self.requests: list[dict[str, Any]] = []
        self.logs = ["one\n", "one\ntwo\n"]
        self.statuses = ["RUNNING", "SUCCEEDED"]
        self.stopped: list[str] = []
        self.token: str | None = None
        self.starting = 0
        self.version: str | None = "4"
        self.address = ""

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Return status and JSON."""
        match method, path.strip("/").split("/")[1:]:
            case "GET", ["version"]:
                return (
                    (404, None)
                    if self.version is None
                    else (200, {"ray_version": "2", "version": self.version})
                )
            case "GET", ["packages", "gcs", name]:
                return (200 if name in self.packages else 404), None
            case "PUT", ["packages", "gcs", name]:
                self.packages[name] = body
                self.uploads += 1
                return 200, None
            case "POST", ["jobs"] if self.starting:
                self.starting -= 1
                return 500, "No available agent to submit job, please try again later."
            case "POST", ["jobs"]:
                self.requests.append(json.loads(body))
                if self.requests[-1].get("submission_id") == "taken":
                    return 500, "Traceback\n  File x\nValueError: Job taken exists already.\n."
                return 200, {"submission_id": "job-1"}
            case "GET", ["jobs"]:
                return 200, [self.job(self.statuses[0]), {"job_id": "01", "submission_id": None}]
            case "POST", ["jobs", "job-1", "stop"]:
                self.stopped.append("job-1")
                return 200, {"stopped": True}
            case "GET", ["jobs", "job-1", "logs"]:
                return 200, {"logs": self.logs.pop(0) if len(self.logs) > 1 else self.logs[0]}
            case "GET", ["jobs", "job-1"]:
                return 200, self.job(self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0])
        return 404, "Job not found"

    def job(self, status: str) -> dict[str, Any]:
        """Return what is told of the job."""
        return {
            "submission_id": "job-1",
            "status": status,
            "entrypoint": "python train.py",
            "message": f"It is {status}.",
            "start_time": 1_000,
            "end_time": 61_000,
        }


@contextmanager
def serve() -> Iterator[FakeJobServer]:
    """Run one on a free port of this machine."""
    fake = FakeJobServer()

    class Handler(BaseHTTPRequestHandler):
        def handle_one(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if fake.token and self.headers.get("Authorization") != f"Bearer {fake.token}":
                status, answer = 401, "no"
            else:
                status, answer = fake.answer(self.command, self.path, body)
            data = (
                answer.encode()
                if isinstance(answer, str)
                else b""
                if answer is None
                else json.dumps(answer).encode()
            )
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_PUT = do_POST = handle_one

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        fake.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield fake
        finally:
            server.shutdown()
            thread.join()
