import asyncio
import gc
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data_shards.errors import InputError
from data_shards.formats.files import digest, location, locked, published, remove_half_written, size_bytes, write_text


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_published_was_whole_before_it_had_its_name(tmp_path, kind):
    """Renamed, not copied: nobody can see a part of it."""
    path = tmp_path / "shard"
    for _ in range(2):  # the second time something stands there already
        with published(path) as temporary:
            if kind == "folder":
                temporary.mkdir()
            (temporary / "x" if kind == "folder" else temporary).write_text("content")
            inode = temporary.stat().st_ino
        assert path.stat().st_ino == inode and [p.name for p in tmp_path.iterdir()] == ["shard"]


def test_a_folder_s_digest_sees_names_and_content(tmp_path):
    write_text(tmp_path / "a/one", "1")
    write_text(tmp_path / "a/two/three", "23")
    before = digest(tmp_path / "a")
    assert before[1] == size_bytes(tmp_path / "a") == 3
    (tmp_path / "a/one").rename(tmp_path / "a/four")
    assert digest(tmp_path / "a")[0] != before[0] and digest(tmp_path / "a")[1] == 3
    (tmp_path / "a/four").rename(tmp_path / "a/one")
    assert digest(tmp_path / "a") == before
    assert size_bytes(tmp_path / "nothing") == -1


@pytest.mark.parametrize(
    ("error", "is_told"), [(ConnectionResetError("closing transport"), False), (KeyError(1), True)]
)
def test_a_client_s_broken_connection_shows_no_stack_of_its_own(
    error: Exception, is_told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """aiohttp leaves a task behind that nobody asks how it ended; a request in the same trouble raises."""
    location("memory://bucket/file")

    async def write() -> None:
        raise error

    async def request() -> None:
        task = asyncio.ensure_future(write())
        await asyncio.sleep(0.01)
        del task
        gc.collect()

    asyncio.run(request())
    assert ("never retrieved" in caplog.text) == is_told


def test_an_atomic_write_replaces_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.json"
    write_text(path, "old")

    def no_power(*_: object) -> None:
        raise OSError("no power")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", no_power)
        with pytest.raises(OSError, match="no power"):
            write_text(path, "new and longer")
    assert path.read_text() == "old"
    write_text(path, "new and longer")
    assert path.read_text() == "new and longer" and list(tmp_path.iterdir()) == [path]


HOLD = """
import sys, time
from pathlib import Path
from data_shards.formats.files import locked
with locked(Path(sys.argv[1])):
    print(1, flush=True)
    time.sleep(60)
"""


def test_a_folder_is_held_by_one_process_until_it_ends_or_dies(tmp_path):
    path = tmp_path / "out" / "lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline()
        with pytest.raises(InputError, match=f"lock: process {holder.pid} on .* works in this folder"), locked(path):
            pass
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
    for _ in range(2):  # after one that was killed, and after one that ended
        with locked(path):
            pass


def test_what_killed_writers_left_beside_a_file_is_removed_and_nothing_else(tmp_path):
    for name in ("curve.jsonl", ".tmp-curve.jsonl-12345678", ".tmp-curve.jsonl-87654321", ".tmp-other-12345678"):
        (tmp_path / name).write_text(name)
    remove_half_written(tmp_path / "curve.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".tmp-other-12345678", "curve.jsonl"]
