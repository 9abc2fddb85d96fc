"""Byte ranges of files in a bucket (`s3://`, and whatever else fsspec reaches).

The chunks of a crop lie in short rows all over its file. Rows are joined where the gap between them is small, for a
request costs as much as a megabyte: the gaps taken along are at most a fifth of the bytes wanted, so an epoch stays
below 1.3 times what it needs. All requests of a read are on their way at the same time, each is tried again after a
failure, and a read ends within a time limit whatever the bucket does.
"""

import asyncio
import errno
import itertools
import os
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec
from fsspec.asyn import AsyncFileSystem, sync
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
from upath import UPath

from data_shards.formats.storage import Range, cut_runs, merged

TIMEOUT_S = 60.0
_MAX_GAP_SHARE = 0.2
_PART_BYTES = 8 * 2**20  # of one request: small enough for a slow line within the time of an attempt
_ALLOWANCE_BYTES = 64 * 2**20  # what a read may fetch in one time limit
_MAX_REQUESTS = 10  # at a time; botocore holds as many connections
_ATTEMPTS = 5
_FIRST_PAUSE_S = 0.1

# The clients of this process and, after a fork, of its parents: those must not be collected, or s3fs spends a second in
# every worker on closing them in an event loop that doesn't run there.
_clients: dict[tuple[int, str, str], AsyncFileSystem] = {}


class RemoteFiles:
    """Files under `root`, a bucket or a folder in it.

    `timeout_s` (> 0) is what a read of up to 64 MiB may take, retries and all; a longer one has as much again for each
    further 64 MiB. `bytes_fetched` and `num_requests` count what came to this process and what it asked for, failed
    attempts too; not the ones that botocore makes by itself.
    """

    def __init__(self, root: UPath, timeout_s: float = TIMEOUT_S) -> None:
        if not timeout_s > 0:
            raise ValueError(f"timeout_s is {timeout_s:g}: give a number of seconds above 0")
        self.root, self.timeout_s = root, timeout_s
        self.bytes_fetched = 0
        self.num_requests = 0

    def read(self, file: str, ranges: Sequence[Range]) -> list[memoryview]:
        if not ranges:
            return []
        runs = merged(ranges, affordable_gap_bytes(ranges))
        client, path = _client(self.root), (self.root / file).path
        contents = sync(client.loop, self._fetch_all, client, path, [run for run, _ in runs])
        return cut_runs(ranges, runs, contents)

    def read_again(self, file: str, ranges: Sequence[Range]) -> list[memoryview]:
        return self.read(file, ranges)

    async def _fetch_all(self, client: AsyncFileSystem, path: str, runs: list[Range]) -> list[bytes]:
        gate = asyncio.Semaphore(_MAX_REQUESTS)

        async def fetch(run: Range) -> bytes:
            starts = range(run.offset, sum(run), _PART_BYTES)
            parts = [Range(start, min(_PART_BYTES, sum(run) - start)) for start in starts]
            return b"".join(await asyncio.gather(*(self._fetch(client, gate, path, part) for part in parts)))

        limit_s = self.timeout_s * (1 + sum(run.size for run in runs) // _ALLOWANCE_BYTES)
        try:
            async with asyncio.timeout(limit_s):
                return await asyncio.gather(*map(fetch, runs))
        except TimeoutError:
            raise OSError(f"{self.root}: not read within {limit_s:g} s") from None

    async def _fetch(self, client: AsyncFileSystem, gate: asyncio.Semaphore, path: str, part: Range) -> bytes:
        """One request, made again after a pause when it fails in a way that may pass."""
        failure: Exception | None = None
        for attempt in range(_ATTEMPTS):
            if failure is not None:  # twice as long each time, and not all at once: the bucket may be overloaded
                pause_s = _FIRST_PAUSE_S * 2**attempt
                await asyncio.sleep(pause_s * random.uniform(0.5, 1))  # nosec B311 # nobody gains by guessing it
            try:
                async with gate, asyncio.timeout(self.timeout_s / 4):
                    self.num_requests += 1
                    content = await client._cat_file(path, start=part.offset, end=sum(part))
                self.bytes_fetched += len(content)
                return content
            except (FileNotFoundError, PermissionError) as error:
                raise type(error)(f"{self.root}: {error}") from None
            except Exception as error:  # the clients of the many file systems have no common class of failures
                if isinstance(error, OSError) and error.errno == errno.EINVAL:
                    if "InvalidRange" in str(error.__cause__):
                        return b""  # beyond the end of the file
                    raise OSError(f"{self.root}: {error}") from None
                failure = error
        assert failure is not None
        raise OSError(f"{self.root}: {_ATTEMPTS} attempts failed, the last with: {_reason(failure)}")


def ask(path: Path, method: str, *arguments: Any, timeout_s: float = TIMEOUT_S) -> Any:
    """What the client's coroutine `method` answers for `path`.

    FileNotFoundError where nothing is, another OSError for whatever goes wrong and no answer within `timeout_s`: the
    methods of a path raise errors of many classes, wait for minutes, and say False where they could not find out.
    """
    assert isinstance(path, UPath)
    client = _client(path)

    async def within() -> Any:
        async with asyncio.timeout(timeout_s):
            return await getattr(client, method)(*arguments)

    try:
        return sync(client.loop, within)
    except (FileNotFoundError, PermissionError) as error:
        raise type(error)(f"{path}: {error}") from None
    except TimeoutError:
        raise OSError(f"{path}: no answer within {timeout_s:g} s") from None
    except Exception as error:  # the clients of the many file systems have no common class of failures
        raise OSError(f"{path}: {_reason(error)}") from None


def send(source: Path, target: Path) -> None:
    """Copies a file of this machine into a bucket and checks the size it has there. OSError for whatever goes wrong."""
    limit_s = TIMEOUT_S * (1 + source.stat().st_size // _ALLOWANCE_BYTES)
    ask(target, "_put_file", str(source), str(target.path), timeout_s=limit_s)  # type: ignore[attr-defined]
    size = ask(target, "_info", target.path)["size"]  # type: ignore[attr-defined]
    if size != source.stat().st_size:
        raise OSError(f"{target}: {size} bytes arrived, not {source.stat().st_size}")


def fetch(source: Path, target: Path) -> None:
    """Copies a file out of a bucket to this machine. OSError for whatever goes wrong."""
    assert isinstance(source, UPath)
    size = ask(source, "_info", source.path)["size"]
    files = RemoteFiles(source.parent)
    with target.open("wb") as file:
        for start in range(0, size, _ALLOWANCE_BYTES):
            for part in files.read(source.name, [Range(start, min(_ALLOWANCE_BYTES, size - start))]):
                file.write(part)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def affordable_gap_bytes(ranges: Sequence[Range]) -> int:
    """The widest gap to read along, so that all gaps up to that width are at most a fifth of the bytes of `ranges`."""
    budget = _MAX_GAP_SHARE * sum(size for _, size in ranges)
    widest = 0
    gaps = Counter(after.offset - sum(before) for before, after in itertools.pairwise(ranges))
    for gap, count in sorted(gaps.items()):
        budget -= max(0, gap) * count
        if budget < 0:
            break
        widest = max(0, gap)
    return widest


def _client(path: UPath) -> AsyncFileSystem:
    """The client for `path` in this process. Event loops and connections do not survive a fork."""
    key = os.getpid(), path.protocol, repr(sorted(path.storage_options.items()))
    if key not in _clients:
        client = fsspec.filesystem(path.protocol, **path.storage_options)
        _clients[key] = client if client.async_impl else AsyncFileSystemWrapper(client)
    return _clients[key]
