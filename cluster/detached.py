"""A server that outlives the command which started it, and is found again from another terminal: Ray's head, MLflow.

Its processes are a session of their own, so Ctrl-C reaches them through us alone, those whose parent is gone are found,
too, and no signal goes to anything else that the user runs.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Self

import psutil

from data_shards.formats.files import write_text


@dataclass(frozen=True)
class Detached:
    """`session`: its id, and its first process's, which began at `started_s` of the clock: ids are used again."""

    session: int
    started_s: float

    @classmethod
    def recorded(cls, record: Path) -> Self | None:
        """What the file tells, where that still runs on this machine."""
        with suppress(OSError, ValueError, TypeError):
            found = cls(**json.loads(record.read_text()))
            return found if found.is_alive else None
        return None

    def write(self, record: Path) -> None:
        write_text(record, json.dumps(asdict(self)))

    @property
    def is_alive(self) -> bool:
        """Whether its first process is."""
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.session)
            is_same = abs(process.create_time() - self.started_s) < 5  # seconds: the clock may have been set
            return is_same and process.status() != psutil.STATUS_ZOMBIE
        return False

    def members(self) -> list[int]:
        """Those that run; a process that has ended may stay as a zombie for as long as its parent likes."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, ProcessLookupError, PermissionError):
                if os.getsid(process.pid) == self.session and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process.pid)
        return found

    def end(self, grace_s: float, *, through_first: bool = False) -> None:
        """SIGTERM to all, and `grace_s` later, or at Ctrl-C, SIGKILL to those that are left.

        `through_first`: only the first is asked; it ends the others in an order of its own.
        """

        def asked() -> list[int]:
            return self.members() if not through_first else [self.session] * self.is_alive

        deadline = time.monotonic() + grace_s
        try:
            _signal(asked(), signal.SIGTERM)
            while asked() and time.monotonic() < deadline:
                time.sleep(0.1)
        finally:
            while left := self.members():
                _signal(left, signal.SIGKILL)
                time.sleep(0.02)


def start_session(
    command: list[str], env: Mapping[str, str], log: IO[bytes], cwd: Path | None = None, umask: int = -1
) -> Detached:
    """`log`: where it writes all that it has to say. `umask`: -1 leaves it as it is."""
    process = subprocess.Popen(  # nosec B603 # no shell; the words are our own
        command,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        umask=umask,
    )
    return Detached(process.pid, psutil.Process(process.pid).create_time())


def _signal(processes: list[int], number: int) -> None:
    for pid in processes:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
