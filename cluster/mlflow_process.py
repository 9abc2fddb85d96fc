"""An MLflow server of one's own on this machine: started and waited for, attended, ended with all its workers."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

import psutil

from cluster.detached import Detached, start_session
from cluster.mlflow_plan import ServerPlan
from data_shards.errors import InputError

START_S = 180.0  # until it answers; the first start makes some fifty tables
END_S = 15.0  # for requests that are under way
LOG, RECORD = "server.log", "server.json"


@dataclass(frozen=True)
class Running(Detached):
    uri: str

    @property
    def answers(self) -> bool:
        # the server is on this machine: no proxy that the environment names may answer in its place
        direct = build_opener(ProxyHandler({}))
        with suppress(OSError, HTTPException), direct.open(f"{self.uri}/health", timeout=5) as answer:
            return bool(answer.status == 200)
        return False


def find(folder: Path) -> Running | None:
    """The server of this folder, where one runs on this machine."""
    return Running.recorded(folder / RECORD)


def start(plan: ServerPlan, password: str | None) -> Running:
    """Returns when it answers. InputError, and no process left, where it ends before or takes too long."""
    if plan.admin is not None:
        plan.write_accounts_file()
    log = plan.folder / LOG
    with log.open("ab") as file:
        begun = file.tell()
        env = {**os.environ, **plan.environment(password)}
        # umask: in a folder that was there before, too, only the server reads accounts and files
        session = start_session(plan.command(), env, file, cwd=plan.folder, umask=0o077)
    try:
        running = Running(**asdict(session), uri=plan.uri)
        running.write(plan.folder / RECORD)
        deadline = time.monotonic() + START_S
        while not running.answers:
            if not running.is_alive:
                raise InputError(f"MLflow ended while it started: {_last_line(log, begun)}; {log} tells more")
            if time.monotonic() > deadline:
                raise InputError(f"MLflow does not answer {START_S:g} s after its start; {log} tells why")
            time.sleep(0.2)
    except BaseException:
        session.end(END_S)
        (plan.folder / RECORD).unlink(missing_ok=True)
        raise
    return running


def attend(running: Running, folder: Path) -> None:
    """Waits until the server ends, or a signal comes, which ends it. InputError where nobody asked it to end."""
    try:
        with suppress(psutil.NoSuchProcess):
            psutil.Process(running.session).wait()
        was_asked = not (folder / RECORD).exists()  # by `maetrain mlflow down`
    except KeyboardInterrupt:
        was_asked = True
    end(running, folder)
    if not was_asked:
        raise InputError(f"MLflow ended: {_last_line(folder / LOG, 0)}; {folder / LOG} tells more")


def end(running: Running, folder: Path) -> None:
    (folder / RECORD).unlink(missing_ok=True)
    running.end(END_S)


@contextmanager
def signals_as_interrupt() -> Iterator[None]:
    """SIGTERM, and the end of the terminal, like Ctrl-C."""
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _last_line(log: Path, begun: int) -> str:
    """The last one that says something, of what was written from byte `begun` on."""
    lines = [line.strip() for line in log.read_bytes()[begun:].decode(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "it wrote nothing")[:300]
