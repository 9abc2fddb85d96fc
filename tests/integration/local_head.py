"""A Ray head with token and job server on loopback, as `maetrain cluster up --local` starts it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

from cluster.head import free_ports
from tests.docs.blocks import ROOT
from tests.maetrain.tracking.stores import free_port


class Local:
    """A head in a home of its own, started with `up`. `maetrain` runs the command line beside it."""

    def __init__(self, home: Path) -> None:
        self.home, self.port = home, free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.token_path = home / ".maetrain" / "head" / "token"
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.env |= {"HOME": str(home), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        self.env |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        # of the head, for --cluster-env
        self.env |= {"A_SECRET": "hush-of-the-head"}

    @property
    def with_token(self) -> dict[str, str]:
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token_path)}

    def maetrain(self, *words: object, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """`env`: instead of the token's variables."""
        env = self.env | (self.with_token if env is None else env)
        command = [sys.executable, "-m", "cluster", *map(str, words)]
        return subprocess.run(command, env=env, cwd=self.home, capture_output=True, text=True, timeout=300)

    def up(self, cpus: int = 2) -> str:
        """Starts it, with as many cores as it is to say; returns what that says."""
        ports = ("--port", self.port, "--ray-port", *free_ports(1, besides=(self.port,)))
        up = self.maetrain("cluster", "up", "--local", *ports, "--cpus", cpus, env={})
        assert up.returncode == 0, up.stderr + (self.home / ".maetrain" / "head" / "head.log").read_text()[-2000:]
        return up.stdout

    def down(self) -> None:
        self.maetrain("cluster", "down", "--local")

    def submit(self, *words: object) -> subprocess.CompletedProcess[str]:
        return self.maetrain("submit", *words, "--address", self.address)

    def until(self, job: str, text: str, timeout_s: float = 240) -> str:
        """The log of a job once `text` is in it."""
        end = time.monotonic() + timeout_s
        while text not in (log := self.maetrain("jobs", "logs", job, "--no-wait", "--address", self.address).stdout):
            assert time.monotonic() < end, log
            time.sleep(1)
        return log

    def session(self) -> set[int]:
        """Processes of the head's session."""
        leader = json.loads((self.home / ".maetrain" / "head" / "head.json").read_text())["session"]
        return {pid for pid in psutil.pids() if session_of(pid) == leader}


def session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None
