"""Writing so that a reader never sees half a file: temporary name, fsync, rename. And hashing what was written."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def published(path: Path) -> Iterator[Path]:
    """Gives a temporary path to write a file or folder at; on success it is synced and renamed to `path`.

    One writer per `path`. What stood at `path`, and leftovers of a killed writer, are replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".tmp-{path.name}"
    remove(temporary)
    try:
        yield temporary
        _fsync_tree(temporary)
        if temporary.is_dir():  # a folder can't be renamed over a folder that isn't empty
            remove(path)
        os.replace(temporary, path)
        _fsync(path.parent)
    finally:
        remove(temporary)


def write_text(path: Path, text: str) -> None:
    """Write a small text file, whole or not at all."""
    with published(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


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
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


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
