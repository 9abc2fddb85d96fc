"""A run as a file: every operation one line of JSON, in order, for somebody else to bring to the store.

Training writes it without network, server or MLflow. Each line reaches the operating system at once, so a SIGKILL loses
at most the line under way; the disk is waited for only when the run ends. An entry says when it happened, so that it is
the same point however late and often it is delivered. A million entries are some 100 MB.

A journal knows its run by name and by key of work, not by a store: any store can be given it, also later.
"""

import json
import os
import shutil
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from data_shards.errors import InputError
from maetrain.tracking.tracker import flatten

Entry = dict[str, Any]


class JournalTracker:
    """Writes the journal at `path`, in place of an earlier one there. Several threads may log."""

    run_id: str | None = None  # the store's name for the run, which isn't made here

    def __init__(self, path: Path, name: str, work: str) -> None:
        self.path = path
        self._params: set[str] = set()
        self._last_steps: dict[str, int] = {}
        self._num_copies = 0
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        first = path.with_name(f".{path.name}.partial")
        # renamed into place: who reads the earlier journal meanwhile never sees a mixture of both
        self._file = first.open("w", buffering=1)
        self._write("open", id=uuid4().hex, at_ms=_now_ms(), name=name, work=work)
        first.rename(path)

    def tags(self, tags: Mapping[str, str]) -> None:
        self._write("tags", tags=dict(tags))

    def params(self, params: Mapping[str, object]) -> None:
        """A parameter that the run has already keeps its first value, as MLflow demands."""
        new = {k: v for k, v in flatten(params).items() if k not in self._params}
        self._params |= set(new)
        self._write("params", params=new)

    def metrics(self, metrics: Mapping[str, float], step: int) -> None:
        values = {name: float(value) for name, value in metrics.items()}
        self._last_steps |= {name: max(step, self._last_steps.get(name, step)) for name in values}
        self._write("metrics", at_ms=_now_ms(), step=step, metrics=values)

    def last_step(self, metric: str) -> int:
        return self._last_steps.get(metric, 0)

    def file(self, path: Path, folder: str | None = None) -> None:
        """A file below the journal's own folder is read when it is delivered, another one is copied there now."""
        home = self.path.parent.resolve()
        inside = path.resolve()
        if not inside.is_relative_to(home):
            self._num_copies += 1
            inside = home / f"{self.path.stem}-files" / str(self._num_copies) / path.name
            inside.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, inside)
        self._write("file", path=inside.relative_to(home).as_posix(), folder=folder)

    def dataset(self, name: str, digest: str, source: str, context: str) -> None:
        self._write("dataset", name=name, digest=digest, source=source, context=context)

    def finish(self, status: str = "FINISHED") -> None:
        self._write("finish", at_ms=_now_ms(), status=status)
        with self._lock:
            os.fsync(self._file.fileno())
            self._file.close()

    def _write(self, operation: str, **what: object) -> None:
        line = json.dumps({"op": operation, **what}) + "\n"
        with self._lock:
            self._file.write(line)


class Opening(NamedTuple):
    """The first line: which journal this is. `id` is another one whenever the work starts over."""

    id: str
    at_ms: int
    name: str
    work: str


class Part(NamedTuple):
    """What stands behind a place in a journal, up to the last whole line, and the place (bytes) behind it."""

    opening: Opening
    entries: list[Entry]
    end: int


MOST_BYTES = 1 << 20  # of one part: a long journal is delivered bit by bit


def read_journal(path: Path, start: int = 0, opening: Opening | None = None) -> Part | None:
    """The entries from byte `start` on, of a journal that began with `opening`; from its beginning if it is another.

    None where there is no journal yet. InputError for a whole line that is no entry: the disk has altered it.
    """
    try:
        with path.open("rb") as file:
            first = file.readline()
            if not first.endswith(b"\n"):
                return None
            now = _opening(_entry(first, path), path)
            start = start if now == opening else len(first)
            file.seek(start)
            data = file.read(MOST_BYTES)
            while b"\n" not in data and (more := file.read(MOST_BYTES)):
                data += more
    except FileNotFoundError:
        return None
    whole = data[: data.rfind(b"\n") + 1]
    return Part(now, [_entry(line, path) for line in whole.splitlines()], start + len(whole))


def _opening(entry: Entry, path: Path) -> Opening:
    try:
        return Opening(*(entry[field] for field in Opening._fields))
    except KeyError as error:
        raise InputError(f"{path}: no journal of a run, its first line has no {error}; give another file") from None


def _entry(line: bytes, path: Path) -> Entry:
    try:
        entry = json.loads(line)
        entry["op"]
    except (ValueError, TypeError, KeyError):
        raise InputError(f"{path}: damaged, {line[:40]!r} is no entry; remove it and run that job again") from None
    return entry


def _now_ms() -> int:
    return int(time.time() * 1000)
