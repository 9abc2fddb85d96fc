"""A Ray head of one's own on this machine: with a token, its job server on loopback, beside other Ray that runs here.

`ray stop` ends every Ray process of its user. So this head runs in a session of its own, whose number is kept, and only
that session is ended. What it keeps is in ~/.maetrain/head: token (mode 600), number and addresses, log.
"""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from data_shards.errors import InputError

STOP_WAIT_S = 60  # what `ray job stop` of plain Ray jobs waits for a checkpoint; Ray's own is 3
_START_S = 120.0
_STOP_S = 30.0


class Head(NamedTuple):
    """`session`: number of its first process, which began at `started_s` of the clock."""

    session: int
    started_s: float
    jobs_port: int
    gcs_port: int

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.jobs_port}"


def folder() -> Path:
    return Path.home() / ".maetrain" / "head"


def token_path() -> Path:
    """The token's file, made where there is none: the one RAY_AUTH_TOKEN_PATH names, else our own."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or folder() / "token")
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
    return path


def running() -> Head | None:
    """The head that was started here, if it still runs."""
    try:
        head = Head(**json.loads((folder() / "head.json").read_text()))
        process = psutil.Process(head.session)
        same = abs(process.create_time() - head.started_s) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except (OSError, ValueError, TypeError, psutil.NoSuchProcess):
        return None
    return head if same else None


def start(jobs_port: int, gcs_port: int, cpus: int | None) -> Head:
    """InputError where one runs already, a port is taken, or Ray does not come up."""
    if head := running():
        raise InputError(f"a head runs already at {head.address}: `maetrain cluster down --local` ends it")
    for port in (jobs_port, gcs_port):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                raise InputError(f"port {port} is taken; give another with --port and --ray-port") from None
    env = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_path()),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S),
        # jobs call `maetrain`: the one beside this Python
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
    command += ["--node-ip-address=127.0.0.1", f"--port={gcs_port}"]
    command += [f"--ray-client-server-port={_free_port()}"]  # always 10001 otherwise, which another head may have
    agent_port = _free_port()  # always 52365 otherwise
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={jobs_port}"]
    command += [f"--dashboard-agent-listen-port={agent_port}"]
    command += [] if cpus is None else [f"--num-cpus={cpus}"]
    folder().mkdir(parents=True, exist_ok=True)
    log = folder() / "head.log"
    with log.open("w") as file:
        process = subprocess.Popen(  # nosec B603 # our own words
            command, env=env, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )
    head = Head(process.pid, psutil.Process(process.pid).create_time(), jobs_port, gcs_port)
    (folder() / "head.json").write_text(json.dumps(head._asdict()))
    end = time.monotonic() + _START_S
    while not (_listens(jobs_port) and _listens(agent_port)):  # the agent is who starts jobs
        if process.poll() is not None or time.monotonic() > end:
            stop(head)
            raise InputError(f"Ray does not come up; the end of {log} says why")
        time.sleep(0.2)
    return head


def stop(head: Head) -> None:
    """SIGTERM to its first process, which ends the others; what is left of the session after it is killed."""
    with suppress(ProcessLookupError):
        os.kill(head.session, signal.SIGTERM)
    end = time.monotonic() + _STOP_S
    while head.session in _session(head.session) and time.monotonic() < end:
        time.sleep(0.2)
    for pid in _session(head.session):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    (folder() / "head.json").unlink(missing_ok=True)


def _session(number: int) -> list[int]:
    """Its living processes."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError, PermissionError):
            if os.getsid(process.pid) == number and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
