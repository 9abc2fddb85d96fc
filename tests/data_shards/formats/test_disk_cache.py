"""The disk cache: what is in it is right, it stays small, and nothing that happens to it stops a read."""

import errno
import multiprocessing
import os
import pickle
import signal
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import fsspec
import numpy as np
import pytest

from data_shards.errors import InputError, ShardError
from data_shards.formats.disk_cache import CacheConfig, DiskCache, cache_from_environment
from data_shards.formats.encoding import with_crc
from data_shards.formats.files import location
from data_shards.formats.index import ShardIndex
from data_shards.formats.reader import open_reader
from data_shards.formats.remote import RemoteFiles
from data_shards.formats.storage import Range, read_checked, stated_crc32c
from tests.data_shards.helpers import build_places
from tests.data_shards.s3_server import FaultyProxy, every, s3_server, use_server

RANGE_BYTES = 1000
PER_FILE = 20


class Source:
    """Files of `PER_FILE` ranges of which each says who it is. `asked` are the ranges read."""

    def __init__(self, build: str = "") -> None:
        self.build = build
        self.asked: list[tuple[str, Range]] = []

    def range(self, k: int) -> Range:
        return Range(k * RANGE_BYTES, RANGE_BYTES)

    def content(self, file: str, k: int) -> bytes:
        return with_crc(f"{self.build}{file} {k} ".encode().ljust(RANGE_BYTES - 4, b"x"))

    def read(self, file: str, ranges: Sequence[Range]) -> list[memoryview]:
        self.asked += [(file, r) for r in ranges]
        return [memoryview(self.content(file, r.offset // RANGE_BYTES)) for r in ranges]

    read_again = read


class Versions(dict[str, str]):
    def __missing__(self, shard: str) -> str:
        return "one build"


def cache_in(folder: Path, limit_bytes: int = 10**9, source: Source | None = None) -> tuple[DiskCache, Source]:
    source = source or Source()
    return DiskCache(source, folder, limit_bytes, Versions()), source


def read(cache: DiskCache, source: Source, file: str, places: Sequence[int]) -> None:
    """Reads and looks at every byte."""
    parts = read_checked(cache, file, [source.range(k) for k in places])
    assert [bytes(part) for part in parts] == [source.content(file, k) for k in places]


def disk_bytes(folder: Path) -> int:
    return sum(512 * path.stat().st_blocks for path in folder.iterdir())


@pytest.fixture
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.usefixtures("no_warnings")
def test_a_range_is_fetched_once_and_only_what_is_missing(tmp_path):
    cache, source = cache_in(tmp_path / "cache")
    read(cache, source, "a/x", [0, 3, 4])
    read(cache, source, "a/x", [0, 1, 3, 4, 9])
    read(cache, source, "a/y", [3])
    another, _ = cache_in(tmp_path / "cache", source=source)
    read(another, source, "a/x", [9, 1, 0])
    assert [(file, r.offset // RANGE_BYTES) for file, r in source.asked] == [
        *(("a/x", k) for k in (0, 3, 4, 1, 9)),
        ("a/y", 3),
    ]


def test_a_cached_range_that_is_damaged_or_torn_is_fetched_again_and_mended(tmp_path):
    cache, source = cache_in(tmp_path)
    read(cache, source, "a/x", range(PER_FILE))
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[2 * RANGE_BYTES + 500] ^= 1
    content[5 * RANGE_BYTES + 300 : 6 * RANGE_BYTES] = bytes(700)  # its write was cut off
    path.write_bytes(content[: 18 * RANGE_BYTES + 10])
    source.asked.clear()
    for _ in range(2):
        read(cache, source, "a/x", range(PER_FILE))
    assert [r.offset // RANGE_BYTES for _, r in source.asked] == [2, 5, 18, 19]


def test_a_range_the_source_gives_wrong_is_not_kept(tmp_path):
    cache, source = cache_in(tmp_path)
    right = source.content
    source.content = lambda file, k: bytes(RANGE_BYTES - 1) + b"1"
    with pytest.raises(ShardError, match="damaged"):
        read_checked(cache, "a/x", [source.range(0)])
    source.content = right
    source.asked.clear()
    read(cache, source, "a/x", [0])
    assert len(source.asked) == 1


def test_what_another_build_left_under_the_same_names_is_not_taken(tmp_path):
    """Same URL, same places and sizes, right checksums: only the shard's hash tells them apart."""
    for build in ("first", "second"):
        source = Source(build)
        cache = DiskCache(source, tmp_path, 10**9, {"shard-0": build})
        read(cache, source, "shard-0/x", [0, 1])
        assert len(source.asked) == 2
    again = DiskCache(Source("first"), tmp_path, 10**9, {"shard-0": "first"})
    read(again, Source("first"), "shard-0/x", [0, 1])
    assert not again.source.asked


def test_a_whole_table_of_an_older_build_in_the_cache_is_fetched_again_and_mended(tmp_path):
    """The bucket once gave the old object under the new index: right checksum, wrong table."""
    stale, source = Source("old"), Source("new")
    DiskCache(stale, tmp_path, 10**9, Versions()).read("a/x", [source.range(0)])
    cache, _ = cache_in(tmp_path, source=source)
    wanted = source.content("a/x", 0)
    for _ in range(2):
        (table,) = read_checked(cache, "a/x", [source.range(0)], stated_crc32c(memoryview(wanted)))
        assert bytes(table) == wanted
    assert len(source.asked) == 1
    with pytest.raises(ShardError, match="not the shard this index was written for"):
        read_checked(cache, "a/x", [source.range(0)], 12345)


def test_the_least_recently_used_files_go_and_no_others(tmp_path):
    limit = 10 * 5 * 4096  # a file of 20 ranges has five blocks
    cache, source = cache_in(tmp_path, limit)
    (tmp_path / "not ours").write_bytes(bytes(10**6))
    for k in range(10):
        read(cache, source, f"a/{k}", range(PER_FILE))
        time.sleep(0.01)  # the clock of the file system ticks every 4 ms
    read(cache, source, "a/0", [0])  # used again
    time.sleep(0.01)
    read(cache, source, "a/10", range(PER_FILE))
    source.asked.clear()
    for k in (0, *range(3, 11)):
        read(cache, source, f"a/{k}", range(PER_FILE))
    assert not source.asked  # 9 of 10 files are kept, the first among them
    for k in (1, 2):
        read(cache, source, f"a/{k}", [0])
    assert len(source.asked) == 2 and (tmp_path / "not ours").stat().st_size == 10**6


def test_the_overshoot_is_at_most_a_check_and_a_read(tmp_path):
    limit = 256 * 4 * 4096  # a quarter of what is read, and a check is due after four blocks
    cache, source = cache_in(tmp_path, limit)
    rng, most = np.random.default_rng(0), 0
    for _ in range(600):
        read(cache, source, f"a/{rng.integers(800)}", sorted(rng.choice(PER_FILE, 8, replace=False).tolist()))
        most = max(most, disk_bytes(tmp_path))
    assert 0.9 * limit < most <= limit + limit // 256 + 8 * 2 * 4096


def test_a_file_larger_than_the_cache_is_read_and_goes(tmp_path):
    cache, source = cache_in(tmp_path, 2 * 4096)
    for _ in range(3):
        read(cache, source, "a/x", range(PER_FILE))
        assert disk_bytes(tmp_path) <= 2 * 4096


def test_workers_that_live_shortly_do_not_outgrow_the_limit(tmp_path, monkeypatch):
    """Each is a process of its own and writes less than what makes a check due."""
    limit = 256 * (RANGE_BYTES + 3 * 4096)
    cache, source = cache_in(tmp_path, limit)
    pickled, num_workers = pickle.dumps(cache), limit // 4096 + 100
    for worker in range(num_workers):
        monkeypatch.setattr("data_shards.formats.disk_cache.os.getpid", lambda pid=worker: pid)
        read(pickle.loads(pickled), source, f"a/{worker}", [0])
    assert disk_bytes(tmp_path) <= limit + 4096 < num_workers * 4096


@pytest.mark.parametrize(
    ("call", "code", "what"),
    [
        ("pwrite", errno.ENOSPC, "No space left"),
        ("open", errno.EACCES, "Permission denied"),
        ("open", errno.EROFS, "Read-only file system"),
        ("pread", errno.EIO, "Input/output error"),
        ("scandir", errno.EACCES, "Permission denied"),
    ],
)
def test_a_cache_that_fails_costs_one_warning_and_no_read(tmp_path, monkeypatch, call, code, what):
    cache, source = cache_in(tmp_path)
    read(cache, source, "a/x", [0])
    broken, _ = cache_in(tmp_path, source=source)

    def fail(*args, **settings):
        raise OSError(code, os.strerror(code))

    with pytest.warns(UserWarning) as caught, monkeypatch.context() as patch:
        patch.setattr(f"data_shards.formats.disk_cache.os.{call}", fail)
        for _ in range(3):
            read(broken, source, "a/x", [0, 1])
    assert len(caught) == 1 and f"the cache {tmp_path} can't be used ({what}" in str(caught[0].message)
    read(broken, source, "a/x", [0, 1])  # and it is used again when the disk is well
    source.asked.clear()
    read(broken, source, "a/x", [0, 1])
    assert not source.asked


def test_a_folder_that_cannot_be_made_costs_one_warning_and_no_read(tmp_path):
    (tmp_path / "file").touch()
    cache, source = cache_in(tmp_path / "file" / "cache")
    with pytest.warns(UserWarning, match="can't be used .Not a directory") as caught:
        for _ in range(2):
            read(cache, source, "a/x", [0])
    assert len(caught) == 1


def test_a_cache_removed_while_it_is_in_use_is_made_again(tmp_path):
    cache, source = cache_in(tmp_path / "cache")
    read(cache, source, "a/x", [0])
    for path in (tmp_path / "cache").iterdir():
        path.unlink()
    (tmp_path / "cache").rmdir()
    for _ in range(2):
        read(cache, source, "a/x", [0])
    assert len(source.asked) == 2


def _read_for_ever(cache: DiskCache, source: Source, seed: int) -> None:
    rng = np.random.default_rng(seed)
    while True:
        read(cache, source, f"a/{rng.integers(30)}", sorted(rng.choice(PER_FILE, 8, replace=False).tolist()))


def test_killed_processes_that_read_write_and_evict_together_leave_a_usable_cache(tmp_path):
    limit = 10 * 5 * 4096  # a third of what is read: there is always something to evict
    cache, source = cache_in(tmp_path, limit)
    context = multiprocessing.get_context("fork")
    for round in range(3):
        workers = [context.Process(target=_read_for_ever, args=(cache, source, 10 * round + k)) for k in range(3)]
        for worker in workers:
            worker.start()
        time.sleep(0.3)
        for worker in workers:
            assert worker.is_alive(), "it read something wrong"
            worker.kill()
            worker.join()
            assert worker.exitcode == -signal.SIGKILL
    for k in range(30):
        read(cache, source, f"a/{k}", range(PER_FILE))
    assert disk_bytes(tmp_path) <= limit + 3 * (limit // 256 + 8 * 2 * 4096)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, CacheConfig()),
        ({"MAETRAIN_CACHE_DIR": "/fast"}, CacheConfig(folder=Path("/fast"), limit_gb=20)),
        ({"MAETRAIN_CACHE_DIR": "/fast", "MAETRAIN_CACHE_GB": "0.5"}, CacheConfig(folder=Path("/fast"), limit_gb=0.5)),
        ({"MAETRAIN_CACHE_DIR": ""}, CacheConfig()),
    ],
)
def test_the_environment_names_folder_and_size(environ, expected):
    assert cache_from_environment(environ) == expected
    assert CacheConfig(folder=Path("/fast"), limit_gb=0.5).limit_bytes == 500_000_000


@pytest.mark.parametrize("limit", ["many", "0", "-1", "nan", "inf"])
def test_a_size_that_is_none_is_named(limit):
    with pytest.raises(InputError, match=f"MAETRAIN_CACHE_GB is '{limit}'"):
        cache_from_environment({"MAETRAIN_CACHE_DIR": "/fast", "MAETRAIN_CACHE_GB": limit})


def test_a_size_without_a_folder_says_that_it_has_no_effect():
    with pytest.warns(UserWarning, match="no effect without MAETRAIN_CACHE_DIR"):
        assert cache_from_environment({"MAETRAIN_CACHE_GB": "3"}).folder is None


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.mark.parametrize("format", ["zarr", "webdataset"])
def test_the_second_epoch_fetches_nothing_though_the_first_had_faults(server, tmp_path, monkeypatch, format):
    local = build_places(tmp_path, [(36, 40, 44), (33, 30, 50), (40, 36, 28)], format)
    with FaultyProxy(server, every(5, "cut", "reset", "503")) as proxy:
        use_server(monkeypatch, proxy.url)
        monkeypatch.setenv("MAETRAIN_CACHE_DIR", str(tmp_path / "cache"))
        fsspec.filesystem("s3").mkdir(f"cached-{format}")
        fsspec.filesystem("s3").put(str(local.root), f"cached-{format}/x", recursive=True)
        remote = ShardIndex.load(location(f"s3://cached-{format}/x"))
        ours, rng = open_reader(local), np.random.default_rng(0)
        crops = [(k % 3, rng.integers(0, 10, 3).tolist()) for k in range(9)]
        for epoch in range(2):
            theirs = open_reader(remote)
            assert isinstance(theirs.storage, DiskCache) and isinstance(theirs.storage.source, RemoteFiles)
            for i, start in crops:
                assert np.array_equal(theirs.crop(i, start, (20, 20, 20)), ours.crop(i, start, (20, 20, 20)))
            num_requests = theirs.storage.source.num_requests
            assert num_requests > 0 if epoch == 0 else num_requests == 0
        assert proxy.faults
    assert isinstance(open_reader(remote, CacheConfig()).storage, RemoteFiles)
