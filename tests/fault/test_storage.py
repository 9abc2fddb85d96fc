"""Storage that fills up, goes away, hangs or errs under a run: it goes on, or stops with one line that says why.

Whatever happens, the last committed checkpoint stays whole, and the run that goes on from it ends with the curve of the
run that nothing happened to. Disks are real: a small tmpfs for room, a bind mount to be taken away, a frozen ext4 to
hang. Buckets are moto's, behind a line or a proxy that fails.
"""

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from data_shards.formats.files import location
from data_shards.formats.index import ShardIndex
from maetrain.checkpoint.commit import MANIFEST, newest_committed, read_committed, step_folders
from maetrain.train.config import PretrainSetup
from tests.data_shards.s3_server import EVERYTHING, FaultyProxy, s3_server, some, use_server

from .faulty_train import Fault
from .line import Line
from .ranks import EVERY, STEPS, Group, assert_tidy, committed, numbers, short_setup

pytestmark = pytest.mark.faults

setup_of = partial(short_setup, stall_timeout_s=120)


def slowly(step_s: float) -> Fault:
    """Each step takes so long: time for the test to act in, and for a file to be written beside."""
    return Fault(at="update", do="slow", step=0, last=STEPS, seconds=step_s)


def steps_whole(run_dir: Path | str) -> list[int]:
    """Steps of all committed checkpoints, each of which is read and checked."""
    folders = step_folders(location(run_dir) / "checkpoints")
    return sorted(read_committed(folder).step for folder in folders if (folder / MANIFEST).is_file())


def assert_stopped_with_one_line(group: Group, *said: str) -> None:
    """All ranks end by themselves with exit code 2; the first one's last line says why, and no rank shows a stack."""
    assert group.wait() == [2] * group.size, group.tails()
    last = group.log().splitlines()[-1]
    assert last.startswith("maetrain: ") and all(text in last for text in said), group.tails()
    assert not any("Traceback" in group.log(rank) for rank in range(group.size)), group.tails()


def assert_goes_on_to_the_end(setup: PretrainSetup, size: int, folder: Path, from_step: int, whole: list[str]) -> None:
    with Group(setup, size, folder=folder) as group:
        group.finish()
        assert group.steps == list(range(from_step + 1, STEPS + 1))
    assert numbers(setup.run_dir) == whole


# --- disks


def call(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in words], capture_output=True, text=True)


def mounted(stack: ExitStack, folder: Path, *words: str | Path) -> Path:
    """`folder`, with what `words` say mounted there until the stack ends."""
    folder.mkdir(exist_ok=True)
    done = call("mount", *words, folder)
    if done.returncode:
        pytest.skip(f"needs root to mount: {done.stderr.strip()}")
    stack.callback(call, "umount", "-l", folder)
    return folder


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


class SmallDisk:
    """A tmpfs in memory whose room is the kernel's to give."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self.folder = mounted(stack, folder, "-t", "tmpfs", "-o", "size=64m,noswap", "tmpfs")

    def leave(self, num_bytes: int) -> None:
        """No more than `num_bytes` can be written from now on; rounded down to pages."""
        page = os.sysconf("SC_PAGE_SIZE")
        now = os.statvfs(self.folder)
        used = (now.f_blocks - now.f_bfree) * now.f_frsize
        size = used + num_bytes // page * page
        assert call("mount", "-o", f"remount,size={size}", self.folder).returncode == 0


@pytest.fixture
def disk(stack: ExitStack, tmp_path: Path) -> SmallDisk:
    return SmallDisk(stack, tmp_path / "disk")


def rank_file_bytes(run_dir: Path | str) -> int:
    """Of the larger rank, in whole pages."""
    page = os.sysconf("SC_PAGE_SIZE")
    sizes = [path.stat().st_size for path in step_folders(Path(run_dir) / "checkpoints")[0].glob("rank-*")]
    return -(-max(sizes) // page) * page


@pytest.mark.parametrize("timeout_s", [pytest.param(60, id="waits for it"), pytest.param(1, id="gives one up")])
def test_a_disk_that_is_full_for_a_while(
    timeout_s: float, index: ShardIndex, whole: list[str], disk: SmallDisk, tmp_path: Path
) -> None:
    setup = setup_of(index, disk.folder / "run", storage_timeout_s=timeout_s, max_failed_checkpoints=99)
    with Group(setup, 2, [slowly(0.2)], folder=tmp_path) as group:
        group.until(lambda: EVERY in committed(setup.run_dir), 60, "checkpoint")
        disk.leave(0)
        if timeout_s == 1:
            group.until(lambda: f"checkpoint of step {2 * EVERY} failed: rank " in group.log(), 60, "failure")
        group.reach(2 * EVERY + 4)
        assert max(steps_whole(setup.run_dir)) == EVERY
        disk.leave(2**25)
        group.finish()
        if timeout_s > 1:  # a slow machine's first try may take the whole second, and then there is no waiting
            assert f"checkpoint of step {2 * EVERY} waits for its storage: " in group.log()
        assert ("failed" in group.log()) == (timeout_s == 1), group.log()
        assert "No space left" in group.log() or timeout_s > 1
    assert numbers(setup.run_dir) == whole
    assert_tidy(setup.run_dir, STEPS, keep=2)


@pytest.mark.parametrize(
    ("rank_files", "further_bytes"),
    [
        pytest.param(1.5, 0, id="room for one rank's file"),
        pytest.param(2, 2**12, id="room for all but the manifest"),
    ],
)
def test_a_disk_that_stays_full_ends_the_run_with_its_last_checkpoint_whole(
    rank_files: float, further_bytes: int, index: ShardIndex, whole: list[str], disk: SmallDisk, tmp_path: Path
) -> None:
    setup = setup_of(index, disk.folder / "run", storage_timeout_s=0.5, max_failed_checkpoints=2)
    with Group(setup, 2, [slowly(0.1)], folder=tmp_path) as group:
        group.until(lambda: EVERY in committed(setup.run_dir), 60, "checkpoint")
        disk.leave(int(rank_files * rank_file_bytes(setup.run_dir)) + further_bytes)
        assert_stopped_with_one_line(
            group, "2 checkpoints in a row could not be stored", f"step {EVERY} is safe", "No space left", "make room"
        )
    assert max(steps_whole(setup.run_dir)) == EVERY
    found = newest_committed(location(setup.run_dir) / "checkpoints")
    assert found.manifest is not None and found.manifest.step == EVERY and not found.skipped
    disk.leave(2**25)
    assert_goes_on_to_the_end(setup, 2, tmp_path, EVERY, whole)
    assert_tidy(setup.run_dir, STEPS, keep=2)


@pytest.mark.parametrize("room", [pytest.param(0, id="for nothing"), pytest.param(2**14, id="for no checkpoint")])
def test_a_disk_that_is_full_from_the_start(room: int, index: ShardIndex, disk: SmallDisk, tmp_path: Path) -> None:
    setup = setup_of(index, disk.folder / "run", storage_timeout_s=0.5, max_failed_checkpoints=2)
    (disk.folder / "another's").write_bytes(b"x")  # a tmpfs of size 0 has no bounds
    disk.leave(room)
    with Group(setup, 1, folder=tmp_path) as group:
        assert_stopped_with_one_line(group, "No space left")
        assert not group.steps
    assert not step_folders(disk.folder / "run" / "checkpoints")


def test_a_mount_that_goes_and_comes_back(
    index: ShardIndex, whole: list[str], stack: ExitStack, tmp_path: Path
) -> None:
    """What is written meanwhile would land in the folder below, on the wrong disk: it must not pass for stored."""
    (there := tmp_path / "there").mkdir()
    here = mounted(stack, tmp_path / "here", "--bind", there)
    setup = setup_of(index, here / "run", storage_timeout_s=60)
    with Group(setup, 2, [slowly(0.3)], folder=tmp_path) as group:
        group.until(lambda: EVERY in committed(setup.run_dir), 60, "checkpoint")
        assert call("umount", "-l", here).returncode == 0
        group.reach(2 * EVERY + 4)
        wrong = sorted(str(path.relative_to(here)) for path in here.rglob("*"))
        mounted(stack, here, "--bind", there)
        group.finish()
    assert not [path for path in wrong if path.endswith((".safetensors", MANIFEST))], wrong
    assert numbers(setup.run_dir) == whole
    assert_tidy(setup.run_dir, STEPS, keep=2)


def test_a_disk_that_hangs_for_a_while(index: ShardIndex, whole: list[str], stack: ExitStack, tmp_path: Path) -> None:
    """As a hard NFS mount: each write waits until the server is back, and no time limit reaches it."""
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(2**26)
    if (done := call("mkfs.ext4", "-q", image)).returncode:
        pytest.skip(f"needs mkfs.ext4: {done.stderr}")
    folder = mounted(stack, tmp_path / "disk", "-o", "loop,noatime", image)
    setup = setup_of(index, folder / "run")
    with Group(setup, 2, [slowly(0.2)], folder=tmp_path) as group:
        stack.callback(call, "fsfreeze", "-u", folder)  # what waits for it can't even be killed
        group.until(lambda: EVERY in committed(setup.run_dir), 60, "checkpoint")
        assert call("fsfreeze", "-f", folder).returncode == 0
        group.reach(STEPS)
        time.sleep(5)  # nothing to do but wait for it
        assert max(steps_whole(setup.run_dir)) == EVERY and all(rank.exitcode is None for rank in group.ranks)
        assert call("fsfreeze", "-u", folder).returncode == 0
        group.finish()
        assert "failed" not in group.log()
    assert numbers(setup.run_dir) == whole
    assert_tidy(setup.run_dir, STEPS, keep=2)


# --- buckets


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as url, pytest.MonkeyPatch.context() as monkeypatch:
        use_server(monkeypatch, url)
        location("s3://bucket/runs").fs.mkdir("bucket")  # type: ignore[attr-defined]
        yield url


class Remote:
    """A run in a bucket. Groups get at it by way of `through`, the test itself without a detour."""

    def __init__(self, server: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.server, self.monkeypatch, self.folder = server, monkeypatch, folder
        self.run = f"s3://bucket/{folder.name}/run"
        use_server(monkeypatch, server)

    def start(
        self, through: str, setup: PretrainSetup, size: int, faults: Sequence[Fault] = (), name: str = "run"
    ) -> Group:
        use_server(self.monkeypatch, through)
        try:
            return Group(setup, size, faults, name=name, folder=self.folder)
        finally:
            use_server(self.monkeypatch, self.server)


@pytest.fixture
def remote(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Remote:
    return Remote(server, monkeypatch, tmp_path)


def test_buckets_that_are_gone_for_a_minute(index: ShardIndex, whole: list[str], remote: Remote) -> None:
    """Two runs at a time. refuse: nobody listens. hang: connections are made, and nothing is answered."""
    away_s, size = 60, 2
    runs = {fault: f"{remote.run}-{fault}" for fault in ("refuse", "hang")}
    with ExitStack() as stack:
        lines = {fault: stack.enter_context(Line(remote.server)) for fault in runs}
        groups = {
            fault: stack.enter_context(
                remote.start(lines[fault].url, setup_of(index, run), size, [slowly(away_s / 20)], name=fault)
            )
            for fault, run in runs.items()
        }
        for fault, run in runs.items():
            groups[fault].until(lambda: EVERY in committed(run), 90, "checkpoint")  # noqa: B023
        before = {fault: (len(groups[fault].steps), max(steps_whole(run))) for fault, run in runs.items()}
        lines["refuse"].refuse()
        lines["hang"].hang()
        time.sleep(away_s)
        for fault, run in runs.items():
            # the training has gone on all the while, beyond a checkpoint that can't be stored
            steps, committed_step = before[fault]
            assert len(groups[fault].steps) - steps >= 10 and max(steps_whole(run)) == committed_step
            lines[fault].mend()
        for fault, run in runs.items():
            groups[fault].finish(120)
            assert "failed" not in groups[fault].log()
            assert numbers(run) == whole
            found = newest_committed(location(run) / "checkpoints")
            assert found.manifest is not None and found.manifest.step == STEPS and not found.skipped


def test_a_bucket_that_stays_away_ends_the_run_with_its_last_checkpoint_whole(
    index: ShardIndex, whole: list[str], remote: Remote
) -> None:
    setup = setup_of(index, remote.run, storage_timeout_s=2, max_failed_checkpoints=1)
    with Line(remote.server) as line:
        with remote.start(line.url, setup, 2, [slowly(0.1)]) as group:
            group.until(lambda: EVERY in committed(remote.run), 60, "checkpoint")
            line.refuse()
            assert_stopped_with_one_line(group, "could not be stored", f"step {EVERY} is safe", "Could not connect")
        assert max(steps_whole(remote.run)) == EVERY
        line.mend()
        assert_goes_on_to_the_end(setup, 2, remote.folder, EVERY, whole)


def test_a_bucket_that_errs_and_cuts_connections(index: ShardIndex, whole: list[str], remote: Remote) -> None:
    """A run that is killed on the way goes on from the bucket alone, under the same faults."""
    setup = setup_of(index, remote.run, storage_timeout_s=120)
    faults = some(0.25, 7, "500", "503", "reset", "cut", "cut upload")
    with FaultyProxy(remote.server, faults, to=EVERYTHING) as proxy:
        kill = Fault(at="forward", do="kill", rank=1, step=STEPS - 4)
        with remote.start(proxy.url, setup, 2, [slowly(0.2), kill]) as group:
            group.wait()
            assert "fault: kill" in group.log(1), group.tails()
        before, from_step = len(proxy.faults), max(steps_whole(remote.run))
        assert {"500", "reset", "cut", "cut upload"} <= set(proxy.faults) and from_step >= EVERY
        with remote.start(proxy.url, setup, 2) as group:
            group.finish()
            assert group.steps == list(range(from_step + 1, STEPS + 1)) and len(proxy.faults) > before
    assert numbers(remote.run) == whole
    assert max(steps_whole(remote.run)) == STEPS and not newest_committed(location(remote.run) / "checkpoints").skipped


@pytest.mark.parametrize("away_s", [pytest.param(10, id="for a while"), pytest.param(1e6, id="for good")])
def test_a_start_while_the_bucket_is_away(away_s: float, index: ShardIndex, whole: list[str], remote: Remote) -> None:
    """It waits as long as a checkpoint would be tried, then it stops; it does not begin anew."""
    setup = setup_of(index, remote.run, storage_timeout_s=40 if away_s < 60 else 2)
    stop = Fault(at="update", do="term", rank=0, step=EVERY + 2)
    with remote.start(remote.server, setup, 2, [stop]) as group:
        group.wait()
    from_step = max(steps_whole(remote.run))
    assert from_step >= EVERY + 2
    with Line(remote.server) as line:
        line.refuse()
        with remote.start(line.url, setup, 2 if away_s < 60 else 1) as group:
            if away_s < 60:
                time.sleep(away_s)
                line.mend()
                group.finish()
                assert group.steps == list(range(from_step + 1, STEPS + 1))
                assert numbers(remote.run) == whole
            else:
                assert_stopped_with_one_line(group, remote.run, "Could not connect")
                assert max(steps_whole(remote.run)) == from_step


def test_a_start_that_does_not_hear_whether_manifests_are_there_sweeps_no_checkpoint(
    index: ShardIndex, remote: Remote
) -> None:
    """What can't be known to be committed is neither passed over nor removed."""
    setup = setup_of(index, remote.run, storage_timeout_s=2)
    stop = Fault(at="update", do="term", rank=0, step=EVERY + 2)
    with remote.start(remote.server, setup, 1, [stop]) as group:
        group.wait()
    before = steps_whole(remote.run)
    with FaultyProxy(remote.server, lambda _: "500", to=("HEAD",), only=MANIFEST) as proxy:
        with remote.start(proxy.url, setup, 1) as group:
            assert_stopped_with_one_line(group, remote.run)
        assert proxy.faults and steps_whole(remote.run) == before and before[-1] > EVERY


def test_retention_that_does_not_hear_whether_a_manifest_is_there_removes_no_checkpoint(
    index: ShardIndex, remote: Remote
) -> None:
    setup = setup_of(index, remote.run, keep_checkpoints=9)
    with FaultyProxy(remote.server, lambda _: "500", to=("HEAD",), only=f"step-{0:08d}") as proxy:
        with remote.start(remote.server, setup, 1, [Fault(at="update", do="term", rank=0, step=2)]) as group:
            group.wait()
        assert steps_whole(remote.run) == [0, 2]
        with remote.start(proxy.url, setup, 1) as group:
            group.finish()
        assert proxy.faults and {0, 2, STEPS} <= set(steps_whole(remote.run))
