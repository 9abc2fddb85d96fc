"""A Ray head of one's own on this machine: with a token, its job server on loopback, beside other Ray that runs here.

`ray stop` ends every Ray process of its user; here only the head's own are ended. What it keeps is in ~/.maetrain/head:
token (mode 600), number and addresses, log.
"""

import os
import secrets
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster.detached import Detached, start_session
from data_shards.errors import InputError

STOP_WAIT_S = 60  # what `ray job stop` of plain Ray jobs waits for a checkpoint; Ray's own is 3
_START_S = 120.0
_STOP_S = 30.0


@dataclass(frozen=True)
class Head(Detached):
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
    return Head.recorded(_record())


def start(jobs_port: int, gcs_port: int, cpus: int | None) -> Head:
    """InputError where one runs already, a port is taken, or Ray does not come up."""
    if head := running():
        raise InputError(f"a head runs already at {head.address}: `maetrain cluster down --local` ends it")
    if jobs_port == gcs_port:
        raise InputError(f"--port {jobs_port} and --ray-port {gcs_port}: two servers cannot share a port")
    client_port, agent_port = free_ports(2, besides=(jobs_port, gcs_port))  # always 10001 and 52365 otherwise
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
    command += [f"--ray-client-server-port={client_port}"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={jobs_port}"]
    command += [f"--dashboard-agent-listen-port={agent_port}"]
    command += [] if cpus is None else [f"--num-cpus={cpus}"]
    folder().mkdir(parents=True, exist_ok=True)
    log = folder() / "head.log"
    with log.open("wb") as file:
        head = Head(**asdict(start_session(command, env, file)), jobs_port=jobs_port, gcs_port=gcs_port)
    try:
        head.write(_record())
        end = time.monotonic() + _START_S
        while not (_listens(jobs_port) and _listens(agent_port)):  # the agent is who starts jobs
            if not head.is_alive or time.monotonic() > end:
                raise InputError(f"Ray does not come up; the end of {log} says why")
            time.sleep(0.2)
    except BaseException:  # Ctrl-C, too
        stop(head)
        raise
    return head


def stop(head: Head) -> None:
    head.end(_STOP_S, through_first=True)
    _record().unlink(missing_ok=True)


def _record() -> Path:
    return folder() / "head.json"


def free_ports(count: int, besides: Sequence[int] = ()) -> list[int]:
    """As many different ones, none of them in `besides`. InputError where one of those is taken.

    All are held until the last is drawn: the system gives a port that nobody holds to the next who asks.
    """
    with ExitStack() as held:
        for port in besides:
            probe = held.enter_context(socket.socket())
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                raise InputError(f"port {port} is taken; give another with --port and --ray-port") from None
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
