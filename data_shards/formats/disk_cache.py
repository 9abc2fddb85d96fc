"""A bounded cache on a local disk for ranges of remote files, shared by all processes of a machine.

Each shard file has a sparse file of its own here, in which a range stands at its own offset. It is in the cache if what
stands there ends with its right crc32c: a hole reads as zeros, whose checksum is never zero. So there is no table of
what is here and no lock; a range torn by a kill or damaged by the disk is fetched again and mends itself.

Cost: a checksum over what is read (10 GB/s) and, for each 256th of the limit written, a look at every file's size.
"""

import hashlib
import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from data_shards.errors import InputError
from data_shards.formats.storage import Bytes, Range, Storage, cut_runs, is_whole, merged

SUFFIX = ".cached"  # only such files are ever removed from the folder
_KEPT_SHARE = 0.9
_CHECKS_PER_LIMIT = 256
_BLOCK_BYTES = 4096


class CacheConfig(BaseModel):
    """Where ranges of remote shards are kept."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: Path | None = Field(default=None, description="on a local disk; None: no cache")
    limit_gb: float = Field(default=20, gt=0, allow_inf_nan=False, description="its size in GB (10^9 bytes)")

    @property
    def limit_bytes(self) -> int:
        return round(self.limit_gb * 1e9)


def cache_from_environment(environ: Mapping[str, str] = os.environ) -> CacheConfig:
    """MAETRAIN_CACHE_DIR and MAETRAIN_CACHE_GB. Raises InputError when the size is not a number above 0."""
    folder, limit = environ.get("MAETRAIN_CACHE_DIR"), environ.get("MAETRAIN_CACHE_GB")
    if not folder:
        if limit:
            warnings.warn("MAETRAIN_CACHE_GB has no effect without MAETRAIN_CACHE_DIR", stacklevel=2)
        return CacheConfig()
    try:
        return CacheConfig(folder=Path(folder), **({"limit_gb": float(limit)} if limit else {}))
    except ValueError:
        raise InputError(f"MAETRAIN_CACHE_GB is {limit!r}: give a number of GB above 0, such as 20") from None


class DiskCache:
    """`source` behind a cache in `folder`.

    `versions` gives each shard's sha256 by its name, the first part of a file's path. It is in the name of the cached
    file: what another build put there under the same URL is never taken for ours, and equal shards share one copy.

    When the files take more than `limit_bytes` (> 0) of the disk, the least recently used are removed down to nine
    tenths of it. N processes overshoot it by at most N * (limit_bytes / 256 + one read). A file that is larger goes as
    a whole, even while it is in use.

    A folder that can't be written, or a full disk, costs one warning a process; reading goes on from the source.
    """

    def __init__(self, source: Storage, folder: Path, limit_bytes: int, versions: Mapping[str, str]) -> None:
        self.source, self.folder, self.limit_bytes, self.versions = source, Path(folder), limit_bytes, versions
        self._unchecked_bytes = 0
        self._checked_by = -1  # the process that has looked at the size; a new one looks after its first write
        self._has_warned = False

    def read(self, file: str, ranges: Sequence[Range]) -> list[Bytes]:
        parts = self._load(file, ranges)
        missing = [k for k, part in enumerate(parts) if not is_whole(part, ranges[k].size)]
        if missing:
            fetched = self.source.read(file, [ranges[k] for k in missing])
            self._store(file, [ranges[k] for k in missing], fetched)
            for k, part in zip(missing, fetched, strict=True):
                parts[k] = part
        return parts

    def read_again(self, file: str, ranges: Sequence[Range]) -> Sequence[Bytes]:
        parts = self.source.read_again(file, ranges)
        self._store(file, ranges, parts)
        return parts

    def _load(self, file: str, ranges: Sequence[Range]) -> list[Bytes]:
        """What stands in the cache at each range: its bytes, zeros, or anything else."""
        try:
            handle = os.open(self._path(file), os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            self._report(error)
            return [b""] * len(ranges)
        try:
            runs = merged(ranges)
            contents = [os.pread(handle, run.size, run.offset) for run, _ in runs]
            with suppress(PermissionError):  # a cache that others fill
                os.utime(handle)
            return [*cut_runs(ranges, runs, contents)]
        except OSError as error:
            self._report(error)
            return [b""] * len(ranges)
        finally:
            os.close(handle)

    def _store(self, file: str, ranges: Sequence[Range], parts: Sequence[Bytes]) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(self._path(file), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                for (offset, _), part in zip(ranges, parts, strict=True):
                    os.pwrite(handle, part, offset)  # wrong or cut short: then it isn't in the cache, see above
                    self._unchecked_bytes += len(part) + 2 * _BLOCK_BYTES
            finally:
                os.close(handle)
            if self._unchecked_bytes > self.limit_bytes / _CHECKS_PER_LIMIT or self._checked_by != os.getpid():
                self._make_room()
        except OSError as error:
            self._report(error)

    def _make_room(self) -> None:
        self._unchecked_bytes, self._checked_by = 0, os.getpid()
        files = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # removed by another process
                    if entry.name.endswith(SUFFIX):
                        facts = entry.stat()
                        files.append((facts.st_mtime_ns, 512 * facts.st_blocks, entry.path))
        total = sum(num_bytes for _, num_bytes, _ in files)
        if total <= self.limit_bytes:
            return
        for _, num_bytes, path in sorted(files):
            if total <= _KEPT_SHARE * self.limit_bytes:
                break
            Path(path).unlink(missing_ok=True)
            total -= num_bytes

    def _path(self, file: str) -> Path:
        version = self.versions[file.split("/", 1)[0]]
        return self.folder / (hashlib.sha256(f"{version}\n{file}".encode()).hexdigest()[:32] + SUFFIX)

    def _report(self, error: OSError) -> None:
        if not isinstance(error, FileNotFoundError) and not self._has_warned:
            self._has_warned = True
            warnings.warn(f"the cache {self.folder} can't be used ({error.strerror}): shards are fetched", stacklevel=2)
