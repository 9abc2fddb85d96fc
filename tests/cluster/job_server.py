"""A job server that answers what a test wants, over HTTP: the paths, states and texts are those of Ray 2.60."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import ray


class JobServer:
    """`jobs`: what it lists. `submitted`: bodies that were posted. `uploads`: bytes of each package, in order.

    `refusals`: how often a job is put off, as by a head that has just come up.
    """

    def __init__(self, token: str | None = None, ray_version: str = ray.__version__) -> None:
        self.token, self.ray_version = token, ray_version
        self.jobs: list[dict[str, Any]] = []
        self.submitted: list[dict[str, Any]] = []
        self.uploads: list[bytes] = []
        self.refusals = 0
        self.address = ""

    def answer(self, method: str, path: str, token: str | None, body: bytes) -> tuple[int, Any]:
        if self.token is not None and token is None:
            return 401, "Unauthorized: Missing authentication token"
        if self.token is not None and token != f"Bearer {self.token}":
            return 403, "Forbidden: Invalid authentication token"
        if path == "/api/version":
            return 200, {"version": "4", "ray_version": self.ray_version, "ray_commit": "", "session_name": ""}
        if path.startswith("/api/packages/"):
            if method == "GET":
                return 404, "no such package"
            self.uploads.append(body)
            return 200, {}
        if (method, path) == ("GET", "/api/jobs/"):
            return 200, self.jobs
        if (method, path) == ("POST", "/api/jobs/"):
            if self.refusals:
                self.refusals -= 1
                return 500, "No available agent to submit job, please try again later."
            self.submitted.append(json.loads(body))
            submission_id = self.submitted[-1]["submission_id"]
            return 200, {"job_id": submission_id, "submission_id": submission_id}
        return 404, "no such page"


def job(submission_id: str, status: str, entrypoint: str, **more: Any) -> dict[str, Any]:
    return {"type": "SUBMISSION", "submission_id": submission_id, "status": status, "entrypoint": entrypoint, **more}


@contextmanager
def serving(server: Any) -> Iterator[Any]:
    """`server.answer` behind a port of loopback; its address is in `server.address`."""

    class Handler(BaseHTTPRequestHandler):
        def _do(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, answer = server.answer(self.command, self.path, self.headers.get("Authorization"), body)
            text = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PUT = _do

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        server.address = f"http://127.0.0.1:{http.server_address[1]}"
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield server
        http.shutdown()
        thread.join()
