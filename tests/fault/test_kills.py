"""Ranks that are killed, each at another moment of a run: it ends with the curve of the run that nothing happened to.

A start goes on from the newest checkpoint that was committed when the rank died; no step before that one is repeated.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest

from data_shards.formats.files import location
from data_shards.formats.index import ShardIndex
from maetrain.checkpoint.commit import newest_committed
from tests.data_shards.s3_server import s3_server, use_server
from tests.maetrain.small import small_setup

from .driver import Run
from .faulty_train import Fault, Faults
from .line import Line
from .ranks import Group, assert_tidy, committed, numbers, ranks_below, steps_in

EVERY, STEPS = 6, 24
KILL = -signal.SIGKILL


def setup_of(index: ShardIndex, run_dir: Path | str, **changes: object):  # noqa: ANN201
    settings = {"steps": STEPS, "checkpoint_every": EVERY, "zero_stage": 1, "stall_timeout_s": 60}
    return small_setup(index, run_dir, **(settings | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def whole(index: ShardIndex, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two ranks that nothing happened to."""
    setup = setup_of(index, tmp_path_factory.mktemp("whole") / "run")
    with Group(setup, 2) as group:
        group.finish()
    whole = numbers(setup.run_dir)
    assert len(set(whole)) == STEPS, "numbers that never change would agree, too"
    return whole


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


@pytest.mark.parametrize("faults", [pytest.param(*f, marks=m, id=name) for name, (*f, m) in MOMENTS.items()])
def test_a_rank_that_dies_there_costs_no_more_than_the_steps_since_the_last_checkpoint(
    faults: list[Fault], index: ShardIndex, whole: list[str], tmp_path: Path
) -> None:
    setup = setup_of(index, tmp_path / "run")
    ended_at = 0
    for _ in faults:
        ended_at = start_that_dies(setup, ended_at)(faults)
    start = committed(setup.run_dir)[-1:] or [0]
    with Group(setup, 2, faults) as group:
        group.finish()
        assert_goes_on(group.steps, start[0], ended_at)
    assert numbers(setup.run_dir) == whole
    assert_tidy(setup.run_dir, STEPS, keep=2)


def start_that_dies(setup, ended_at: int):  # noqa: ANN001, ANN201
    def start(faults: list[Fault]) -> int:
        at = committed(setup.run_dir)[-1:] or [0]
        with Group(setup, 2, faults) as group:
            codes = group.wait()
            logs = [group.log(rank) for rank in (0, 1)]
            (dead,) = (rank for rank, log in enumerate(logs) if "fault: kill" in log)
            assert codes[dead] == KILL, group.tails()
            # its neighbour notices by itself; without one it may have been at its end
            assert codes[1 - dead] in (0, 1), group.tails()
            assert_goes_on(group.steps, at[0], ended_at)
            return max([ended_at, *group.steps])

    return start


def assert_goes_on(steps: list[int], committed_step: int, ended_at: int) -> None:
    """The step after the newest checkpoint comes first; what is repeated lies behind it."""
    assert steps[:1] in ([], [committed_step + 1])
    assert steps == list(range(committed_step + 1, committed_step + 1 + len(steps)))
    # an interval, and as much again while the checkpoint was under way that came to nothing
    assert ended_at - committed_step <= 2 * EVERY
