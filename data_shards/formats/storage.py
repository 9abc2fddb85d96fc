"""Reads byte ranges of shard files, from a disk or a bucket, and checks each by its own checksum.

Every range ends with the crc32c of what comes before it (zarr's crc32c codec puts it there), so one rule serves chunks,
chunk tables and the cache. Files are named relative to the build's folder.
"""

import os
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import google_crc32c

from data_shards.errors import ShardError

CRC_BYTES = 4
_MAX_OPEN_FILES = 128
_RESIDUE = 0x48674BC7  # the crc32c of anything followed by its own crc32c


Bytes = bytes | memoryview


class Range(NamedTuple):
    """`size` bytes from `offset` on."""

    offset: int
    size: int


class Storage(Protocol):
    """Byte ranges of the files under one folder. Can be pickled and used after a fork."""

    def read(self, file: str, ranges: Sequence[Range]) -> Sequence[Bytes]:
        """The bytes of each range, in order; fewer bytes than asked for where the file ends before.

        Raises OSError when the file can't be read.
        """
        ...

    def read_again(self, file: str, ranges: Sequence[Range]) -> Sequence[Bytes]:
        """Like `read`, from the source itself and past every cache: asked for after a wrong checksum."""
        ...


def read_checked(
    storage: Storage, file: str, ranges: Sequence[Range], expected_crc32c: int | None = None
) -> list[Bytes]:
    """The bytes of each range, checksum and all. `expected_crc32c` is what a single range must end with.

    A wrong checksum is read once more, then it raises ShardError; so does a file that can't be read.
    """
    try:
        parts = list(storage.read(file, ranges))
        # Whole bytes of another build in a cache are wrong too, and the source may have the right ones.
        wrong = [
            k
            for k, part in enumerate(parts)
            if not (is_whole(part, ranges[k].size) and expected_crc32c in (None, stated_crc32c(part)))
        ]
        for k, part in zip(wrong, storage.read_again(file, [ranges[k] for k in wrong]) if wrong else (), strict=True):
            if not is_whole(part, ranges[k].size):
                raise ShardError(
                    f"{file}: bytes {ranges[k].offset} to {sum(ranges[k])} are damaged or missing: run "
                    "`maetrain shards verify`, remove the shard and build again"
                )
            parts[k] = part
    except OSError as error:
        raise ShardError(
            f"{file}: can't be read ({error.strerror or error}): give the folder that holds the shards or build again"
        ) from None
    if expected_crc32c is not None and stated_crc32c(parts[0]) != expected_crc32c:
        raise ShardError(f"{file}: is not the shard this index was written for: put the right one there or build again")
    return parts


def is_whole(part: Bytes, size: int) -> bool:
    """True for `size` bytes that end with the crc32c of those before it."""
    if len(part) != size or size < CRC_BYTES:
        return False
    return google_crc32c.value(bytes(part)) == _RESIDUE


def stated_crc32c(part: Bytes) -> int:
    return int.from_bytes(part[-CRC_BYTES:], "little")


def merged(ranges: Sequence[Range], max_gap_bytes: int = 0) -> list[tuple[Range, list[int]]]:
    """Neighbouring ranges joined into longer ones, each with the places of its members; gaps up to `max_gap_bytes`."""
    runs: list[tuple[Range, list[int]]] = []
    for k, (offset, size) in enumerate(ranges):
        if runs:
            (first, length), places = runs[-1]
            if 0 <= offset - (first + length) <= max_gap_bytes:
                runs[-1] = Range(first, offset + size - first), [*places, k]
                continue
        runs.append((Range(offset, size), [k]))
    return runs


def cut_runs(
    ranges: Sequence[Range], runs: Iterable[tuple[Range, list[int]]], contents: Iterable[bytes]
) -> list[memoryview]:
    """The bytes of each of `ranges` out of the `contents` of their `merged` runs."""
    parts: list[memoryview] = [memoryview(b"")] * len(ranges)
    for (run, places), content in zip(runs, contents, strict=True):
        view = memoryview(content)
        for k in places:
            first = ranges[k].offset - run.offset
            parts[k] = view[first : first + ranges[k].size]
    return parts


class LocalFiles:
    """Files under a folder of this machine, or of a network file system.

    Reads by `pread`, not by a memory map: when a file is cut short while it is open, a map kills the process.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._handles: OrderedDict[str, int] = OrderedDict()

    def read(self, file: str, ranges: Sequence[Range]) -> list[bytes]:
        if not ranges:
            return []
        handle = self._handle(file)
        end = os.fstat(handle).st_size
        return [_pread(handle, size, offset, end) for offset, size in ranges]

    def read_again(self, file: str, ranges: Sequence[Range]) -> list[bytes]:
        self._close(file)  # the file may have been replaced since
        return self.read(file, ranges)

    def _handle(self, file: str) -> int:
        if file in self._handles:
            self._handles.move_to_end(file)
        else:
            while len(self._handles) >= _MAX_OPEN_FILES:
                self._close(next(iter(self._handles)))
            try:
                self._handles[file] = os.open(self.root / file, os.O_RDONLY | os.O_CLOEXEC)
            except ValueError:  # a NUL in the name
                raise OSError(f"{file!r} is no name of a file") from None
        return self._handles[file]

    def _close(self, file: str) -> None:
        handle = self._handles.pop(file, None)
        if handle is not None:
            os.close(handle)

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "_handles": OrderedDict()}

    def __del__(self) -> None:
        for file in list(self._handles):
            self._close(file)


def _pread(handle: int, size: int, offset: int, end: int) -> bytes:
    """`size` bytes from `offset` on; fewer where the file ends, at `end`: a wrong size allocates nothing."""
    size = min(size, end - offset)
    if size <= 0 or offset < 0:
        return b""
    content = os.pread(handle, size, offset)
    while len(content) < size:  # a signal, or a network file system
        more = os.pread(handle, size - len(content), offset + len(content))
        if not more:
            break
        content += more
    return content
