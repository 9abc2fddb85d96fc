"""The disk runs full under a build: on a small file system of its own, so that the error is the kernel's."""

import errno
import subprocess
from pathlib import Path

import pytest

from data_shards.build import build
from data_shards.verify import verify
from tests.data_shards.fault.outcome import FORMATS, config, contents, times
from tests.data_shards.helpers import write_archive

SHAPE, NUM_SCANS = (32, 32, 31), 44  # 63 KB a scan that don't compress: more than the disk holds


def mount(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["mount", *arguments], capture_output=True, text=True)


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    done = mount("-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk))
    if done.returncode:
        pytest.skip(f"needs root to mount a small tmpfs: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    return write_archive(tmp_path_factory.mktemp("full") / "archive", [SHAPE] * NUM_SCANS)


@pytest.mark.parametrize("format", FORMATS)
def test_a_full_disk_fails_the_build_and_more_room_lets_it_go_on(archive, small_disk, tmp_path, format):
    out = small_disk / "out"
    with pytest.raises(OSError) as caught:
        build(archive, out, config(format))
    assert caught.value.errno == errno.ENOSPC
    finished = times(out)
    assert finished and not (out / "index.json").exists()
    assert [path.name for path in small_disk.rglob(".tmp-*")] == []
    with pytest.raises(OSError) as caught:
        build(archive, out, config(format))  # still full
    assert caught.value.errno == errno.ENOSPC and finished.items() <= times(out).items()

    assert mount("-o", "remount,size=16m", str(small_disk)).returncode == 0
    index = build(archive, out, config(format))
    assert finished.items() <= times(out).items() and verify(out, deep=True) == []
    assert build(archive, tmp_path / "alone", config(format)).sha256 == index.sha256
    assert contents(out) == contents(tmp_path / "alone")
