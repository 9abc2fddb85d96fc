"""Ranks that are killed, each at another moment of a run: it ends with the curve of the run that nothing happened to.

A start goes on from the newest checkpoint that was committed when the rank died; no step before that one is repeated.
"""

import os
import random
import re
import signal
import time
from pathlib import Path

import pytest

from data_shards.formats.files import location
from data_shards.formats.index import ShardIndex
from maetrain.checkpoint.commit import MANIFEST, newest_committed
from tests.data_shards.s3_server import s3_server, use_server

from .driver import Run
from .faulty_train import Fault
from .line import Line
from .ranks import EVERY, STEPS, Group, assert_tidy, committed, numbers, ranks_below, steps_in, torchrun
from .ranks import short_setup as setup_of

KILL = -signal.SIGKILL


def at(moment: str, rank: int, step: int | None = 12, last: int | None = None) -> Fault:
    """A checkpoint may begin a few steps late, while the one before is written."""
    return Fault(at=moment, do="kill", rank=rank, step=step, last=last or (step + EVERY - 1 if step else None))  # type: ignore[arg-type]


MOMENTS = {
    "before anything is bound": ([at("start", 1, None)], pytest.mark.faults),
    "first checkpoint, half a file": ([at("part half", 1, 0, last=0)], pytest.mark.faults),
    "loss": ([at("forward", 1, 10)], pytest.mark.faults),
    "gradients": ([at("backward", 0, 10)], pytest.mark.faults),
    "weights moved": ([at("update", 1, 13)], pytest.mark.faults),
    "before its file": ([at("part", 1)], pytest.mark.faults),
    "half a file": ([at("part half", 1)], pytest.mark.runs),
    "file, but nobody knows": ([at("part end", 0)], pytest.mark.faults),
    "all files, no manifest": ([at("manifest", 0)], pytest.mark.runs),
    "half a manifest": ([at("manifest half", 0)], pytest.mark.faults),
    "manifest, no copies": ([at("committed", 0)], pytest.mark.faults),
    "old checkpoint half removed": ([at("tidied half", 0, 12, last=STEPS)], pytest.mark.faults),
    "last checkpoint, half a file": ([at("part half", 0, STEPS, last=STEPS)], pytest.mark.faults),
    "run complete": ([at("end", 0, None)], pytest.mark.faults),
    "restore": ([at("forward", 1, 14), at("restore", 1, 6, last=14)], pytest.mark.runs),
    "checkpoint chosen": ([at("forward", 0, 14), at("chosen", 0, 6, last=14)], pytest.mark.faults),
    "restore, then a save, then the end": (
        [at("backward", 1, 8), at("restore", 0, 6, last=8), at("manifest", 0), at("part half", 1, STEPS, last=STEPS)],
        pytest.mark.faults,
    ),
}


@pytest.mark.parametrize("faults", [pytest.param(f, marks=mark, id=name) for name, (f, mark) in MOMENTS.items()])
def test_a_rank_that_dies_there_costs_no_more_than_the_steps_since_the_last_checkpoint(
    faults: list[Fault], index: ShardIndex, whole: list[str], tmp_path: Path
) -> None:
    setup = setup_of(index, tmp_path / "run")
    done = 0
    for _ in faults:
        from_step = newest(setup.run_dir)
        with Group(setup, 2, faults) as group:
            codes = group.wait()
            (dead,) = (rank for rank in (0, 1) if "fault: kill" in group.log(rank))
            # its neighbour notices by itself, or was at its end
            assert codes[dead] == KILL and codes[1 - dead] in (0, 1), f"{codes}\n{group.tails()}"
            assert_goes_on(group.steps, from_step, done)
            done = max([done, *group.steps])
    from_step = newest(setup.run_dir)
    with Group(setup, 2, faults) as group:
        group.finish()
        assert_goes_on(group.steps, from_step, done)
    assert numbers(setup.run_dir) == whole
    assert_tidy(setup.run_dir, STEPS, keep=2)


def newest(run_dir: str) -> int:
    return max(committed(run_dir), default=0)


def assert_goes_on(steps: list[int], from_step: int, done: int) -> None:
    """The start at `from_step`, the newest checkpoint, repeats what lies behind it of the steps `done`, and no more."""
    assert steps == list(range(from_step + 1, from_step + 1 + len(steps)))
    # an interval, and as much again while the checkpoint was under way that came to nothing
    assert done - from_step <= 2 * EVERY


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_ten_kills_at_random_moments_of_a_run_that_torchrun_starts_again(index: ShardIndex, tmp_path: Path) -> None:
    """With files that are written so slowly that a checkpoint is under way most of the time."""
    kills, out, dice = 10, tmp_path / "run", random.Random(5)
    setup = setup_of(index, out, steps=4000, checkpoint_every=20)
    slow = Fault(at="part half", do="slow", rank=None, step=0, last=10**6, seconds=0.3)
    words = torchrun(tmp_path, setup, [slow], restarts=kills)
    done, lost = 0, list[int]()
    with Run(words, out, {}) as run:
        for _ in range(kills):
            # behind a start, but anywhere in it or in the steps after it
            run.until(lambda: len(ranks_below(run.process.pid)) == 2, 60, "two ranks")
            seen = len(run.log)
            if dice.random() < 0.7:
                run.until(lambda: steps_in(run.log[seen:]), 120, "a step")  # noqa: B023
            time.sleep(dice.uniform(0, 4))
            before = ranks_below(run.process.pid)
            os.kill(before[dice.randrange(2)], signal.SIGKILL)
            run.until(lambda: not set(before.values()) & set(ranks_below(run.process.pid).values()), 60, "a restart")  # noqa: B023
        seen = len(run.log)  # the ranks of the last start have still to import what they need
        run.until(lambda: steps_in(run.log[seen:]), 60, "a step")
        steps = steps_in(run.log)
        for step, following in zip(steps, steps[1:], strict=False):
            done = max(done, step)
            if following != step + 1:
                assert following <= step
                lost.append(done - following + 1)
        os.killpg(run.group, signal.SIGTERM)
        run.wait(100)
    assert len(lost) <= kills and max(lost) <= 2 * 20 + 40, lost
    reached = newest(str(out))
    # the undisturbed run, as far as that one came
    undisturbed = setup_of(index, tmp_path / "whole", steps=4000, checkpoint_every=1000)
    until = Fault(at="update", do="term", rank=0, step=reached)
    with Group(undisturbed, 2, [until], name="whole") as group:
        assert group.wait(400) == [143, 143]
    assert numbers(out) == numbers(undisturbed.run_dir)[:reached]
    assert read_whole(out) == reached


@pytest.mark.faults
def test_a_rank_that_dies_in_an_upload(index: ShardIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the file is with the server; what lies in the bucket is what was there before."""
    groups: list[Group] = []
    awaited = [12, 24]  # or a few steps later, while the checkpoint before is written

    def die(request: str) -> None:
        found = re.search(r"step-(\d+)[^ ]*/rank-00001", request)
        if groups and awaited and found and int(found[1]) >= awaited[0]:
            del awaited[0]
            groups[-1].signal(1, signal.SIGKILL)  # `kill` would take the exit code from `wait`

    with s3_server() as server, Line(server, on_upload=die) as line:
        use_server(monkeypatch, line.url)
        location("s3://bucket/runs").fs.mkdir("bucket")
        setup = setup_of(index, "s3://bucket/runs/run", steps=STEPS)
        for _ in range(2):
            with Group(setup, 2, folder=tmp_path) as group:
                groups.append(group)
                codes = group.wait()
                assert codes == [1, KILL], group.tails()
        with Group(setup, 2, folder=tmp_path) as group:
            groups.append(group)
            group.finish()
            assert group.steps[0] <= 24 and f"resumed at step {group.steps[0] - 1} " in group.log()
        here = setup_of(index, tmp_path / "whole")
        with Group(here, 2, name="whole") as group:
            group.finish()
        assert numbers("s3://bucket/runs/run") == numbers(here.run_dir)
        found = newest_committed(location("s3://bucket/runs/run/checkpoints"))
        assert found.manifest is not None and found.manifest.step == STEPS and not found.skipped


@pytest.mark.faults
@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("moment", ["part", "texts", "manifest", "committed"])
def test_a_group_that_was_given_up_and_comes_back_does_no_harm_to_its_successor(
    moment: str, keep: int, index: ShardIndex, whole: list[str], tmp_path: Path
) -> None:
    """As when a machine stands still, or a launcher dies and leaves its ranks: two groups write into one folder."""
    setup = setup_of(index, tmp_path / "run", keep_checkpoints=keep)
    pause = Fault(at=moment, do="pause", rank=0, step=12, last=17)  # type: ignore[arg-type]
    slow = Fault(at="update", do="slow", rank=0, step=1, last=STEPS, seconds=0.1)
    with Group(setup, 2, [pause, slow]) as given_up:
        given_up.until(lambda: "fault: pause" in given_up.log(), 60, "pause")
        with Group(setup, 2, [pause, slow]) as successor:
            successor.reach(newest(setup.run_dir) + 3)
            given_up.signal(0, signal.SIGCONT)
            successor.finish()
        given_up.wait()
    assert numbers(setup.run_dir) == whole
    assert read_whole(setup.run_dir) == STEPS
    broken = newest_committed(location(setup.run_dir) / "checkpoints").skipped
    assert not broken


@pytest.mark.faults
@pytest.mark.parametrize("moment", ["manifest", "manifest checked"])
def test_a_group_that_was_given_up_does_not_put_a_manifest_where_its_files_are_gone(
    moment: str, index: ShardIndex, whole: list[str], tmp_path: Path
) -> None:
    """Its successor has swept them and dies, and so does the group: there is still a checkpoint to go on from."""
    setup = setup_of(index, tmp_path / "run", keep_checkpoints=1, storage_timeout_s=1)
    pause = Fault(at=moment, do="pause", rank=0, step=12, last=17)  # type: ignore[arg-type]
    slow = Fault(at="update", do="slow", rank=0, step=13, last=STEPS, seconds=0.5)  # it shall die before its next one
    checkpoints = tmp_path / "run" / "checkpoints"
    with Group(setup, 2, [pause, slow], name="given-up") as given_up:
        given_up.until(lambda: "fault: pause" in given_up.log(), 60, "pause")
        (paused,) = (folder for folder in checkpoints.iterdir() if not (folder / MANIFEST).is_file())
        with Group(setup, 2, [at("forward", 1, 9)]) as successor:
            assert KILL in successor.wait(), successor.tails()
        assert not paused.exists()
        given_up.signal(0, signal.SIGCONT)
        time.sleep(1)
        given_up.kill()
    assert committed(setup.run_dir) and read_whole(setup.run_dir) >= 6
    with Group(setup, 2) as group:
        group.finish()
        assert group.steps[0] > 6
    assert numbers(setup.run_dir) == whole


def read_whole(run_dir: Path | str) -> int:
    """Step of the newest checkpoint, where that is whole."""
    found = newest_committed(location(run_dir) / "checkpoints")
    assert found.manifest is not None and not found.skipped, found.skipped
    return found.manifest.step
