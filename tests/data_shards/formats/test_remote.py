"""Shards in a bucket: read as from a disk, in few bytes, through every fault that networks have."""

import multiprocessing
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
from upath import UPath

from data_shards.build import BuildConfig, build
from data_shards.errors import InputError, ShardError
from data_shards.formats.encoding import Encoding
from data_shards.formats.files import location, remove, write_text
from data_shards.formats.index import ShardIndex
from data_shards.formats.reader import open_reader
from data_shards.formats.remote import RemoteFiles, affordable_gap_bytes
from data_shards.formats.storage import Range, merged
from tests.data_shards.helpers import KEEP_ALL, build_places
from tests.data_shards.s3_server import FaultyProxy, every, s3_server, use_server

SHAPES_XYZ = [(36, 40, 44), (33, 30, 50), (40, 36, 28)]
SMALL_CHUNKS = Encoding(max_chunk=8)  # so that these small volumes have many


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    return build_places(tmp_path_factory.mktemp("local"), SHAPES_XYZ, encoding=SMALL_CHUNKS)


@pytest.fixture
def bucket(server: str, local: ShardIndex, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of a bucket that holds the build `local` as `x`."""
    use_server(monkeypatch, server)
    files = fsspec.filesystem("s3")
    if not files.exists("bucket"):
        files.mkdir("bucket")
        files.put(str(local.root), "bucket/x", recursive=True)
    return "s3://bucket"


def crops(index: ShardIndex, size: int = 20, num: int = 12) -> list[tuple[int, list[int]]]:
    rng = np.random.default_rng(0)
    places = [k % len(index.volumes) for k in range(num)]
    return [(i, [int(rng.integers(-3, n - size + 4)) for n in index.volumes[i].shape_DHW]) for i in places]


def assert_equal_crops(remote: ShardIndex, local: ShardIndex, num: int = 12) -> None:
    theirs, ours = open_reader(remote), open_reader(local)
    for i, start in crops(local, num=num):
        assert np.array_equal(theirs.crop(i, start, (20, 20, 20)), ours.crop(i, start, (20, 20, 20)))


@pytest.mark.parametrize("format", ["zarr", "webdataset"])
def test_a_build_into_a_bucket_reads_back_as_the_local_one(tmp_path, bucket, format):
    local = build_places(tmp_path, SHAPES_XYZ, format)
    url, config = location(f"{bucket}/{format}"), BuildConfig(format=format, preprocess=KEEP_ALL, volumes_per_shard=2)
    assert build(tmp_path / "archive", url, config).sha256 == local.sha256
    remote = ShardIndex.load(url)
    theirs, ours = open_reader(remote), open_reader(local)
    assert isinstance(theirs.storage, RemoteFiles)
    for i in range(len(local.volumes)):
        for what in ("image", "label"):
            assert np.array_equal(theirs.read(i, what), ours.read(i, what))


def test_a_second_build_into_a_bucket_keeps_what_is_finished(tmp_path, bucket):
    url, config = location(f"{bucket}/again"), BuildConfig(preprocess=KEEP_ALL, volumes_per_shard=2)
    build_places(tmp_path, SHAPES_XYZ)
    first, is_reused = build(tmp_path / "archive", url, config), []

    def note(build_one, plans):
        for result in map(build_one, plans):
            is_reused.append(result.reused)
            yield result

    assert build(tmp_path / "archive", url, config, note) == first and is_reused == [True, True]
    remove(url / first.shards[1].name)
    assert build(tmp_path / "archive", url, config, note) == first and is_reused[2:] == [True, False]


def test_an_object_is_replaced_without_a_moment_of_absence(bucket, monkeypatch):
    """A reader that asks for the index while it is written again finds the old or the new one."""
    path = location(f"{bucket}/replaced.json")
    write_text(path, "old")
    assert isinstance(path, UPath)

    def refuse(*args, **settings):
        raise AssertionError("removed before it was replaced")

    monkeypatch.setattr(path.fs, "rm", refuse)
    write_text(path, "new")
    assert path.read_text() == "new"


@pytest.mark.parametrize("size", [12, 20, 26])
def test_an_epoch_fetches_little_beside_the_chunks_it_needs(bucket, local, size):
    """Needed are the chunks that the local reader asks for; fetched are gaps and chunk tables too."""
    remote, reference = open_reader(ShardIndex.load(location(f"{bucket}/x"))), open_reader(local)
    ends_of_tables = {volume.members["image"].size for volume in local.volumes}
    chunks: list[Range] = []
    num_rows = 0
    read = reference.storage.read

    def noted(file, ranges):
        nonlocal num_rows
        num_rows += len(merged(ranges))
        chunks.extend(r for r in ranges if sum(r) not in ends_of_tables)
        return read(file, ranges)

    reference.storage.read = noted
    for i, start in crops(local, size):
        assert np.array_equal(remote.crop(i, start, (size,) * 3), reference.crop(i, start, (size,) * 3))
    files = remote.storage
    assert isinstance(files, RemoteFiles)
    assert 0 < files.bytes_fetched <= 1.3 * sum(chunk.size for chunk in chunks)
    assert files.num_requests < num_rows


@pytest.mark.parametrize(
    ("ranges", "gap_bytes"),
    [
        ([(0, 100)], 0),  # nothing to join
        ([(0, 100), (100, 100)], 0),  # neighbours join anyway
        ([(0, 50), (60, 50)], 10),  # 10 of 100 bytes
        ([(0, 50), (71, 50)], 0),  # 21 of 100 bytes are too many
        ([(0, 100), (110, 100), (280, 100)], 10),  # the narrow gap, not the wide one
        ([(0, 50), (60, 50), (120, 50), (180, 50), (240, 50), (300, 50)], 10),  # all of one width: 50 of 300
        ([(0, 25), (35, 25), (70, 25), (105, 25)], 0),  # or none: 30 of 100
        ([(100, 100), (0, 100)], 0),  # backwards is no gap
    ],
)
def test_gaps_read_along_are_at_most_a_fifth(ranges, gap_bytes):
    assert affordable_gap_bytes([Range(*r) for r in ranges]) == gap_bytes


@pytest.mark.parametrize(
    ("faults", "n", "num_crops"),
    [
        (["500", "503"], 15, 6),
        (["reset"], 15, 6),
        (["cut"], 15, 6),
        (["slow"], 15, 6),
        (["flip"], 31, 12),  # a crop is 17 requests at most: the second look at a flipped byte sees the right one
        (["500", "cut", "flip", "reset", "503", "slow"], 15, 12),  # all together
    ],
)
def test_faults_are_survived_with_equal_voxels(server, bucket, local, monkeypatch, faults, n, num_crops):
    with FaultyProxy(server, every(n, *faults)) as proxy:
        use_server(monkeypatch, proxy.url)
        assert_equal_crops(ShardIndex.load(location(f"{bucket}/x")), local, num_crops)
        assert len(proxy.faults) >= 3 and set(proxy.faults) == set(faults)


def test_bytes_that_are_wrong_twice_are_an_error_and_not_voxels(server, bucket, local, monkeypatch):
    remote = ShardIndex.load(location(f"{bucket}/x"))
    with FaultyProxy(server, lambda number: "flip") as proxy:
        use_server(monkeypatch, proxy.url)
        with pytest.raises(ShardError, match="damaged or missing"):
            open_reader(remote).read(0)


@pytest.mark.parametrize("fault", ["stall", "500"])
def test_a_bucket_that_never_answers_ends_in_one_line_within_the_time_limit(server, bucket, local, monkeypatch, fault):
    with FaultyProxy(server, lambda number: fault) as proxy:
        use_server(monkeypatch, proxy.url)
        files = RemoteFiles(UPath(f"{bucket}/x"), timeout_s=1.5)
        file = next(p for p in local.root.rglob("c/0/0/0/0")).relative_to(local.root).as_posix()
        begin = time.monotonic()
        with pytest.raises(OSError, match="s3://bucket/x: (not read within 1.5 s|5 attempts failed)"):
            files.read(file, [Range(0, 1000)])
        assert time.monotonic() - begin < 3


def test_what_is_not_there_or_not_allowed_is_named_at_once(bucket, local):
    remote = ShardIndex.load(location(f"{bucket}/x"))
    for root, what in [("s3://nowhere/x", "bucket does not exist"), ("s3://bucket/y", "key does not exist")]:
        reader = open_reader(replace(remote, root=location(root)))
        with pytest.raises(ShardError, match=f"can't be read .{root}: .*{what}") as caught:
            reader.read(0)
        assert "\n" not in str(caught.value)
        assert isinstance(reader.storage, RemoteFiles) and reader.storage.num_requests == 1
        with pytest.raises(InputError, match="is not there"):
            ShardIndex.load(location(root))


def test_what_the_client_gives_up_is_tried_again_with_growing_pauses(bucket, monkeypatch):
    """botocore and s3fs have attempts of their own; this is what comes after them."""
    times_s, path = [], location(f"{bucket}/restless")
    write_text(path, "0123456789")
    read = type(UPath(bucket).fs)._cat_file

    async def fail_at_first(*args, **settings):
        times_s.append(time.monotonic())
        if len(times_s) < 4:
            raise ConnectionResetError("planted")
        return await read(*args, **settings)

    monkeypatch.setattr(type(UPath(bucket).fs), "_cat_file", fail_at_first)
    files = RemoteFiles(UPath(bucket))
    assert bytes(files.read("restless", [Range(3, 4)])[0]) == b"3456"
    pauses_s = np.diff(times_s)
    assert files.num_requests == 4 and all(pause >= 0.1 * 2**k for k, pause in enumerate(pauses_s))
    assert sum(pauses_s) < 2


def test_a_refusal_is_not_tried_again(bucket, monkeypatch):
    files = RemoteFiles(UPath(f"{bucket}/x"))

    async def refuse(*args, **settings):
        raise PermissionError("Access Denied")

    monkeypatch.setattr(type(UPath(bucket).fs), "_cat_file", refuse)
    with pytest.raises(PermissionError, match="s3://bucket/x: Access Denied"):
        files.read("a", [Range(0, 10)])
    assert files.num_requests == 1


def test_reading_beyond_the_end_gives_what_is_there(bucket):
    path = location(f"{bucket}/short")
    write_text(path, "0123456789")
    parts = RemoteFiles(UPath(bucket)).read("short", [Range(2, 3), Range(8, 10), Range(200, 5)])
    assert [bytes(part) for part in parts] == [b"234", b"89", b""]


def test_a_long_range_comes_in_parts(bucket, monkeypatch):
    path, content = UPath(f"{bucket}/long"), np.random.default_rng(0).bytes(100_001)
    path.write_bytes(content)
    monkeypatch.setattr("data_shards.formats.remote._PART_BYTES", 30_000)
    files = RemoteFiles(UPath(bucket))
    assert bytes(files.read("long", [Range(1, 100_000)])[0]) == content[1:] and files.num_requests == 4


def test_a_forked_worker_reads_after_its_parent_has_and_the_parent_goes_on(bucket, local):
    remote, ours = open_reader(ShardIndex.load(location(f"{bucket}/x"))), open_reader(local)
    expected = [ours.read(i) for i in range(3)]
    assert np.array_equal(remote.read(0), expected[0])

    def read_all(answers):
        answers.put(all(np.array_equal(remote.read(i), expected[i]) for i in range(3)))

    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    workers = [context.Process(target=read_all, args=(answers,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert np.array_equal(remote.read(1), expected[1])
    assert [answers.get(timeout=20) for _ in workers] == [True, True]
    for worker in workers:
        worker.join()
    assert np.array_equal(remote.read(2), expected[2])


def test_a_reader_can_be_sent_to_another_process(bucket, local, tmp_path):
    remote = open_reader(ShardIndex.load(location(f"{bucket}/x")))
    expected = remote.read(0)
    (tmp_path / "reader").write_bytes(pickle.dumps(remote))
    code = "import pickle, sys, numpy as np; np.save(sys.argv[2], pickle.load(open(sys.argv[1], 'rb')).read(0))"
    root = Path(__file__).resolve().parents[3]
    command = [sys.executable, "-c", code, str(tmp_path / "reader"), str(tmp_path / "voxels.npy")]
    subprocess.run(command, check=True, cwd=root, env=os.environ, timeout=60)
    assert np.array_equal(np.load(tmp_path / "voxels.npy"), expected)


def test_other_file_systems_are_read_too(local):
    """`memory://` has no event loop of its own."""
    files = fsspec.filesystem("memory")
    files.put(str(local.root), "/shards", recursive=True)
    assert_equal_crops(ShardIndex.load(location("memory://shards")), local)
