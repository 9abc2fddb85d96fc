"""Checkpoints in a bucket: the same rules, over a network that fails."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from upath import UPath

from data_shards.formats import remote
from data_shards.formats.files import is_there, listed, location, remove, text_of, write_text
from maetrain.checkpoint.commit import (
    MANIFEST,
    newest_committed,
    read_committed,
    retain,
    step_of,
    sweep_orphans,
)
from maetrain.checkpoint.fragments import assemble
from maetrain.checkpoint.writer import persistently

from ...data_shards.s3_server import FaultyProxy, every, s3_server, use_server
from ...fault.line import Line
from .builders import KINDS, SHAPES, full, write_checkpoint

pytestmark = pytest.mark.runs


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture
def checkpoints(server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    use_server(monkeypatch, server)
    name = f"bucket-{abs(hash(request.node.name)) % 10**8}"
    bucket = UPath(f"s3://{name}")
    bucket.fs.mkdir(name)
    return location(f"s3://{name}/run/checkpoints")


def test_a_checkpoint_in_a_bucket_comes_back_whole(checkpoints: Path) -> None:
    folder = write_checkpoint(checkpoints, 7)
    found = newest_committed(checkpoints)
    assert found.path == folder and found.manifest is not None and found.skipped == ()
    tensors = assemble(folder, found.manifest, KINDS)
    assert all(torch.equal(tensors[kind][name], full(kind, name, step=7)) for kind in KINDS for name in SHAPES)


@pytest.mark.parametrize("place", [0, -1])
def test_a_flipped_byte_in_a_bucket_is_noticed(checkpoints: Path, place: int) -> None:
    write_checkpoint(checkpoints, 1)
    damaged = write_checkpoint(checkpoints, 2) / "rank-00001.safetensors"
    content = bytearray(damaged.read_bytes())
    content[place] ^= 1
    damaged.write_bytes(bytes(content))
    found = newest_committed(checkpoints)
    assert found.path is not None and step_of(found.path) == 1 and "SHA-256" in found.skipped[0]


def test_retention_and_sweeping_work_in_a_bucket(checkpoints: Path) -> None:
    for step in (1, 2, 3):
        write_checkpoint(checkpoints, step)
    write_checkpoint(checkpoints, 4, committed=False)
    retain(checkpoints, 2, newest=newest_committed(checkpoints).path)  # type: ignore[arg-type]
    assert sorted(step_of(folder) for folder in checkpoints.iterdir()) == [2, 3, 4]
    sweep_orphans(checkpoints)
    assert sorted(step_of(folder) for folder in checkpoints.iterdir()) == [2, 3]


@pytest.mark.parametrize("fault", ["500", "reset", "cut"])
def test_uploads_that_fail_are_made_again(
    checkpoints: Path, server: str, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    with FaultyProxy(server, every(2, fault), to=("PUT",)) as proxy:  # type: ignore[arg-type]
        use_server(monkeypatch, proxy.url)
        folder = location(str(checkpoints))

        def write() -> Path:
            remove(folder)
            return write_checkpoint(folder, 3)

        written = persistently(write, 60)
        assert proxy.faults and read_committed(written).step == 3


def test_downloads_that_fail_are_made_again(checkpoints: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(checkpoints, 11)  # not yet among this process's copies
    with FaultyProxy(server, every(2, "500", "cut", "reset")) as proxy:
        use_server(monkeypatch, proxy.url)
        found = newest_committed(location(str(checkpoints)))
        assert found.manifest is not None and found.manifest.step == 11 and proxy.faults


def test_without_its_manifest_a_checkpoint_in_a_bucket_does_not_count(checkpoints: Path) -> None:
    folder = write_checkpoint(checkpoints, 1)
    (folder / MANIFEST).unlink()
    assert newest_committed(checkpoints).path is None


def test_a_bucket_that_does_not_answer_is_not_taken_for_damage(
    checkpoints: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (12, 13):
        write_checkpoint(checkpoints, step)
    with FaultyProxy(server, every(1, "500")) as proxy:
        use_server(monkeypatch, proxy.url)
        with pytest.raises(OSError, match="attempts failed"):
            newest_committed(location(str(checkpoints)))


def test_where_a_bucket_does_not_say_whether_there_is_a_manifest_nothing_is_removed(
    checkpoints: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [write_checkpoint(checkpoints, step) for step in (1, 2, 3)]
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with FaultyProxy(server, lambda _: "500", to=("HEAD",), only=MANIFEST) as proxy:
        use_server(monkeypatch, proxy.url)
        for tidy in (lambda: sweep_orphans(checkpoints), lambda: retain(checkpoints, 1, folders[-1])):
            with pytest.raises(OSError, match=MANIFEST):
                tidy()
    use_server(monkeypatch, server)
    assert [read_committed(folder).step for folder in folders] == [1, 2, 3]


def test_questions_to_a_bucket_have_an_answer_or_an_oserror_in_time(
    checkpoints: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpoints / "x.txt"
    assert not is_there(path) and listed(checkpoints) == []
    with pytest.raises(FileNotFoundError):
        text_of(path)
    write_text(path, "x")
    assert is_there(path) and listed(checkpoints) == [path] and text_of(path) == "x"
    assert len(remote._clients) == 1, "not one a path"
    monkeypatch.setattr(remote.ask, "__kwdefaults__", {"timeout_s": 1.0})
    with Line(server) as line:
        use_server(monkeypatch, line.url)
        line.hang()
        for question in (is_there, listed, text_of, remove):
            began = time.monotonic()
            with pytest.raises(OSError, match="no answer within 1 s"):
                question(path)
            assert time.monotonic() - began < 30, "botocore alone would wait 60 s, and ask again"
