"""Writing so that a reader never sees half a file, and hashing what was written. Local folders and buckets alike.

A local file gets a temporary name, fsync, and a rename. What goes to a bucket is written to a scratch folder of this
machine first and uploaded when it is whole: a bucket shows an object only when all of it has arrived.
"""

import fcntl
import hashlib
import logging
import os
import shutil
import socket
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast

import pyarrow as pa
from upath import UPath

from data_shards.errors import InputError
from data_shards.formats.remote import ask, send


def location(text: str | Path) -> Path:
    """A path of this machine, or of a bucket where `text` has a scheme (`s3://bucket/shards`)."""
    if "://" not in str(text):
        return Path(text)
    logging.getLogger("asyncio").addFilter(_is_news)
    # without fsspec's memory of listings: workers write where the driver has looked before
    return cast(Path, UPath(text, use_listings_cache=False))  # a UPath does what a Path does


def _is_news(record: logging.LogRecord) -> bool:
    """Not where a connection broke under a task of a bucket's client: whoever waits for the answer is told, too."""
    return not (record.exc_info and isinstance(record.exc_info[1], ConnectionError))


def is_remote(path: Path) -> bool:
    """True for a bucket or another file system that fsspec reaches over the network."""
    return isinstance(path, UPath) and path.protocol not in ("", "file", "local")


def absolute(path: Path) -> str:
    """A text that `location` reads as the same place from any folder."""
    return str(path) if is_remote(path) else str(path.resolve())


@contextmanager
def published(path: Path) -> Iterator[Path]:
    """Gives a temporary path to write a file or folder at; on success it is synced and becomes `path`.

    What stood at `path` is replaced. A killed writer leaves its temporary name behind, which nobody else uses.
    """
    if is_remote(path):
        with tempfile.TemporaryDirectory(prefix="maetrain-") as scratch:
            temporary = Path(scratch) / path.name
            yield temporary
            _upload(temporary, path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".tmp-{path.name}-{uuid.uuid4().hex[:8]}"
    try:
        yield temporary
        _fsync_tree(temporary)
        if temporary.is_dir():  # a folder can't be renamed over a folder that isn't empty
            remove(path)
        os.replace(temporary, path)
        _fsync(path.parent)
    finally:
        remove(temporary)


@contextmanager
def locked(path: Path, can_wait: bool = False) -> Iterator[None]:
    """Holds the lock file `path`, and with it its folder. A bucket has no lock.

    InputError when another process holds it and we can't wait. The lock goes with its process, whatever way that ends.
    """
    if is_remote(path):
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if can_wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read() or "another process"
            raise InputError(f"{path}: {holder} works in this folder: wait for it or give another") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def write_text(path: Path, text: str) -> None:
    """Write a small text file, whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes | pa.Buffer) -> None:
    """Write a file, whole or not at all."""
    with published(path) as temporary, temporary.open("wb") as file:
        file.write(content)


def remove_half_written(path: Path) -> None:
    """What killed writers of `path` left beside it. Only for the one process that writes it now."""
    for other in listed(path.parent):
        if other.name.startswith(f".tmp-{path.name}-"):
            remove(other)


def is_there(path: Path) -> bool:
    """Whether `path` is a file. OSError where the storage doesn't say: a bucket's own `is_file` is False then, too."""
    if not is_remote(path):
        return path.is_file()
    try:
        return bool(ask(path, "_info", path.path)["type"] == "file")  # type: ignore[attr-defined]
    except FileNotFoundError:
        return False


def listed(folder: Path) -> list[Path]:
    """What lies in `folder`; nothing where there is no folder. OSError where the storage doesn't say."""
    try:
        if not is_remote(folder):
            return list(folder.iterdir())
        found = ask(folder, "_ls", folder.path, False)  # type: ignore[attr-defined]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [folder / name.rstrip("/").rpartition("/")[2] for name in found]


def text_of(path: Path) -> str:
    """A small text file. FileNotFoundError where there is none, another OSError where the storage doesn't say.

    UnicodeDecodeError, a ValueError, for what is no UTF-8.
    """
    if not is_remote(path):
        return path.read_text(encoding="utf-8")
    return ask(path, "_cat_file", path.path).decode()  # type: ignore[attr-defined]


def content_of(path: Path) -> pa.Buffer:
    """A whole file: mapped into memory, shared by all processes of this machine; or fetched. Raises OSError."""
    if is_remote(path):
        return pa.py_buffer(path.read_bytes())
    with pa.memory_map(str(path)) as file:
        return file.read_buffer()


def digest(path: Path) -> tuple[str, int]:
    """(sha256, bytes) of a file, or of a folder: the hash over its sorted relative names and file hashes."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size
    total, folder_hash = 0, hashlib.sha256()
    for file_path in sorted(p for p in path.rglob("*") if p.is_file()):
        file_sha256, num_bytes = digest(file_path)
        folder_hash.update(f"{file_path.relative_to(path).as_posix()}\0{file_sha256}\n".encode())
        total += num_bytes
    return folder_hash.hexdigest(), total


def size_bytes(path: Path) -> int:
    """Bytes of a file or of all files in a folder; -1 where nothing is."""
    if not path.exists():
        return -1
    return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def remove(path: Path) -> None:
    """Remove a file or a folder if it is there."""
    if isinstance(path, UPath) and is_remote(path):
        with suppress(FileNotFoundError):  # it wasn't there, or another worker was faster
            ask(path, "_rm", path.path, True)
    elif path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _upload(source: Path, path: Path) -> None:
    assert isinstance(path, UPath)
    if source.is_dir():  # an object is replaced at once, a folder keeps what isn't overwritten
        remove(path)
        path.fs.put(str(source), path.path, recursive=True)
    else:
        send(source, path)


def _fsync_tree(path: Path) -> None:
    if path.is_dir():
        for inner in path.iterdir():
            _fsync_tree(inner)
    _fsync(path)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
