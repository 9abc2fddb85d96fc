"""An MLflow server's processes: started, found again from another terminal, ended all together.

`mlflow server` starts uvicorn, which starts workers. They are a process group of their own, so Ctrl-C reaches them
through us alone, and one signal ends them all, also those whose parent is gone.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

import psutil

from cluster.mlflow_plan import ServerPlan
from data_shards.errors import InputError
from data_shards.formats.files import write_text

START_S = 180.0  # until it answers; the first start makes some fifty tables
END_S = 15.0  # for requests that are under way
LOG, RECORD = "server.log", "server.json"


@dataclass(frozen=True)
class Running:
    """`group`: the id of its first process and of the group; `started`: when, since an id is used again."""

    group: int
    started: float
    uri: str

    @property
    def answers(self) -> bool:
        # the server is on this machine: no proxy that the environment names may answer in its place
        direct = build_opener(ProxyHandler({}))
        with suppress(OSError, HTTPException), direct.open(f"{self.uri}/health", timeout=5) as answer:
            return bool(answer.status == 200)
        return False

    @property
    def is_alive(self) -> bool:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.group)
            is_same = abs(process.create_time() - self.started) < 5  # seconds: the clock may have been set
            return is_same and process.status() != psutil.STATUS_ZOMBIE
        return False


def find(folder: Path) -> Running | None:
    """The server of this folder, where one runs on this machine."""
    with suppress(FileNotFoundError, ValueError, TypeError):
        running = Running(**json.loads((folder / RECORD).read_text()))
        return running if running.is_alive else None
    return None


def start(plan: ServerPlan, password: str | None) -> Running:
    """Returns when it answers. InputError, and no process left, where it ends before or takes too long."""
    if plan.admin is not None:
        plan.write_accounts_file()
    log = plan.folder / LOG
    with log.open("ab") as file:
        begun = file.tell()
        process = subprocess.Popen(  # nosec B603 # no shell; checked by check_plan
            plan.command(),
            cwd=plan.folder,
            env={**os.environ, **plan.environment(password)},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            umask=0o077,  # in a folder that was there before, too, only the server reads accounts and files
        )
    try:
        running = Running(process.pid, psutil.Process(process.pid).create_time(), plan.uri)
        write_text(plan.folder / RECORD, json.dumps(asdict(running)))
        deadline = time.monotonic() + START_S
        while not running.answers:
            if process.poll() is not None:
                raise InputError(f"MLflow ended while it started: {_last_line(log, begun)}; {log} tells more")
            if time.monotonic() > deadline:
                raise InputError(f"MLflow does not answer {START_S:g} s after its start; {log} tells why")
            time.sleep(0.2)
    except BaseException:
        end_group(process.pid)
        (plan.folder / RECORD).unlink(missing_ok=True)
        raise
    return running


def attend(running: Running, folder: Path) -> None:
    """Waits until the server ends, or a signal comes, which ends it. InputError where nobody asked it to end."""
    try:
        with suppress(psutil.NoSuchProcess):
            psutil.Process(running.group).wait()
        was_asked = not (folder / RECORD).exists()  # by `maetrain mlflow down`
    except KeyboardInterrupt:
        was_asked = True
    end(running, folder)
    if not was_asked:
        raise InputError(f"MLflow ended: {_last_line(folder / LOG, 0)}; {folder / LOG} tells more")


def end(running: Running, folder: Path) -> None:
    (folder / RECORD).unlink(missing_ok=True)
    end_group(running.group)


def end_group(group: int) -> None:
    """SIGTERM to all of its processes, and END_S later, or at Ctrl-C, SIGKILL to those that are left."""
    deadline = time.monotonic() + END_S
    try:
        _signal(group, signal.SIGTERM)
        while _members(group) and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        _signal(group, signal.SIGKILL)
    while _members(group):
        time.sleep(0.02)


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


def _signal(group: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)


def _members(group: int) -> list[int]:
    """Those that run; a process that has ended may stay as a zombie for as long as its parent likes."""
    found = []
    for process in psutil.process_iter(["status"]):
        with suppress(ProcessLookupError):
            if os.getpgid(process.pid) == group and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def _last_line(log: Path, begun: int) -> str:
    """The last one that says something, of what was written from byte `begun` on."""
    lines = [line.strip() for line in log.read_bytes()[begun:].decode(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "it wrote nothing")[:300]
