"""`kill -9` of a build at random moments: what is finished stays, and the next build ends as if undisturbed."""

import os
import shutil
import signal
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from data_shards import build as build_module
from data_shards.build import BuildConfig, build
from data_shards.errors import InputError
from data_shards.formats.index import ShardIndex
from data_shards.verify import verify
from tests.data_shards.fault.outcome import FORMATS, config, contents, times
from tests.data_shards.helpers import write_archive, write_nifti

NUM_SCANS, NUM_KILLS = 12, 20
FORK = get_context("fork")  # a child that has everything imported: the kill hits the build, not its start


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    root = write_archive(tmp_path_factory.mktemp("killed") / "archive", [(16 + i, 18, 20) for i in range(NUM_SCANS)])
    write_nifti(root / "imagesTr/case_5.nii.gz", np.full((21, 18, 20), np.nan, np.float32))  # quarantined
    return root


def kill_after(delay_s: float | None, archive: Path, out: Path, config: BuildConfig) -> tuple[int | None, float]:
    """(exit code, seconds) of a build in a process of its own, killed `delay_s` after it began; None = never."""
    starts, started = FORK.Pipe(duplex=False)

    def child() -> None:
        started.send(None)
        build(archive, out, config)

    process = FORK.Process(target=child)
    process.start()
    starts.recv()
    begin = time.perf_counter()
    if delay_s is not None:
        time.sleep(delay_s)
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    return process.exitcode, time.perf_counter() - begin


@pytest.fixture(scope="module")
def whole(archive, tmp_path_factory) -> dict[str, tuple[dict[str, bytes], float]]:
    """By format: the files of an undisturbed build, and how long it took."""
    outcome = {}
    for format in FORMATS:
        out = tmp_path_factory.mktemp(format)
        code, seconds = kill_after(None, archive, out, config(format))
        assert code == 0 and verify(out, deep=True) == []
        outcome[format] = contents(out), seconds
    return outcome


@pytest.fixture(scope="module")
def older(archive, tmp_path_factory) -> dict[str, Path]:
    """By format: a finished build of twice as many shards, which the next one replaces."""
    folders = {format: tmp_path_factory.mktemp(f"older-{format}") for format in FORMATS}
    for format, folder in folders.items():
        build(archive, folder, config(format, volumes_per_shard=1))
    return folders


def index_or_none(out: Path) -> ShardIndex | None:
    try:
        return ShardIndex.load(out)
    except InputError:
        return None


def test_a_build_killed_at_any_moment_goes_on_to_the_very_same_bytes(archive, whole, older, tmp_path):
    """Every other pair of builds begins in the folder of an older build, of which nothing must be left."""
    rng, codes, num_finished = np.random.default_rng(11), [], set()
    for k in range(NUM_KILLS):
        format, out = FORMATS[k % 2], tmp_path / str(k)
        expected, seconds = whole[format]
        delay_s = float(rng.uniform(0, seconds))
        if k % 4 >= 2:
            shutil.copytree(older[format], out)
        codes.append(kill_after(delay_s, archive, out, config(format))[0])
        finished, half = dict(times(out).items() - times(older[format]).items()), index_or_none(out)
        assert half is None or verify(out, deep=True) == [], f"an index of unfinished shards after {delay_s:.3f} s"
        num_finished.add(len(list((out / ".build").glob("shard-*.json"))))
        index = build(archive, out, config(format))
        assert contents(out) == expected, f"killed after {delay_s:.3f} s"
        assert half is None or half.sha256 == index.sha256 or k % 4 >= 2
        assert finished.items() <= times(out).items(), f"a finished shard was touched, killed after {delay_s:.3f} s"
    # else the sweep has seen nothing: most kills must hit, before, between and after shards
    assert codes.count(-signal.SIGKILL) >= NUM_KILLS // 2 and len(num_finished) >= 3


@pytest.mark.parametrize("format", FORMATS)
def test_a_build_that_is_killed_again_and_again_still_gets_there(archive, whole, tmp_path, format):
    expected, seconds = whole[format]
    for _ in range(40):
        code, _ = kill_after(seconds / 2, archive, tmp_path / "out", config(format))
        if code == 0:
            break
    assert code == 0 and contents(tmp_path / "out") == expected


def test_nothing_of_a_killed_build_is_left_when_the_next_one_has_other_settings(archive, whole, tmp_path):
    """Half-written shards, and a shard that was published although its result was not, have no name in the new plan."""
    for k, step in enumerate(("shard-00003.zarr", ".build/shard-00003.zarr.json")):
        out = tmp_path / str(k)
        kill_when_published(step, archive, out, config("zarr"))
        assert len(contents(out)) and not (out / ".build/shard-00003.zarr.json").exists()
        build(archive, out, config("webdataset"))
        assert contents(out) == whole["webdataset"][0], f"killed before {step} was there"


def kill_when_published(step: str, archive: Path, out: Path, config: BuildConfig) -> None:
    """A build in a process of its own that is killed in the moment before `step` gets its name."""

    def child() -> None:
        replace = os.replace

        def deadly_replace(source, target) -> None:
            if Path(target) == out / step:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(source, target)

        os.replace = deadly_replace
        build(archive, out, config)

    process = FORK.Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("format", FORMATS)
def test_a_build_killed_while_it_removes_an_older_ones_shards_leaves_no_result_of_them(
    archive, older, tmp_path, monkeypatch, format
):
    class Killed(BaseException):
        pass

    def deadly_remove(path: Path) -> None:
        if path.parent == out and path.name.startswith("shard-"):
            raise Killed
        remove(path)

    out = shutil.copytree(older[format], tmp_path / "out")
    remove = build_module.remove
    monkeypatch.setattr(build_module, "remove", deadly_remove)
    with pytest.raises(Killed):
        build(archive, out, config(format))
    shards = {shard.name for shard in ShardIndex.load(out).shards}
    assert {path.name.removesuffix(".json") for path in (out / ".build").glob("shard-*.json")} == shards
