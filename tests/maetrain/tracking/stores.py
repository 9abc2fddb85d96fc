"""Real stores for the tests: an MLflow server, and a PostgreSQL from the Debian package, each a process of our own."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest

POSTGRES_BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
START_S = 240


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Server:
    """`python -m mlflow server` on sqlite in `folder`, that can be killed and started again at the same address."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        arguments = f"--host 127.0.0.1 --port {self.port} --workers 1 --backend-store-uri sqlite:///{self.folder}/s.db"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *arguments.split()]
            + ["--artifacts-destination", str(self.folder / "artifacts")],
            cwd=self.folder,
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},  # seven processes for language models
            stdout=subprocess.DEVNULL,
            stderr=(self.folder / "server.log").open("ab"),
            start_new_session=True,  # so that its children can be killed by the number of their group
        )
        wait_for(self._answers, "the MLflow server", self._process)

    def kill(self) -> None:
        if self._process:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            with urlopen(f"{self.uri}/health", timeout=2) as answer:
                return answer.status == 200
        except OSError:
            return False


@contextmanager
def postgres() -> Iterator[str]:
    """The URI of an empty database with PostgreSQL's own settings, 100 connections among them."""
    if not POSTGRES_BINARIES:
        pytest.skip("needs PostgreSQL under /usr/lib/postgresql (Debian: apt-get install postgresql)")
    binaries = POSTGRES_BINARIES[-1].parent
    folder = Path(tempfile.mkdtemp(prefix="pg-"))  # a short path: that of a socket has 107 characters at most
    user = pwd.getpwuid(os.getuid()).pw_name
    if os.getuid() == 0:  # which PostgreSQL refuses
        user = "postgres"
        shutil.chown(folder, user)
    env = {k: v for k, v in os.environ.items() if not k.startswith("PG")}
    make = [binaries / "initdb", "-D", folder / "data", "-U", "maetrain", "-A", "trust", "--no-sync"]
    as_user = {"user": user if os.getuid() == 0 else None, "cwd": folder, "env": env}
    subprocess.run(make, check=True, capture_output=True, **as_user)
    run = [binaries / "postgres", "-D", folder / "data", "-k", folder, "-c", "listen_addresses="]
    process = subprocess.Popen(run, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **as_user)
    ready = [binaries / "pg_isready", "-q", "-h", folder]
    try:
        wait_for(lambda: subprocess.run(ready, env=env).returncode == 0, "PostgreSQL", process)
        yield f"postgresql://maetrain@/postgres?host={folder}"
    finally:
        process.send_signal(signal.SIGINT)  # its fast shutdown
        process.wait(60)
        shutil.rmtree(folder)


def wait_for(
    is_so: Callable[[], bool], what: str, process: "subprocess.Popen[bytes] | None" = None, limit_s: float = START_S
) -> None:
    """Fails loudly where it takes for ever, or `process` ends."""
    deadline = time.monotonic() + limit_s
    while not is_so():
        assert process is None or process.poll() is None, f"{what} ended"
        assert time.monotonic() < deadline, f"{what}: still not after {limit_s} s"
        time.sleep(0.1)
